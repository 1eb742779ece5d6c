from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest

from omni_lab.config.profiles import PROFILES
from omni_lab.experiments.cli import main
from omni_lab.experiments.jobs import (
    NotebookParameter,
    find_notebook,
    list_notebooks,
    plan_jobs,
    read_grid,
    read_notebook,
)
from omni_lab.experiments.results import read_results

PARAMETERS = """
profile = "smoke"  # which profile
seed = 0  # of everything
output_dir = ""  # where to
rate = 0.5  # a number
names = ["a", "b"]  # a list
fail = False  # raise an error
retrain = False  # ignore checkpoints
cpu_capability = ""  # instructions
"""
BODY = """
from omni_lab.experiments.results import start_run
if fail:
    raise RuntimeError("[/as] was asked")
run = start_run("00_first", profile=profile, seed=seed, output_dir=output_dir, rate=rate)
run.record("first/rate", rate)
"""


def write_notebook(path: Path, *, parameters: str = PARAMETERS, body: str = BODY) -> Path:
    cells = [
        nbformat.v4.new_markdown_cell("# The first notebook"),
        nbformat.v4.new_code_cell(parameters.strip(), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(body.strip()),
    ]
    spec = {"kernelspec": {"name": "omni-lab", "display_name": "omni-lab", "language": "python"}}
    spec["omni_lab"] = {"finding": "It runs."}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), path)
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb")
    return tmp_path


def command(root: Path, *words: str) -> int:
    return main([words[0], "--output", str(root / "reports"), "--profile", "smoke", *words[1:]])


def test_notebooks_may_be_a_link(root: Path) -> None:
    (root / "elsewhere" / "deep").mkdir(parents=True)
    (root / "notebooks").rename(root / "elsewhere" / "deep" / "notebooks")
    (root / "notebooks").symlink_to(root / "elsewhere" / "deep" / "notebooks")
    assert command(root, "run", "00") == 0
    assert [run["metrics"][0]["name"] for run in read_results(root / "reports" / "smoke")] == ["first/rate"]


def run_folder(root: Path, name: str = "seed0") -> Path:
    return root / "reports" / "smoke" / "00_first" / name


