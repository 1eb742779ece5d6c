from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from omni_lab.results import Run, print_results, read_results, start_run, write_index


def new_run(folder: Path, **changes: Any) -> Run:
    return Run(**{"notebook": "nn", "profile": "smoke", "seed": 3, "folder": folder, "parameters": {"a": 1}} | changes)


def test_every_record_is_on_disk_at_once(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.record("room/what", 0.5, interval=(0.4, 0.6), unit="x")
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["schema"] == 1
    assert {"notebook", "profile", "parameters", "seed", "device", "versions", "started", "seconds"} < content.keys()
    assert content["metrics"] == [
        {
            "name": "room/what",
            "value": 0.5,
            "interval": [0.4, 0.6],
            "unit": "x",
            "higher_is_better": True,
            "control": False,
        }
    ]
    run.record("room/what", 0.7)
    run.record("room/other", 1, control=True, higher_is_better=False)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert [(m["name"], m["value"]) for m in metrics] == [("room/what", 0.7), ("room/other", 1.0)]
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize(
    ("name", "value", "interval", "message"),
    [
        ("nowhere", 1.0, None, "must look like room/what"),
        ("Room/what", 1.0, None, "must look like room/what"),
        ("room/what", float("nan"), None, "must be finite: got nan"),
        ("room/what", 1.0, (2.0, 1.0), r"must be \(low, high\)"),
        ("room/what", 1.0, (1.0,), r"must be \(low, high\)"),
    ],
)
def test_a_result_that_makes_no_sense_is_refused(
    tmp_path: Path, name: str, value: float, interval: tuple[float, ...] | None, message: str
) -> None:
    run = new_run(tmp_path)
    with pytest.raises(ValueError, match=message):
        run.record(name, value, interval=interval)
    assert run.metrics == []


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir '.*file/run' cannot be written"):
        new_run(tmp_path / "file" / "run")


def test_in_jupyterlab_results_go_to_the_interactive_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    run = start_run("nn", profile="smoke", seed=0, rate=0.1)
    assert run.folder == tmp_path / "reports" / "interactive" / "nn"
    assert read_results(run.folder)[0]["parameters"] == {"profile": "smoke", "seed": 0, "rate": 0.1}
    assert "nn, profile smoke, seed 0" in capsys.readouterr().out


def test_results_are_found_filtered_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, profile in (("one", "smoke"), ("two", "quick"), (".three.part", "quick")):
        run = new_run(tmp_path / name, profile=profile, notebook=name)
        run.record("room/what", 0.25, interval=(0.2, 0.3), control=name == "two")
    assert [r["notebook"] for r in read_results(tmp_path)] == ["one", "two"], "unfinished runs do not count"
    assert [r["notebook"] for r in read_results(tmp_path, profile="quick")] == ["two"]
    assert read_results(tmp_path, notebook="three") == []
    print_results(read_results(tmp_path), title="the title")
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("the title", "room/what", "0.25", "0.2 to 0.3", "control"))
    print_results([], title="nothing")
    assert "nothing recorded yet" in capsys.readouterr().out


def test_a_broken_metrics_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json: not a metrics file"):
        read_results(tmp_path)
    (tmp_path / "metrics.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 99: expected 1"):
        read_results(tmp_path)


def test_the_index_page_links_what_is_there(tmp_path: Path) -> None:
    run = new_run(tmp_path / "nn" / "seed3")
    run.record("room/what", 0.5)
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    assert run.save_figure(figure, "curve") is figure
    plt.close(figure)
    (run.folder / "notebook.html").write_text("<html></html>")
    page = write_index(tmp_path, read_results(tmp_path), title="a <title>").read_text()
    assert 'src="nn/seed3/figures/curve.png"' in page and 'href="nn/seed3/notebook.html"' in page
    assert "a &lt;title&gt;" in page and "room/what" in page
