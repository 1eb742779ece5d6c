from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from omni_lab.experiments import provenance
from omni_lab.experiments.claims import Claim, load_claims, score_claims
from omni_lab.experiments.cli import main
from omni_lab.experiments.report import (
    add_published,
    agreement,
    print_results,
    print_scorecard,
    publish_run,
    scorecard_markdown,
    scorecard_rows,
    write_index,
)
from omni_lab.experiments.results import RunRecorder, read_results, start_run
from omni_lab.utils.env import project_root


def new_run(folder: Path, profile: str = "smoke") -> RunRecorder:
    return start_run("nn", profile=profile, seed=0, output_dir=str(folder))


def picture(color: str) -> str:
    """A picture within an address, 1000 x 500."""
    written = io.BytesIO()
    Image.new("RGB", (1000, 500), color).save(written, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"


def shown(card: str) -> Any:
    found = re.search(r'src="data:image/webp;base64,([^"]+)"', card)
    assert found
    return Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")


CLAIMS = [
    Claim("one", "It <saves>", {"room/saved": ">= 0.5"}, reported="half", notebook="nn", controls=["room/control"]),
    Claim("two", "It is quick", {"room/time": "< 1", "room/saved": ">= 0.1"}, notebook="nn"),
    Claim("two", "It flies", {"wing/height": "> 0"}, reason="it has no wings", note="of lead"),
]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "code_state", lambda: ("0123456789" * 4, True))
    run = new_run(tmp_path / "standard" / "nn" / "seed0", "standard")
    run.record("room/saved", 0.7, interval=(0.6, 0.8), unit="x")
    run.record("room/control", 0.1, control=True)
    run.record("room/time", 1.5, higher_is_better=False)
    run.record("room/sure", 0.9)
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
        "commit 012345678901",
        "not measured: it has no wings",
        "note: of lead",
    ):
        assert words in shown, words
    assert "3 claims: 1 held, 1 did not hold, 1 not measured yet" in shown
    table = scorecard_markdown(scored)
    assert "| It <saves> | half | saved: 0.7 x (0.6 to 0.8); bar >= 0.5<br>*nn, seed0, standard, " in table
    assert "this machine* | control: 0.1 | ✓ held |" in table
    why = "not measured: it has no wings<br>note: of lead"
    assert f"| It flies |  | height: not recorded; bar > 0<br>{why} |  | – not measured yet |" in table


def test_what_quick_measured_stands_beside_the_claim_that_it_cannot_decide(recorded: Path) -> None:
    new_run(recorded / "quick" / "nn" / "seed0", "quick").record("room/saved", 0.1, interval=(0.0, 0.2))
    row, *_ = scorecard_rows(score_claims(CLAIMS, read_results(recorded)))
    assert row["verdict"] == "held"
    assert row["ours"] == ["saved: 0.7 x (0.6 to 0.8); bar >= 0.5", "here, quick: saved: 0.1 (0 to 0.2)"]


def test_numbers_stand_beside_the_published_ones(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recorded / "published").mkdir()
    (recorded / "standard").rename(recorded / "published" / "standard")
    run = new_run(recorded / "quick" / "nn" / "seed0", "quick")
    run.record("room/saved", 0.65, interval=(0.5, 0.75))
    run.record("room/sure", 1.0, interval=(1.0, 1.0))
    run.record("room/control", 0.3, interval=(0.2, 0.4))
    run.record("room/time", 2.5, interval=(2.0, 3.0), unit="x")
    run.record("room/new", 2.5, interval=(2.0, 3.0))
    results = add_published(read_results(recorded / "quick"), read_results(recorded / "published"))
    assert [m["published"] and m["published"]["value"] for m in results[0]["metrics"]] == [0.7, 0.9, 0.1, 1.5, None]
    agrees, *apart = agreement(results)
    assert agrees.startswith("1 of 3 numbers agree") and agrees.endswith("which depend on the machine: 1 of 2")
    assert apart == [
        "nn/seed0 room/control: 0.3 (0.2 to 0.4), published 0.1",
        "nn/seed0 room/time: 2.5 x (2 to 3), published 1.5, a time",
    ]
    assert agreement(read_results(recorded / "published")) == [], "nothing to compare with"
    assert main(["report", "--profile", "quick", "--output", str(recorded)]) == 0
    shown = capsys.readouterr().out
    assert agrees in shown and apart[0] in shown
    page = (recorded / "quick" / "index.html").read_text()
    assert "<th>published</th>" in page and agrees in page and "<td>0.1</td>" in page