def test_the_parameters_cell_is_read(root: Path) -> None:
    notebook = find_notebook("00")
    assert notebook.name == "00_first" and notebook.title == "The first notebook"
    assert list(notebook.parameters) == [
        "profile",
        "seed",
        "output_dir",
        "rate",
        "names",
        "fail",
        "retrain",
        "cpu_capability",
    ]
    assert notebook.parameters["rate"] == NotebookParameter(0.5, "a number")
    assert notebook.parameters["names"].default == ["a", "b"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("x = 1", r"lacks \['profile', 'seed', 'output_dir'\]"),
        (PARAMETERS + "y = 2 * 3", "parameter 'y' must be a plain value"),
        (PARAMETERS + "print(1)", "may hold only NAME = VALUE lines"),
        (PARAMETERS + "y: float | None = None", "may hold only NAME = VALUE lines"),  # invisible to papermill
        (PARAMETERS + "y = 1  # 0 = none", "may hold only NAME = VALUE lines, each with one '='"),
        (PARAMETERS + "y = 'a=b'", "may hold only NAME = VALUE lines, each with one '='"),
    ],
)
def test_a_bad_parameters_cell_is_named(tmp_path: Path, parameters: str, message: str) -> None:
    path = write_notebook(tmp_path / "bad.ipynb", parameters=parameters)
    with pytest.raises(ValueError, match=message):
        read_notebook(path)
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(ValueError, match="not a readable notebook"):
        read_notebook(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "00_frist"], "unknown notebook '00_frist'; the nearest of .* is '00_first'"),
        (["run", "nowhere.ipynb"], "nowhere.ipynb: not a readable notebook .*No such file"),
        (["run", "-p", "rtae=1"], "unknown parameter of 00_first 'rtae'; the nearest of .* is 'rate'"),
        (["run", "-p", "rate=fast"], "parameter 'rate' is 'fast', a str: expected float like 0.5"),
        (["run", "-p", "rate=1e-4"], "write 1.0e-4"),
        (["run", "-p", "seed=1.5"], "parameter 'seed' is 1.5, a float: expected int like 0"),
        (["run", "-p", "seed=true"], "parameter 'seed' is True, a bool"),
        (["run", "-p", "names=[1]"], "parameter 'names' is"),
        (["run", "-p", "rate"], "expected NAME=VALUE: got 'rate'"),
        (["run", "-p", "rate=a: b: c"], "parameter 'rate' is 'a: b: c', a str"),
        (["run", "-p", "output_dir=here"], "give --output instead"),
        (["run", "-p", "cpu_capability=avx"], "unknown cpu_capability of 00_first 'avx'; the nearest of .* is 'avx2'"),
        (["run", "--profile", "quik"], "unknown profile 'quik'; the nearest of .* is 'quick'"),
        (["run", "--jobs", "0"], "Invalid value for '--jobs': 0 is not in the range x>=1"),
        (["run", "--sed", "1"], "No such option '--sed'. Did you mean '--seed'?"),
        (["run", "--grid", "none.yaml"], "none.yaml: not a readable grid file .*No such file"),
        (["run", "00", "--grid", "none.yaml"], "either by name or by --grid, not both"),
    ],
)
def test_requests_that_cannot_run_are_refused_before_anything_runs(
    root: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert command(root, *words) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (root / "reports").exists()


def test_an_output_folder_that_cannot_be_written_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "reports").write_text("a file")
    assert command(root, "run") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebooks: []", "`notebooks` not empty"),
        ("notebooks: [00]\nsweep: {a: [1]}", r"expected `notebooks`, .* got \{'sweep': \{'a': \[1\]\}\}"),
        ("notebooks: [00]\ngrid: {rate: 0.5}", "grid.rate must be a list"),
        ("notebooks: 00_first", "expected `notebooks`, a list, .* got {'notebooks': '00_first'}"),
        ("notebooks: [", "not a readable grid file"),
    ],
)
def test_a_bad_grid_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_grid(tmp_path / "grid.yaml")


def test_a_grid_is_every_combination_each_in_a_folder_of_its_own(root: Path) -> None:
    (root / "grid.yaml").write_text(
        "notebooks: ['00']\nparameters: {profile: smoke}\ngrid: {seed: [1, 2], rate: [1, 0.5]}"
    )
    names, fixed, grid = read_grid(root / "grid.yaml")
    jobs = plan_jobs([find_notebook(n) for n in names], output=root / "reports", parameters=fixed, grid=grid)
    assert [(j.parameters["seed"], j.parameters["rate"]) for j in jobs] == [(1, 1.0), (1, 0.5), (2, 1.0), (2, 0.5)]
    assert [j.folder.name for j in jobs] == ["seed1-rate=1.0", "seed1", "seed2-rate=1.0", "seed2"]
    assert all(j.folder.parent == root / "reports" / "smoke" / "00_first" for j in jobs)


def test_runs_that_would_share_a_folder_are_refused_or_told_apart(root: Path) -> None:
    notebook = find_notebook("00")
    with pytest.raises(ValueError, match="two runs with the same parameters: seed1"):
        plan_jobs([notebook], output=root, parameters={"profile": "smoke"}, grid={"seed": [1, 1]})
    jobs = plan_jobs([notebook], output=root, parameters={"profile": "smoke"}, grid={"names": [["a?"], ["a!"]]})
    assert jobs[0].folder != jobs[1].folder


def test_long_run_names_stay_distinct(root: Path) -> None:
    notebook = find_notebook("00")
    lists = [["x" * 50, "y" * 50, str(i)] for i in range(2)]
    jobs = plan_jobs([notebook], output=root, parameters={"profile": "smoke"}, grid={"names": lists})
    assert len({j.folder for j in jobs}) == 2
    assert all(len(j.folder.name) <= 80 for j in jobs)


