"""What was recorded, for readers: tables in the terminal, the scorecard, and the index page of a profile."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from omni_lab.experiments.claims import ScoredClaim, Verdict
from omni_lab.experiments.jobs import Job
from omni_lab.experiments.pages import render_template
from omni_lab.experiments.results import format_duration
from omni_lab.experiments.runner import JobResult

VERDICT_MARKS = {Verdict.HELD: "✓", Verdict.NOT_HELD: "✗", Verdict.NOT_MEASURED: "–"}
VERDICT_COLORS = {Verdict.HELD: "green", Verdict.NOT_HELD: "red", Verdict.NOT_MEASURED: "dim"}


def format_value(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.4g} {metric['unit']}".rstrip()


def format_interval(metric: Mapping[str, Any]) -> str:
    return "" if metric["interval"] is None else "{:.4g} to {:.4g}".format(*metric["interval"])


def _describe(name: str, metric: Mapping[str, Any] | None) -> str:
    interval = f" ({format_interval(metric)})" if metric and metric["interval"] else ""
    return f"{name.partition('/')[2]}: {format_value(metric) if metric else 'not recorded'}{interval}"


def scorecard_rows(scored: Sequence[ScoredClaim]) -> list[dict[str, Any]]:
    """One dict per claim: its own fields, the run in words, the verdict, and lists of texts: ours and controls."""
    rows = []
    for one in scored:
        ours = [f"{_describe(m.name, m.metric)}; bar {m.threshold}" for m in one.measured]
        controls = [_describe(m["name"], m) for m in one.controls]
        run = "no run yet"
        if one.result is not None:
            words = [one.result[key] for key in ("notebook", "profile", "device")]
            words.insert(1, one.result["folder"].name)
            run = ", ".join([*words, "published" if "published" in one.result["folder"].parts else "this machine"])
        rows.append(vars(one.claim) | {"ours": ours, "controls": controls, "run": run, "verdict": one.verdict})
    return rows


def tally(scored: Sequence[ScoredClaim]) -> str:
    """How many claims held, did not hold and are not measured yet, in words."""
    verdicts = [one.verdict for one in scored]
    return f"{len(verdicts)} claims: " + ", ".join(f"{verdicts.count(v)} {v}" for v in Verdict)


def print_scorecard(scored: Sequence[ScoredClaim]) -> None:
    """Prints the scorecard as a table."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("claim", "ours, with 95 % interval", "controls", "", title="scorecard", show_lines=True)
    for row in scorecard_rows(scored):
        reported = f"\n[dim]as described: {row['reported']}[/]" if row["reported"] else ""
        verdict = f"[{VERDICT_COLORS[row['verdict']]}]{VERDICT_MARKS[row['verdict']]} {row['verdict']}[/]"
        ours = "\n".join([*row["ours"], f"[dim]{row['run']}[/]"])
        table.add_row(f"{row['area']}: {row['claim']}{reported}", ours, "\n".join(row["controls"]), verdict)
    console.print(table)
    console.print(tally(scored))


def scorecard_markdown(scored: Sequence[ScoredClaim]) -> str:
    """The scorecard as a Markdown table."""
    rows = scorecard_rows(scored)
    return render_template("scorecard.md.j2", rows=rows, tally=tally(scored), marks=VERDICT_MARKS)


def print_results(results: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Prints all recorded metrics as a table."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    if not results:
        console.print("nothing recorded yet")
        return
    table = Table("metric", "value", "95 % interval", "", title=title)
    for result in results:
        duration = f"[dim]{format_duration(result['seconds'])} min"
        table.add_row(f"[bold]{result['notebook']}", f"[dim]{result['folder'].name}", duration)
        for m in result["metrics"]:
            table.add_row(f"  {m['name']}", format_value(m), format_interval(m), "control" if m["control"] else "")
        table.add_section()
    console.print(table)


def series_state(total: int, ended: Sequence[JobResult], running: Sequence[Job], waiting: int) -> list[str]:
    """How far a series of `total` runs is, in lines: how many have finished, are running, failed; which."""
    failed = [result for result in ended if result.error]
    finished = total - len(failed) - len(running) - waiting  # now or before
    counts = {"running": len(running), "failed": len(failed), "to come" if running else "not run": waiting}
    others = [f"{number} {word}" for word, number in counts.items() if number]
    lines = [", ".join([f"{finished} of {total} runs finished", *others])]
    lines += [f"running: {job.label}" for job in running]
    return lines + [f"failed: {result.job.label}: {result.error}" for result in failed]


def write_index(
    folder: Path,
    results: Sequence[Mapping[str, Any]],
    *,
    title: str,
    scored: Sequence[ScoredClaim] = (),
    state: Sequence[str] = (),
    running: bool = False,
) -> Path:
    """Writes `folder/index.html`: the scorecard, then figures and numbers of the runs below `folder`.

    state: lines about a series, shown at the top.
    running: the series is not at its end: the page loads itself anew every 20 seconds.
    """
    claimed = {name for one in scored for name in one.claim.measures}
    cards = []
    for result in results:
        run, metrics = result["folder"], result["metrics"]
        card = {
            "folder": run.relative_to(folder).as_posix(),
            "has_page": (run / "notebook.html").exists(),
            "duration": format_duration(result["seconds"]),
            "figures": sorted(file.stem for file in (run / "figures").glob("*.png")),
            "key_metrics": [m for m in metrics if m["name"] in claimed] or [m for m in metrics if not m["control"]][:4],
        }
        cards.append({**result, "name": run.name, **card})
    values = {"rows": scorecard_rows(scored), "tally": tally(scored), "marks": VERDICT_MARKS, "cards": cards}
    folder.mkdir(parents=True, exist_ok=True)
    series = {"title": title, "state": state, "running": running}
    page = render_template("index.html.j2", value=format_value, interval=format_interval, **series, **values)
    part = folder / "index.html.part"
    part.write_text(page, encoding="utf-8")
    return part.replace(folder / "index.html")


def publish_run(run: Path, to: Path, *, figures: Sequence[str] = ()) -> None:
    """Copies a run's numbers, page, other files and the named figures, in 256 colours, to the folder `to`. Raises
    ValueError, and copies nothing, if one of them does not exist."""
    images = [run / "figures" / f"{name}.png" for name in figures]
    for file in (run / "metrics.json", run / "notebook.html", *images):
        if not file.exists():
            known = sorted(f.stem for f in (run / "figures").glob("*.png"))
            raise ValueError(f"{file}: does not exist; the figures of this run are {known}")
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in run.iterdir():
        if file.is_file() and file.suffix != ".ipynb":
            shutil.copy(file, part)
    for image in images:
        (part / "figures").mkdir(exist_ok=True)
        quantized = Image.open(image).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        quantized.save(part / "figures" / image.name, optimize=True)
    shutil.rmtree(to, ignore_errors=True)
    part.rename(to)