def test_the_index_page_begins_with_cards_then_the_scorecard_in_words_then_numbers(recorded: Path) -> None:
    results = read_results(recorded)
    folder = recorded / "standard"
    page = write_index(folder, results, title="a <title>", scored=score_claims(CLAIMS, results)).read_text()
    assert 'src="nn/seed0/figures/curve.png"' in page and 'href="nn/seed0/notebook.html"' in page
    assert "a &lt;title&gt;" in page and "It &lt;saves&gt;" in page
    assert (
        page.index("curve.png") < page.index("did not hold</td>") < page.index("room/time") < page.index("</details>")
    )
    assert "http" not in page, "nothing from elsewhere"
    assert not list(recorded.glob("**/*.part"))


def test_names_of_metrics_are_words_until_the_numbers(recorded: Path) -> None:
    new_run(recorded / "standard" / "nn" / "seed0", "standard").record("room/wall_time/saved_b1", 0.5)
    claims = [Claim("one", "It saves", {"room/wall_time/saved_b1": "> 0"}, notebook="nn", note="1/s or a_b")]
    results = read_results(recorded)
    page = write_index(recorded / "standard", results, title="t", scored=score_claims(claims, results)).read_text()
    opening, numbers = page.split('id="numbers"')
    assert "wall time, saved b1: 0.5; bar &gt; 0<br>note: 1/s or a_b" in opening
    assert "saved_b1" not in opening and "room/wall_time/saved_b1" in numbers


def test_a_card_says_what_its_notebook_carries(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(recorded))
    asked = "# Bits\n\n**The question.** A word. How *few* `bits`\nare enough? And why?\n\n*Measured*"
    metadata = {"omni_lab": {"figure": "third_one", "finding": "Few & cheap."}}
    for name in ("08_bits", "99_scores", "solutions/90_worked"):
        file = recorded / "notebooks" / f"{name}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"cells": [{"source": [asked]}], "metadata": metadata}))
        new_run(recorded / "standard" / file.stem / "seed0", "standard").record("room/saved", 0.7)
    new_run(recorded / "standard" / "08_bits" / "seed0-more=1", "standard")
    (recorded / "notebooks" / "08_bits.ipynb").rename(recorded / "notebooks" / "not_in_the_series.ipynb")
    own = recorded / "standard" / "08_bits" / "seed0"
    shutil.copy(recorded / "notebooks" / "not_in_the_series.ipynb", own / "executed.ipynb")
    colors = {"figure": "red", "third one": "blue"}
    images = "".join(f'<img alt="{name}" src="{picture(color)}">' for name, color in colors.items())
    (own / "notebook.html").write_text(images)
    (recorded / "standard" / "99_scores" / "seed0" / "notebook.html").write_text(images.replace("third", "fourth"))
    results = [run | {"notebook": run["folder"].parent.name} for run in read_results(recorded)]
    page = write_index(recorded / "standard", results, title="t").read_text()
    cards = {card.split("<small>")[1][:2]: card for card in page.split("<article>")[1:]}
    assert list(cards) == ["99", "90", "08", "nn"], "in order of the series, the others last"
    for words in ("<h3>Bits</h3>", "How few bits are enough?</p>", "Few &amp; cheap.", "0:00 min", "1 more run</a>"):
        assert words in cards["08"], words
    assert "A word" not in cards["08"] and "And why" not in cards["08"]
    assert shown(cards["08"]).getpixel((9, 9))[2] > 200 and 'alt="third one"' in cards["08"], "the named figure"
    assert shown(cards["99"]).getpixel((9, 9))[0] > 200, "it has no such figure: the first"
    assert shown(cards["99"]).size == (440, 220), "shrunk"
    assert "<img" not in cards["90"], "it has none"


def test_the_glossary_stands_beside_the_index(recorded: Path) -> None:
    index = write_index(recorded / "standard", read_results(recorded), title="t")
    assert 'href="glossary.html"' in index.read_text()
    assert '<h3 id="accuracy-kept">' in (recorded / "standard" / "glossary.html").read_text()