@pytest.mark.slow
def test_finished_runs_are_skipped_and_stale_ones_run_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "grid.yaml").write_text("notebooks: ['00']\ngrid: {seed: [0, 1]}")
    words = ("run", "--grid", str(root / "grid.yaml"), "--jobs", "2")
    assert command(root, *words) == 0
    assert {p.name for p in run_folder(root).iterdir()} == {"executed.ipynb", "notebook.html", "metrics.json"}
    assert [r["metrics"][0]["value"] for r in read_results(root / "reports")] == [0.5, 0.5]
    kept = json.loads((run_folder(root) / "executed.ipynb").read_text())["metadata"]["omni_lab"]
    assert kept["finding"] == "It runs." and kept["fingerprint"]
    page = (root / "reports" / "smoke" / "index.html").read_text()
    assert "It runs.</p>" in page and "glossary" not in page, "this project has none"
    assert command(root, "list") == 0
    assert "seed0: finished" in capsys.readouterr().out
    assert command(root, *words) == 0
    assert capsys.readouterr().out.count("finished before, skipped") == 2

    interrupted = run_folder(root, "seed1")  # what an interrupted run leaves behind
    interrupted.rename(interrupted.with_name(".seed1.part"))
    assert command(root, "list") == 0
    assert "seed1: interrupted" in capsys.readouterr().out
    assert command(root, *words) == 0
    out = capsys.readouterr().out
    assert "skipped: 00_first seed0" in out and "finished 00_first seed1" in out

    write_notebook(root / "notebooks" / "00_first.ipynb", body=BODY + "\nrun.record('first/more', 1)")
    assert command(root, "list") == 0
    assert "seed0: out of date" in capsys.readouterr().out
    assert command(root, *words) == 0
    assert "skipped:" not in capsys.readouterr().out
    assert [len(r["metrics"]) for r in read_results(root / "reports")] == [2, 2]


@pytest.mark.slow
def test_a_notebook_that_reads_results_runs_last_and_every_time(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_notebook(root / "notebooks" / "solutions" / "99_all.ipynb", body="print(profile)")
    content = nbformat.read(path, as_version=4)
    content.cells[1].metadata.tags.append("reads-results")
    nbformat.write(content, path)
    assert [n.name for n in list_notebooks()] == ["00_first", "99_all"]
    for expected in (["00_first", "99_all"], ["99_all"]):
        assert command(root, "run", "--jobs", "2") == 0
        assert re.findall(r"finished (\d\d_\w+) seed0 in", capsys.readouterr().out) == expected


SEEN = """
import os
import torch
from pathlib import Path
from omni_lab.experiments.results import start_run
if rate > 1:
    raise RuntimeError("[/as] was asked")
run = start_run("00_first", profile=profile, seed=seed, output_dir=output_dir)
page = (Path(output_dir).parents[1] / "index.html").read_text()
run.record("seen/now", "refresh" in page and "0 of 3 runs finished, 1 running, 1 failed, 1 to come" in page)
run.record("seen/error", "seed0-cpu_capability=default-rate=2.0: RuntimeError: [/as] was asked" in page)
run.record("seen/waits", os.environ["GOMP_SPINCOUNT"] == "1000")
run.record("seen/capability", torch.backends.cpu.get_cpu_capability() == "DEFAULT")
"""


@pytest.mark.slow
def test_the_index_page_grows_and_kernels_get_their_environment(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    write_notebook(root / "notebooks" / "00_first.ipynb", body=SEEN)
    grid = "notebooks: ['00']\ngrid: {rate: [2.0, 0.5, 3.0], cpu_capability: [default]}"
    (root / "grid.yaml").write_text(grid)
    assert command(root, "run", "--grid", str(root / "grid.yaml")) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    index = root / "reports" / "smoke" / "index.html"
    assert first == f"results appear in {index}" and last == f"results: {index}"
    (result,) = read_results(root / "reports")
    assert {m["name"]: m["value"] for m in result["metrics"]} == {
        "seen/now": 1,
        "seen/error": 1,
        "seen/waits": 1,
        "seen/capability": 1,
    }
    page = index.read_text()
    assert "1 of 3 runs finished, 2 failed<br>" in page and "refresh" not in page
    assert 'href="00_first/seed0-cpu_capability=default/notebook.html"' in page
    assert command(root, "list") == 0
    assert "seed0-cpu_capability=default: finished" in " ".join(capsys.readouterr().out.split())


SLEEPS = """
import os, subprocess, time
from pathlib import Path
child = subprocess.Popen(["sleep", "600"])
Path(output_dir, "pids").write_text(f"{os.getpid()} {child.pid} .")
time.sleep(600)
"""


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_ends_kernels_and_their_children(root: Path, sent: signal.Signals) -> None:
    write_notebook(root / "notebooks" / "00_first.ipynb", body=SLEEPS)
    words = ["-m", "omni_lab", "run", "00", "--profile", "smoke", "--output", str(root / "reports")]
    default = partial(signal.signal, sent, signal.SIG_DFL)  # shells have what they start behind `&` ignore interrupts
    runner = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, preexec_fn=default)
    pids = run_folder(root, ".seed0.part") / "pids"
    wait_for(lambda: pids.exists() and pids.read_text().endswith("."), 120)
    processes = [psutil.Process(int(pid)) for pid in pids.read_text().split()[:2]]
    try:
        runner.send_signal(sent)
        said = runner.communicate(timeout=30)[1].strip()
        assert said == "omni-lab: interrupted; the same command continues", "no warnings beside it"
        assert runner.returncode == 130
        wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes), 5)
    finally:
        for process in (runner, *processes):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    page = (root / "reports" / "smoke" / "index.html").read_text()
    assert "0 of 1 runs finished, 1 not run" in page and "refresh" not in page


