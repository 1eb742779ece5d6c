"""The Papermill runner: notebooks as experiments, each in its own process, checked before anything runs.

A run's results appear under `<output>/<profile>/<notebook>/<run>/` when it has finished, all at once: they are made in
a hidden folder beside it first. A finished run is skipped as long as notebook, library and parameters are the same; an
interrupted one is run again, and its training continues from its last checkpoint.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tempfile
import time
import tokenize
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from omni_lab.config.profiles import get_profile
from omni_lab.experiments.results import write_results
from omni_lab.utils.env import project_root
from omni_lab.utils.lookup import closest_match
from omni_lab.utils.progress import STATUS_ENV_VAR

RESERVED = ("profile", "seed", "output_dir")


class UsageError(ValueError):
    """A request that cannot be run as it stands: nothing has been executed."""


@dataclass(frozen=True)
class NotebookParameter:
    """One line of a notebook's parameters cell."""

    name: str
    default: Any
    help: str

    def check(self, value: Any, *, where: str) -> Any:
        """`value`, or its int as float where a float is wanted. Raises UsageError if it is of another type."""
        wanted = type(self.default)
        if wanted is float and type(value) is int:
            return float(value)
        hint = ""
        if wanted is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE):
            hint = f" (YAML reads {value} as text: write {value.lower().replace('e', '.0e')})"
        elements = {type(v) for v in self.default} if wanted is list else set()
        if type(value) is not wanted or (elements and {type(v) for v in value} - elements):
            raise UsageError(
                f"{where}: parameter {self.name!r} is {value!r}, a {type(value).__name__}: "
                f"expected {wanted.__name__} like {self.default!r}{hint}"
            )
        return value


