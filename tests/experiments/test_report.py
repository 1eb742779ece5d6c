from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from omni_lab.experiments.claims import Claim, load_claims, score_claims
from omni_lab.experiments.cli import main
from omni_lab.experiments.report import print_results, print_scorecard, publish_run, scorecard_markdown, write_index
from omni_lab.experiments.results import RunRecorder, read_results, start_run
from omni_lab.utils.env import project_root


def new_run(folder: Path) -> RunRecorder:
    return start_run("nn", profile="smoke", seed=0, output_dir=str(folder))


CLAIMS = [
    Claim("one", "It <saves>", {"room/saved": ">= 0.5"}, reported="half", notebook="nn", controls=["room/control"]),
    Claim("two", "It is quick", {"room/time": "< 1", "room/saved": ">= 0.1"}, notebook="nn"),
    Claim("two", "It flies", {"wing/height": "> 0"}),
]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    run = new_run(tmp_path / "smoke" / "nn" / "seed0")
    run.record("room/saved", 0.7, interval=(0.6, 0.8), unit="x")
    run.record("room/control", 0.1, control=True)
    run.record("room/time", 1.5, higher_is_better=False)
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    assert run.save_figure(figure, "curve") is figure
    plt.close(figure)
    (run.folder / "notebook.html").write_text("<html></html>")
    return tmp_path


def test_results_are_shown(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(read_results(recorded), title="the title")
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("the title", "room/saved", "0.7 x", "0.6 to 0.8", "control"))
    print_results([], title="nothing")
    assert "nothing recorded yet" in capsys.readouterr().out


def test_the_scorecard_says_what_held_what_did_not_and_what_is_to_come(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = score_claims(CLAIMS, read_results(recorded))
    print_scorecard(scored)
    shown = capsys.readouterr().out
    for words in (
        "✓ held",
        "✗ did not hold",
        "– not measured yet",
        "saved: 0.7 x (0.6 to 0.8); bar >= 0.5",
        "nn, seed0",
    ):
        assert words in shown, words
    assert "3 claims: 1 held, 1 did not hold, 1 not measured yet" in shown
    table = scorecard_markdown(scored)
    assert "| It <saves> | half | saved: 0.7 x (0.6 to 0.8); bar >= 0.5 | control: 0.1 | ✓ held |" in table
    assert "| It flies |  | height: not recorded; bar > 0 |  | – not measured yet |" in table


def test_the_index_page_begins_with_the_scorecard_and_links_what_is_there(recorded: Path) -> None:
    results = read_results(recorded)
    page = write_index(recorded / "smoke", results, title="a <title>", scored=score_claims(CLAIMS, results)).read_text()
    assert 'src="nn/seed0/figures/curve.png"' in page and 'href="nn/seed0/notebook.html"' in page
    assert "a &lt;title&gt;" in page and "It &lt;saves&gt;" in page
    assert page.index("did not hold") < page.index("curve.png")
    assert "http" not in page, "nothing from elsewhere"
    assert page.index("room/time") < page.index("<details>"), "what claims rest on is not folded away"
    assert not list(recorded.glob("**/*.part"))


def test_the_command_line_prints_it_and_names_what_is_broken(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = recorded / "published" / "smoke" / "nn" / "seed1"
    broken.mkdir(parents=True)
    (broken / "metrics.json").write_text("{")
    assert main(["scorecard", "--profile", "smoke", "--output", str(recorded)]) == 0
    said = capsys.readouterr()
    assert "claims: " in said.out and "seed1/metrics.json: not a metrics file" in said.err.replace("\n", "")
    assert main(["report", "--profile", "smoke", "--output", str(recorded)]) == 0
    assert "Scorecard" in (recorded / "smoke" / "index.html").read_text()


def test_what_is_published_is_numbers_page_and_the_figures_named(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = recorded / "published" / "smoke"
    run, to = recorded / "smoke" / "nn" / "seed0", root / "nn" / "seed0"
    with pytest.raises(ValueError, match=r"other.png: does not exist; the figures of this run are \['curve'\]"):
        publish_run(run, to, figures=["curve", "other"])
    assert not root.exists()
    for other in ("executed.ipynb", "answers.npz"):
        (run / other).write_bytes(b"")
    publish_run(run, to, figures=["curve"])
    assert {p.relative_to(to).as_posix() for p in to.rglob("*.*")} == {
        "metrics.json",
        "notebook.html",
        "answers.npz",
        "figures/curve.png",
    }
    few, whole = Image.open(to / "figures" / "curve.png"), Image.open(run / "figures" / "curve.png")
    assert few.mode == "P" and few.size == whole.size
    assert (to / "figures/curve.png").stat().st_size < (run / "figures/curve.png").stat().st_size
    publish_run(run, to)
    assert not (to / "figures").exists(), "the earlier copy is replaced"
    words = ["publish", "01", "--profile", "smoke", "--output", str(recorded)]
    assert main(words) == 2 and "01_data_preparation/seed0/metrics.json: does not exist" in capsys.readouterr().err
    run.parent.rename(run.parents[1] / "01_data_preparation")
    assert main(words) == 0
    index = (root / "index.html").read_text()
    assert 'href="01_data_preparation/seed0/notebook.html"' in index and "Scorecard" in index


def test_the_readme_shows_the_published_scorecard() -> None:
    root = project_root()
    scored = score_claims(load_claims(), read_results(root / "reports/published/standard"))
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert scorecard_markdown(scored) in readme, "omni-lab scorecard --published --markdown prints what belongs there"