def test_listing_runs_is_quick() -> None:
    """What takes time to import is not imported."""
    code = (
        "import sys; from omni_lab.experiments.cli import main; assert main(['list']) == 0;"
        "sys.exit(str({'torch', 'lightning', 'papermill', 'nbformat', 'numpy'} & {*sys.modules} or ''))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not ended.stderr.strip() and "04_training" in ended.stdout


@pytest.mark.slow
def test_a_failing_notebook_is_kept_and_the_rest_goes_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(root, "run") == 0
    good = (run_folder(root) / "metrics.json").read_text()
    write_notebook(root / "notebooks" / "00_first.ipynb", body=BODY.replace("if fail:", "if True:"))
    write_notebook(root / "notebooks" / "01_other.ipynb", body="import os\nos._exit(3)")
    killed = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    write_notebook(root / "notebooks" / "02_killed.ipynb", body=killed)
    assert command(root, "run") == 1
    out = capsys.readouterr().out
    assert "failed 00_first seed0" in out and "RuntimeError: [/as] was asked" in out
    assert "failed 02_killed seed0" in out and "its process was killed" in out
    kept = nbformat.read(run_folder(root) / "failed.ipynb", as_version=4)
    assert "error" in kept.cells[0].source.lower()
    assert any(o.get("evalue") == "[/as] was asked" for c in kept.cells for o in c.get("outputs", []))
    assert (run_folder(root) / "metrics.json").read_text() == good, "earlier results are not lost"

    dead = root / "reports" / "smoke" / "01_other" / "seed0" / "failed.ipynb"
    assert "This run failed" in nbformat.read(dead, as_version=4).cells[0].source
    assert command(root, "list") == 0
    listing = capsys.readouterr().out
    assert "seed0: failed" in listing and "The first notebook" in listing and "a number" in listing
    assert command(root, "report") == 0
    assert "first/rate" in capsys.readouterr().out


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["run", "--help"], ["list", "--help"], ["report", "--help"]):
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert "--profile" in shown and all(name in shown for name in PROFILES)


def test_a_report_of_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(root, "report") == 0
    assert "nothing recorded yet" in capsys.readouterr().out
