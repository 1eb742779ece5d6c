from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from omni_lab.experiments.provenance import KEYS
from omni_lab.experiments.results import RunRecorder, find_published, read_results, start_run, write_results


def new_run(folder: Path, **changes: Any) -> RunRecorder:
    return start_run(**{"notebook": "nn", "profile": "smoke", "seed": 3, "output_dir": str(folder), "a": 1} | changes)


def test_every_record_is_on_disk_at_once(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.record("room/what", 0.5, interval=(0.4, 0.6), unit="x")
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["schema"] == 2
    assert content.keys() > {*KEYS} and content["command"] == "omni-lab run nn --profile smoke -p seed=3 -p a=1"
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
        ("room/what", float("nan"), None, "must be finite: got nan and None"),
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


def test_results_are_found_and_filtered(tmp_path: Path) -> None:
    for name, profile in (("one", "smoke"), ("two", "quick"), (".three.part", "quick")):
        run = new_run(tmp_path / name, profile=profile, notebook=name)
        run.record("room/what", 0.25, interval=(0.2, 0.3), control=name == "two")
    assert [r["notebook"] for r in read_results(tmp_path)] == ["one", "two"], "unfinished runs do not count"
    assert [r["notebook"] for r in read_results(tmp_path, profile="quick")] == ["two"]
    assert read_results(tmp_path, notebook="three") == []


WHOLE = (
    b'{"schema": 1, "notebook": "n", "profile": "smoke", "parameters": {}, "seed": 0, "device": "cpu", "started": "", '
    b'"seconds": 1, "metrics": %s}'
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "metrics.json: not a metrics file"),
        (b"\xff\xfe\x00", "metrics.json: not a metrics file"),
        (b'{"schema": 99}', "schema 99: expected 1 or 2"),
        (WHOLE % b"null", "metrics must be a list: got None"),
        (WHOLE % b'[{"name": "room/what", "value": 1}]', "metric 0: expected .*'interval'"),
        (WHOLE % b"[3]", "metric 0: expected .* got 3"),
        (b'{"schema": 1, "profile": "quick"}', "not a metrics file \\('notebook' is missing\\)"),
    ],
)
def test_a_broken_metrics_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    new_run(tmp_path / "whole").record("room/what", 0.5)
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)
    messages: list[str] = []
    assert [r["folder"].name for r in read_results(tmp_path, broken=messages.append)] == ["whole"], "the rest stands"
    assert len(messages) == 1 and re.search(message, messages[0])


def test_a_file_from_before_commits_were_recorded_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_bytes(WHOLE % b"[]")
    assert {read_results(tmp_path)[0][key] for key in KEYS} == {None}


def test_how_many_cases_stand_behind_a_value(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.record("room/what", 0.5, n=400)
    assert run.metrics[0]["n"] == 400
    with pytest.raises(ValueError, match="room/what: n must be at least 1: got 0"):
        run.record("room/what", 0.5, n=0)


def publish(root: Path, folder: str, **changes: Any) -> None:
    run = new_run(root / "reports/published/standard/nn" / folder, **{"profile": "standard"} | changes)
    run.record("room/what", 0.958, n=24_033)
    run.record("room/bare", 0.25)


def test_a_value_stands_beside_the_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    run = new_run(tmp_path / "run", profile="quick")
    run.record("room/what", 0.95, interval=(0.93, 0.97), n=400)
    run.record("room/bare", 0.5)
    assert run.compare("room/what") == "here, 400 questions: 0.950 (0.930 to 0.970)", "nothing published yet"
    publish(tmp_path, "seed3")
    expected = "here, 400 images: 0.950 (0.930 to 0.970); published, 24,033: 0.958"
    assert run.compare("room/what", unit="images") == expected
    assert run.compare("room/bare") == "here: 0.500; published: 0.250"
    same = new_run(tmp_path / "standard", profile="standard")
    same.record("room/what", 0.95)
    assert same.compare("room/what") == "here: 0.950; published, 24,033: 0.958"
    smoke = new_run(tmp_path / "smoke")
    smoke.record("room/what", 0.95)
    assert smoke.compare("room/what") == "here: 0.950", "smoke trains its own models"
    with pytest.raises(ValueError, match="unknown recorded metric 'room/none'"):
        run.compare("room/none")


def test_only_a_published_run_with_the_same_parameters_is_compared(tmp_path: Path) -> None:
    for folder, changes in {"seed3": {}, "seed4": {"seed": 4}, "seed3-a=2": {"a": 2}}.items():
        publish(tmp_path, folder, **changes)
        file = tmp_path / "reports/published/standard/nn" / folder / "metrics.json"
        content = json.loads(file.read_text())
        write_results(file, content | {"metrics": [m | {"value": 10 * content["seed"]} for m in content["metrics"]]})
    published = read_results(tmp_path)

    def value(**changes: Any) -> float | None:
        own = {"profile": "quick", "seed": 3, "a": 1} | changes
        found = find_published({"notebook": "nn", "parameters": own}, published).get("room/what")
        return found and found["value"]

    assert (value(), value(seed=4), value(seed=0), value(a=3)) == (30, 40, None, None)
    assert value(a=0) == 30, "0 stands for the profile's own count"
    assert value(a=False) is None and value(later=1) == 30, "a parameter that is newer than the published run"
    assert find_published({"notebook": "other", "parameters": {"seed": 3}}, published) == {}


def test_of_several_published_runs_that_with_the_same_metrics_is_compared() -> None:
    def recorded(name: str, started: str) -> dict[str, Any]:
        return {
            "notebook": "nn",
            "parameters": {"seed": 0},
            "started": started,
            "metrics": [{"name": name, "value": 1}],
        }

    published = [recorded("digits/cost", "2026-01-01"), recorded("adverse/cost", "2026-02-01")]
    assert [*find_published(recorded("digits/cost", "2026-03-01"), published)] == ["digits/cost"]
    assert [*find_published(recorded("other", "2026-03-01"), published)] == ["adverse/cost"], "else the latest"