@dataclass(frozen=True)
class Notebook:
    path: Path
    title: str
    parameters: dict[str, NotebookParameter]
    source: str
    gathers: bool = False  # reads what other runs recorded: runs after them, and every time

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Job:
    """One run to do: a notebook, all its parameters, and where the results go."""

    notebook: Path
    name: str
    parameters: dict[str, Any]
    folder: Path
    fingerprint: str
    reads_results: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} {self.folder.name}"

    @property
    def finished(self) -> bool:
        """Whether the folder holds the results of exactly this notebook, library and parameters. What gathers results
        of other runs is never finished."""
        if self.reads_results:
            return False
        try:
            executed = json.loads((self.folder / "executed.ipynb").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return False
        return executed["metadata"].get("omni_lab", {}).get("fingerprint") == self.fingerprint


@dataclass(frozen=True)
class JobResult:
    """error: the first line of what went wrong, None where nothing did."""

    job: Job
    seconds: float
    error: str | None


def read_notebook(path: Path) -> Notebook:
    """The notebook's title and parameters. Raises UsageError if it is no notebook or has no cell tagged parameters."""
    try:
        content = nbformat.read(path, as_version=4)
    except Exception as error:
        raise UsageError(f"{path}: not a readable notebook ({error})") from error
    tagged = [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise UsageError(f"{path}: expected one cell tagged 'parameters', found {len(tagged)}")
    first = content.cells[0].source.splitlines()[0].lstrip("# ") if content.cells else path.stem
    source = "\n".join(c.source for c in content.cells)
    gathers = "reads-results" in tagged[0].metadata.tags
    return Notebook(path, first, _parse_parameters(tagged[0].source, path), source, gathers)


def _parse_parameters(code: str, path: Path) -> dict[str, NotebookParameter]:
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type == tokenize.COMMENT
    }
    parameters = {}
    for statement in ast.parse(code).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            raise UsageError(f"{path}: the parameters cell may hold only NAME = VALUE lines: line {statement.lineno}")
        try:
            default = ast.literal_eval(value)
        except ValueError as error:
            raise UsageError(f"{path}: parameter {target.id!r} must be a plain value, not an expression") from error
        parameters[target.id] = NotebookParameter(target.id, default, comments.get(statement.lineno, ""))
    missing = [name for name in RESERVED if name not in parameters]
    if missing:
        raise UsageError(f"{path}: the parameters cell lacks {missing}")
    return parameters


def list_notebooks() -> list[Notebook]:
    """The numbered series, in order of numbers, whichever folder they stand in."""
    found = (project_root() / "notebooks").rglob("[0-9][0-9]_*.ipynb")
    paths = [path for path in found if ".ipynb_checkpoints" not in path.parts]
    return [read_notebook(path) for path in sorted(paths, key=lambda path: path.name)]


def find_notebook(name: str) -> Notebook:
    """By file, full name ("04_training") or number ("04"). Raises UsageError naming the nearest one."""
    if name.endswith(".ipynb"):
        if not Path(name).exists():
            raise UsageError(f"{name}: no such notebook")
        return read_notebook(Path(name))
    notebooks = list_notebooks()
    for notebook in notebooks:
        if name in (notebook.name, notebook.name.split("_")[0]):
            return notebook
    known = [notebook.name for notebook in notebooks]
    raise UsageError(f"unknown notebook {name!r}; the nearest is {closest_match(name, known)!r}")


def read_grid(path: Path) -> tuple[list[str], dict[str, Any], dict[str, list[Any]]]:
    """A YAML grid: `notebooks` (a list), `parameters` (the same in every run), `grid` (a list of values per parameter,
    every combination is run)."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such grid file") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML ({error})") from error
    allowed = {"notebooks": list, "parameters": dict, "grid": dict}
    if not isinstance(content, dict) or not content.keys() <= allowed.keys() or not content.get("notebooks"):
        raise UsageError(f"{path}: expected the keys {list(allowed)}, `notebooks` not empty: got {content!r}")
    for key, kind in allowed.items():
        if key in content and not isinstance(content[key], kind):
            raise UsageError(f"{path}: {key} must be a {kind.__name__}: got {content[key]!r}")
    grid = content.get("grid", {})
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: grid.{name} must be a list of values to try: got {values!r}")
    return [str(n) for n in content["notebooks"]], content.get("parameters", {}), grid


def plan_jobs(
    notebooks: Sequence[Notebook],
    *,
    output: Path,
    parameters: dict[str, Any],
    grid: dict[str, list[Any]] | None = None,
) -> list[Job]:
    """Every run to do, all parameters checked.

    Raises UsageError for an unknown notebook parameter or profile, naming the nearest known one, and for a wrong type.
    """
    library = _library_digest()
    jobs: list[Job] = []
    for notebook in notebooks:
        for values in itertools.product(*(grid or {}).values()):
            wanted = parameters | dict(zip(grid or {}, values, strict=True))
            settings = {name: p.default for name, p in notebook.parameters.items()}
            for name, value in wanted.items():
                if name not in notebook.parameters:
                    close = closest_match(name, notebook.parameters)
                    raise UsageError(f"{notebook.name}: unknown parameter {name!r}; the nearest is {close!r}")
                if name == "output_dir":
                    raise UsageError(f"{notebook.name}: output_dir is set for each run: give --output instead")
                settings[name] = notebook.parameters[name].check(value, where=notebook.name)
            try:
                get_profile(settings["profile"])
            except ValueError as error:
                raise UsageError(f"{notebook.name}: {error}") from error
            folder = output / settings["profile"] / notebook.name / _run_name(notebook, settings)
            fingerprint = _fingerprint(notebook, settings, library)
            job = Job(notebook.path, notebook.name, settings, folder.resolve(), fingerprint, notebook.gathers)
            if any(other.folder == job.folder for other in jobs):
                raise UsageError(f"{notebook.name}: two runs with the same parameters: {job.folder.name}")
            jobs.append(job)
    return jobs


def _fingerprint(notebook: Notebook, settings: dict[str, Any], library: str) -> str:
    what_counts = {name: value for name, value in settings.items() if name not in ("output_dir", "retrain")}
    return hashlib.sha256(json.dumps([notebook.source, what_counts, library]).encode()).hexdigest()


def _run_name(notebook: Notebook, settings: dict[str, Any]) -> str:
    changed = {
        k: v for k, v in settings.items() if k not in (*RESERVED, "retrain") and v != notebook.parameters[k].default
    }
    full = "-".join([f"seed{settings['seed']}", *(f"{k}={v}" for k, v in sorted(changed.items()))])
    name = re.sub(r"[^\w=.,-]", "_", full)
    return name if name == full and len(name) <= 80 else f"{name[:71]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _library_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def execute(job: Job, status: Path, threads: int | None) -> JobResult:
    """Runs one notebook. On success the run's folder is replaced; on failure earlier results stay and the partly
    executed notebook, its error at the top, is kept as failed.ipynb."""
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    from omni_lab.experiments.pages import notebook_page

    class CellCounter(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
            complete = nb_man.cell_complete
            total = len(nb_man.nb.cells)

            def cell_complete(cell: Any, cell_index: int | None = None, **options: Any) -> None:
                complete(cell, cell_index, **options)
                _status_file(status, "cells").write_text(f"{(cell_index or 0) + 1} {total}", encoding="utf-8")
                _status_file(status, "line").unlink(missing_ok=True)

            nb_man.cell_complete = cell_complete
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

    papermill_engines.register("cell-counter", CellCounter)
    os.environ[STATUS_ENV_VAR] = str(_status_file(status, "line"))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without cached byte code every kernel starts half a minute later
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    start = time.monotonic()
    log = status.with_suffix(".log").open("w")
    os.dup2(log.fileno(), 2)  # what the kernel says of itself: shown only if it fails
    part = job.folder.with_name(f".{job.folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    executed = part / "executed.ipynb"
    try:
        run = partial(
            papermill.execute_notebook,
            str(job.notebook),
            str(executed),
            parameters=job.parameters | {"output_dir": os.path.relpath(part, job.notebook.parent)},
            kernel_name="python3",  # the kernel of this very interpreter
            engine_name="cell-counter",
            progress_bar=False,
            cwd=str(job.notebook.parent),
        )
        try:
            run()
        except RuntimeError as error:  # of several kernels that start at once two may choose the same port
            if "died before replying" not in str(error):
                raise
            run()
        (part / "notebook.html").write_text(notebook_page(executed), encoding="utf-8")
        _stamp(executed, job.fingerprint)
        _time(part / "metrics.json", time.monotonic() - start)
    except Exception as error:
        message = _first_line(error)
        job.folder.mkdir(parents=True, exist_ok=True)
        if executed.exists():
            _mark_error(executed, message)
            executed.replace(job.folder / "failed.ipynb")
        shutil.copyfile(log.name, job.folder / "failed.log")
        shutil.rmtree(part, ignore_errors=True)
        return JobResult(job, time.monotonic() - start, message)
    shutil.rmtree(job.folder, ignore_errors=True)
    part.rename(job.folder)
    return JobResult(job, time.monotonic() - start, None)


def _stamp(executed: Path, fingerprint: str) -> None:
    content = nbformat.read(executed, as_version=4)
    content.metadata["omni_lab"] = {"fingerprint": fingerprint}
    content.metadata["papermill"] |= {"input_path": "", "output_path": ""}  # of this machine: nobody else's concern
    nbformat.write(content, executed)


def _time(metrics: Path, seconds: float) -> None:
    """The notebook only knows how long it has been running since its first cell: here the imports count too."""
    if metrics.exists():
        content = json.loads(metrics.read_text(encoding="utf-8"))
        write_results(metrics, content | {"seconds": round(seconds, 1)})


def _mark_error(executed: Path, message: str) -> None:
    """Papermill marks an error that a cell raised; a kernel that died, say, it does not."""
    content = nbformat.read(executed, as_version=4)
    if not any("papermill-error" in str(c.metadata.get("tags", [])) for c in content.cells):
        content.cells.insert(0, nbformat.v4.new_markdown_cell(f"**This run failed:** {message}"))
        nbformat.write(content, executed)


def _first_line(error: Exception) -> str:
    name, value = getattr(error, "ename", None), getattr(error, "evalue", None)
    text = f"{name}: {value}" if name else f"{type(error).__name__}: {error}"
    return text.strip().splitlines()[0]


def _status_file(status: Path, kind: str) -> Path:
    return status.with_suffix(f".{kind}")


def run_jobs(jobs: Sequence[Job], *, workers: int = 1, force: bool = False) -> list[JobResult]:
    """Runs what is not finished, at most `workers` at a time, each in a process of its own, and shows progress."""
    console = Console(width=None if Console().is_terminal else 110)
    todo = [job for job in jobs if force or job.parameters.get("retrain") or not job.finished]
    todo.sort(key=lambda job: job.reads_results)
    for job in jobs:
        if job not in todo:
            console.print(f"[dim]finished before, skipped: {job.label}")
    for job in todo:
        _check_writable(job.folder)
    outcomes: list[JobResult] = []
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory() as scratch,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        whole = progress.add_task("[bold]series", total=len(todo), line=f"0 of {len(todo)} notebooks")
        running: dict[Future[JobResult], tuple[Job, TaskID, Path]] = {}
        waiting = deque(todo)
        while waiting or running:
            while waiting and len(running) < workers and not (waiting[0].reads_results and running):
                _submit(waiting.popleft(), Path(scratch), threads, progress, running)
            time.sleep(0.2)
            for future, (job, task, status) in list(running.items()):
                _show(progress, task, status)
                if not future.done():
                    continue
                progress.remove_task(task)
                del running[future]
                outcomes.append(_outcome(future, job))
                progress.update(whole, advance=1, line=f"{len(outcomes)} of {len(todo)} notebooks")
                _report(console, outcomes[-1])
    return outcomes


def _submit(
    job: Job,
    scratch: Path,
    threads: int | None,
    progress: Progress,
    running: dict[Future[JobResult], tuple[Job, TaskID, Path]],
) -> None:
    status = scratch / hashlib.sha256(str(job.folder).encode()).hexdigest()[:16]
    task = progress.add_task(job.label, total=None, line="starting")
    # a pool for one: a process that dies, killed for memory say, then takes no other run along
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    running[pool.submit(execute, job, status, threads)] = (job, task, status)
    pool.shutdown(wait=False)


def _outcome(future: Future[JobResult], job: Job) -> JobResult:
    try:
        return future.result()
    except BrokenProcessPool:
        return JobResult(job, 0.0, "its process was killed, perhaps for lack of memory")


def _show(progress: Progress, task: TaskID, status: Path) -> None:
    try:
        done, total = _status_file(status, "cells").read_text(encoding="utf-8").split()
    except (FileNotFoundError, ValueError):
        return
    line = f"cell {done} of {total}"
    with contextlib.suppress(FileNotFoundError):
        line += f": {_status_file(status, 'line').read_text(encoding='utf-8')}"
    progress.update(task, completed=int(done), total=int(total), line=line)


def _report(console: Console, outcome: JobResult) -> None:
    minutes, seconds = divmod(round(outcome.seconds), 60)
    if outcome.error is None:
        console.print(f"[green]finished[/] {outcome.job.label} in {minutes}:{seconds:02d}")
    else:
        reason = escape(outcome.error)
        console.print(f"[red]failed[/] {outcome.job.label} after {minutes}:{seconds:02d}: {reason}")
        console.print(f"  see {outcome.job.folder / 'failed.ipynb'}", soft_wrap=True)


def _check_writable(folder: Path) -> None:
    probe = folder.parent
    try:
        probe.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=probe):
            pass
    except OSError as error:
        raise UsageError(f"the output folder {str(probe)!r} cannot be written ({error.strerror})") from error


def run_states(output: Path, profile: str, notebook: Notebook) -> Iterator[str]:
    """A word or two for each run of a notebook that has left something behind."""
    library = _library_digest()
    for folder in sorted((output / profile / notebook.name).glob("*")):
        if (folder / "executed.ipynb").exists():
            metadata = nbformat.read(folder / "executed.ipynb", as_version=4).metadata
            current = _fingerprint(notebook, metadata["papermill"]["parameters"], library)
            same = metadata.get("omni_lab", {}).get("fingerprint") == current
            yield f"{folder.name}: {'finished' if same else 'out of date'}"
        if (folder / "failed.ipynb").exists():
            yield f"{folder.name}: failed"
        if folder.name.startswith(".") and folder.name.endswith(".part"):
            yield f"{folder.name[1:-5]}: interrupted"