def test_an_index_of_many_runs_is_written_in_a_moment(recorded: Path) -> None:
    (result,) = read_results(recorded)
    metrics = [result["metrics"][0] | {"name": f"room/{number}"} for number in range(60)]
    folders = [recorded / "standard" / "nn" / f"seed{number}" for number in range(60)]
    results = [result | {"folder": folder, "metrics": metrics} for folder in folders]
    write_index(recorded / "standard", results[:1], title="t")
    start = time.process_time()
    write_index(recorded / "standard", results, title="t")
    assert time.process_time() - start < 1


def test_slides_are_made_of_a_published_page(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["slides", "05", "--output", str(recorded), "--to", str(recorded / "new" / "slides.html")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (
        "05_routing has no page yet: expected" in said and "published/standard/05_routing/seed0/notebook.html" in said
    )
    for profile in ("published/standard", "quick"):
        folder = recorded / profile / "05_routing" / "seed0"
        folder.mkdir(parents=True)
        cell = f'<div class="cell"><div class="text_cell_render"><h1>T</h1><p>{profile}</p></div></div>'
        (folder / "notebook.html").write_text(f"<title>T</title>{cell}")
    for options, used in (([], "published/standard"), (["--profile", "quick"], "quick")):
        assert main([*words, *options]) == 0
        assert f"<p>{used}</p>" in (recorded / "new" / "slides.html").read_text()


def test_the_command_line_prints_it_and_names_what_is_broken(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = recorded / "published" / "standard" / "nn" / "seed1"
    broken.mkdir(parents=True)
    (broken / "metrics.json").write_text("{")
    assert main(["scorecard", "--profile", "standard", "--output", str(recorded)]) == 0
    said = capsys.readouterr()
    assert "claims: " in said.out and "seed1/metrics.json: not a metrics file" in said.err.replace("\n", "")
    assert main(["report", "--profile", "standard", "--output", str(recorded)]) == 0
    assert "Scorecard" in (recorded / "standard" / "index.html").read_text()


def test_what_is_published_is_numbers_page_and_the_figures_named(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = recorded / "published" / "standard"
    run, to = recorded / "standard" / "nn" / "seed0", root / "nn" / "seed0"
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
        "figures/curve.webp",
    }
    few, whole = Image.open(to / "figures" / "curve.webp"), Image.open(run / "figures" / "curve.png").convert("RGB")
    assert few.mode == "RGB" and few.size == whole.size
    assert np.abs(np.asarray(few, int) - np.asarray(whole, int)).mean() < 1, "true colours"
    assert (to / "figures/curve.webp").stat().st_size < (run / "figures/curve.png").stat().st_size
    publish_run(run, to)
    assert not (to / "figures").exists(), "the earlier copy is replaced"
    words = ["publish", "01", "--profile", "standard", "--output", str(recorded)]
    assert main(words) == 2 and "01_data_preparation/seed0/metrics.json: does not exist" in capsys.readouterr().err
    run.parent.rename(run.parents[1] / "01_data_preparation")
    assert main(words) == 0
    index = (root / "index.html").read_text()
    assert 'href="01_data_preparation/seed0/notebook.html"' in index and "Scorecard" in index
    capsys.readouterr()
    assert main(["scorecard", "--published", "--markdown", "--output", str(recorded)]) == 0
    assert (recorded / "published" / "SCORECARD.md").read_text() == capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((None, None), "its code is of an unknown commit"),
        (("ab" * 20, False), "its code had changes that are in no commit"),
    ],
)
def test_a_run_whose_code_is_in_no_commit_is_not_published(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, state: tuple[str | None, bool | None], message: str
) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: state)
    run = new_run(recorded / "standard" / "nn" / "seed1", "standard").folder
    (run / "notebook.html").write_text("")
    with pytest.raises(
        ValueError, match=f"seed1: nobody could repeat this run, as {message}: commit, and run it again"
    ):
        publish_run(run, recorded / "published" / "standard" / "nn" / "seed1")
    assert not (recorded / "published").exists()


def test_the_published_scorecard_is_that_of_the_published_runs() -> None:
    folder = project_root() / "reports" / "published"
    scored = score_claims(load_claims(), read_results(folder))
    page = (folder / "SCORECARD.md").read_text(encoding="utf-8")
    assert page == scorecard_markdown(scored), "omni-lab scorecard --published --markdown prints what belongs there"
