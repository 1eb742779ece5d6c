"""Runs notebooks by papermill: each in a process of its own, several at a time, with progress in the terminal."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from omni_lab.experiments.jobs import CPU_CAPABILITIES, Job
from omni_lab.experiments.results import format_duration, write_results
from omni_lab.utils.env import limit_spinning
from omni_lab.utils.progress import read_progress


@dataclass(frozen=True)
class JobResult:
    """How a run ended. error: its first line, None for success."""

    job: Job
    seconds: float
    error: str | None


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    force: bool = False,
    on_change: Callable[[Sequence[JobResult], Sequence[Job], int], Any] = lambda ended, running, waiting: None,
) -> list[JobResult]:
    """Runs the unfinished jobs, with `force` all, `workers` at a time. Those that read results come last, one by one.

    on_change: called when a job starts or ends, and once more when the series does, with the results so far, the
        running jobs, and how many are waiting.
    Raises ValueError if an output folder cannot be written. An interrupt ends the kernels, too.
    """
    console = Console(width=None if Console().is_terminal else 110)
    todo = [job for job in jobs if force or job.parameters.get("retrain") or not job.finished]
    for job in jobs:
        if job not in todo:
            console.print(f"[dim]finished before, skipped: {job.label}")
            continue
        try:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=job.folder.parent).close()
        except OSError as error:
            raise ValueError(f"the output folder {str(job.folder.parent)!r} cannot be written ({error})") from error
    before, results = set(active_children()), list[JobResult]()
    try:
        _run_all(todo, results, workers, console, on_change)
    except BaseException:  # kernels have a session of their own: they would run on, as would what they have started
        for worker in set(active_children()) - before:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(worker.pid).children(recursive=True):
                    process.kill()
            worker.kill()
        raise
    finally:
        on_change(results, [], len(todo) - len(results))
    return results


def _run_all(
    todo: Sequence[Job], results: list[JobResult], workers: int, console: Console, on_change: Callable[..., Any]
) -> None:
    """Runs the jobs and appends how each ended to `results`."""
    waiting = deque(sorted(todo, key=lambda job: job.notebook.reads_results))
    running: dict[Future[JobResult], tuple[Job, TaskID]] = {}
    shown: list[Job] = []
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        series = progress.add_task("[bold]series", total=len(todo), line=f"0 of {len(todo)} notebooks")
        while waiting or running:
            while waiting and len(running) < workers and not (waiting[0].notebook.reads_results and running):
                job = waiting.popleft()
                # one pool per run: a process that dies, killed for lack of memory say, takes no other run along
                pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                task = progress.add_task(job.label, total=None, line="starting")
                running[pool.submit(execute, job, threads)] = (job, task)
                pool.shutdown(wait=False)
            now = [job for job, _ in running.values()]
            if now != shown:
                on_change(results, now, len(waiting))
                shown = now
            ended, _ = wait(running, timeout=2, return_when=FIRST_COMPLETED)
            for future in ended:
                job, task = running.pop(future)
                progress.remove_task(task)
                killed = JobResult(job, 0.0, "its process was killed, perhaps for lack of memory")
                results.append(killed if isinstance(future.exception(), BrokenProcessPool) else future.result())
                progress.update(series, advance=1, line=f"{len(results)} of {len(todo)} notebooks")
                _print_result(console, results[-1])
            if console.is_terminal:  # reading the notebooks would only disturb the times that they measure
                for job, task in running.values():
                    progress.update(task, **read_progress(job.part_folder / "executed.ipynb"))


def _print_result(console: Console, result: JobResult) -> None:
    duration = format_duration(result.seconds)
    if result.error is None:
        console.print(f"[green]finished[/] {result.job.label} in {duration}")
    else:
        console.print(f"[red]failed[/] {result.job.label} after {duration}: {escape(result.error)}")
        console.print(f"  see {result.job.folder / 'failed.ipynb'}", soft_wrap=True)


def execute(job: Job, threads: int | None) -> JobResult:
    """Runs one notebook. Success replaces the run's folder. Failure keeps earlier results, and the partly executed
    notebook as failed.ipynb with the error at its top."""
    import nbformat

    from omni_lab.experiments.pages import notebook_page

    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without cached byte code every kernel starts half a minute later
    limit_spinning()
    os.environ.update(CPU_CAPABILITIES[job.parameters.get("cpu_capability", "")])
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    start, message = time.monotonic(), None
    part = job.part_folder
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    executed, metrics, log = (part / name for name in ("executed.ipynb", "metrics.json", "failed.log"))
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 2)  # the kernel's own messages, of interest only if it fails
    try:
        _execute_notebook(job, executed)
        (part / "notebook.html").write_text(notebook_page(executed, job.notebook.name), encoding="utf-8")
        if metrics.exists():  # the notebook measures from its first cell: here the start of the kernel counts too
            recorded = json.loads(metrics.read_text(encoding="utf-8"))
            write_results(metrics, recorded | {"seconds": round(time.monotonic() - start, 1)})
    except Exception as error:
        # the text of an error in a cell is its whole traceback, so its name and value are taken instead
        name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
        message = f"{name}: {value}".strip().splitlines()[0]
        job.folder.mkdir(parents=True, exist_ok=True)
        if executed.exists():
            content = nbformat.read(executed, as_version=4)
            content.cells.insert(0, nbformat.v4.new_markdown_cell(f"**This run failed:** {message}"))
            nbformat.write(content, job.folder / "failed.ipynb")
        log.replace(job.folder / "failed.log")
        shutil.rmtree(part)
    else:
        log.unlink()
        shutil.rmtree(job.folder, ignore_errors=True)
        part.rename(job.folder)
    return JobResult(job, time.monotonic() - start, message)


def _execute_notebook(job: Job, executed: Path) -> None:
    """Runs papermill with this interpreter's kernel, and notes the fingerprint in the executed notebook."""
    import nbformat
    import papermill

    folder = job.notebook.path.parent.resolve()  # the kernel works there, even if notebooks/ is a link
    run = partial(
        papermill.execute_notebook,
        job.notebook.path,
        executed,
        parameters=job.parameters | {"output_dir": os.path.relpath(executed.parent.resolve(), folder)},
        kernel_name="python3",
        progress_bar=False,
        autosave_cell_every=10,  # seconds: a long cell's progress is read from the notebook
        cwd=folder,
    )
    try:
        content = run()
    except RuntimeError as error:  # of several kernels that start at once two may choose the same port
        if "died before replying" not in str(error):
            raise
        content = run()
    content.metadata["omni_lab"] = {**content.metadata.get("omni_lab", {}), "fingerprint": job.fingerprint}
    content.metadata["papermill"] |= {"input_path": "", "output_path": ""}  # folders of this machine
    nbformat.write(content, executed)
