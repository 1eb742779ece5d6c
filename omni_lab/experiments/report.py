"""What was recorded, for readers: tables in the terminal, the scorecard, and the index page of a profile."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from omni_lab.experiments.claims import ScoredClaim, Verdict, metrics_by_name
from omni_lab.experiments.jobs import Job, notebook_paths
from omni_lab.experiments.pages import glossary_page, render_template, thumbnail, to_webp
from omni_lab.experiments.results import find_published, format_duration, read_results
from omni_lab.experiments.runner import JobResult
from omni_lab.utils.env import project_root

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
    """One dict per claim: its own fields, the run in words, the verdict, and lists of texts: controls, and ours: the
    measures that count, what a run here measured of them, why nothing is measured, and the claim's note."""
    rows = []
    for one in scored:
        ours = [f"{_describe(m.name, m.metric)}; bar {m.threshold}" for m in one.measured]
        here = metrics_by_name(one.here)
        ours += [f"here, {one.here['profile']}: {_describe(n, here.get(n))}" for n in one.claim.measures if one.here]
        if one.verdict is Verdict.NOT_MEASURED and one.claim.reason:
            ours.append(f"not measured: {one.claim.reason}")
        ours += [f"note: {one.claim.note}"] if one.claim.note else []
        controls = [_describe(m["name"], m) for m in one.controls]
        run = "no run yet"
        if one.result is not None:
            words = [one.result[key] for key in ("notebook", "profile", "device")]
            words.insert(1, one.result["folder"].name)
            words += [f"commit {one.result['commit'][:12]}"] if one.result.get("commit") else []
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


def add_published(results: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results; each metric gets a key "published": that of the published run with the same parameters, or None."""
    found = [(result, find_published(result, published)) for result in results]
    return [{**r, "metrics": [m | {"published": p.get(m["name"])} for m in r["metrics"]]} for r, p in found]


def agreement(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many numbers agree with the published ones, and a line for each that does not. results: of `add_published`. A
    number agrees if its interval holds the published value. One that is not published does not count, nor one without
    an interval, nor one with an interval of no width, as a resample cannot say how sure a BLEU of exactly 1 is.
    """
    found = [(r, m) for r in results for m in r["metrics"] if m.get("published") and m["interval"]]
    pairs = [(r, m) for r, m in found if m["interval"][0] < m["interval"][1]]
    apart = [(r, m) for r, m in pairs if not m["interval"][0] <= m["published"]["value"] <= m["interval"][1]]
    if not pairs:
        return []
    timed, timed_apart = (sum(_is_timed(m) for _, m in some) for some in (pairs, apart))
    lines = [
        f"{len(pairs) - len(apart)} of {len(pairs)} numbers agree with the published ones within their interval (quick "
        f"measures fewer questions); without times, which depend on the machine: "
        f"{len(pairs) - len(apart) - timed + timed_apart} of {len(pairs) - timed}"
    ]
    for result, m in apart:
        here = f"{format_value(m)} ({format_interval(m)}), published {format_value(m['published'])}"
        lines.append(f"{result['notebook']}/{result['folder'].name} {m['name']}: {here}{', a time' * _is_timed(m)}")
    return lines


def _is_timed(metric: Mapping[str, Any]) -> bool:
    return metric["unit"] in ("x", "times", "ms", "s", "min") or "time" in metric["name"]


def print_results(results: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Prints all recorded metrics as a table, and how many agree with the published ones, see `add_published`."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    if not results:
        console.print("nothing recorded yet")
        return
    table = Table(Column("metric", overflow="fold"), "value", "95 % interval", "published", "", title=title)
    for result in results:
        duration = f"[dim]{format_duration(result['seconds'])} min"
        table.add_row(f"[bold]{result['notebook']}", f"[dim]{result['folder'].name}", duration)
        for m in result["metrics"]:
            published = format_value(m["published"]) if m.get("published") else ""
            control = "control" if m["control"] else ""
            table.add_row(f"  {m['name']}", format_value(m), format_interval(m), published, control)
        table.add_section()
    console.print(table)
    for line in agreement(results):
        console.print(line, soft_wrap=True, highlight=False)


def series_state(total: int, ended: Sequence[JobResult], running: Sequence[Job], waiting: int) -> list[str]:
    """How far a series of `total` runs is, in lines: how many have finished, are running, failed; which."""
    failed = [result for result in ended if result.error]
    finished = total - len(failed) - len(running) - waiting  # now or before
    counts = {"running": len(running), "failed": len(failed), "to come" if running else "not run": waiting}
    others = [f"{number} {word}" for word, number in counts.items() if number]
    lines = [", ".join([f"this command: {finished} of {total} runs finished", *others])]
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
    """Writes `folder/index.html`: a card for each notebook, the scorecard in words, then the numbers of all runs below
    `folder`; and beside it the glossary.

    state: lines about a series, shown at the top.
    running: the series is not at its end: the page loads itself anew every 20 seconds.
    """
    series = {path.stem: path for path in notebook_paths()}
    runs, cards = [], dict[str, dict[str, Any]]()
    for result in sorted(results, key=lambda r: _place(r, [*series])):
        run, name = result["folder"], result["notebook"]
        page = run / "notebook.html"
        shown = {"folder": run.relative_to(folder).as_posix(), "page": page.exists() and _link(page, folder)}
        shown["figures"] = sorted(file.name for file in (run / "figures").glob("*.*"))
        runs.append({**result, **shown, "name": run.name, "duration": format_duration(result["seconds"])})
        if name not in cards:
            card = {"title": name.replace("_", " "), **_describe_notebook(series.get(name, run / "executed.ipynb"))}
            cards[name] = {**runs[-1], **card, "picture": _picture(run, card.get("figure", ""), folder)}
    rows = scorecard_rows(scored)
    for row, one in zip(rows, scored, strict=True):
        page = one.result["folder"] / "notebook.html" if one.result else Path()
        row["page"] = page.is_file() and _link(page, folder)
        row |= {key: [_in_words(text) for text in row[key]] for key in ("ours", "controls")}
    values: dict[str, Any] = {"title": title, "state": state, "running": running, "agreement": agreement(results)}
    values |= {"rows": rows, "tally": tally(scored), "marks": VERDICT_MARKS, "cards": cards.values(), "runs": runs}
    glossary = project_root() / "notebooks" / "GLOSSARY.md"
    texts = {"glossary.html": glossary_page(glossary.read_text(encoding="utf-8"))} if glossary.exists() else {}
    values |= {"value": format_value, "interval": format_interval, "glossary": bool(texts)}
    texts["index.html"] = render_template("index.html.j2", **values)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
    return folder / "index.html"


def _in_words(text: str) -> str:
    """A line of the scorecard with the metric's name in words."""
    return re.sub(r"[\w/]+(?=: )", lambda name: name[0].replace("/", ", ").replace("_", " "), text)


def _place(result: Mapping[str, Any], series: Sequence[str]) -> tuple[Any, ...]:
    """Sorts by the order of the series; of a notebook's runs that of seed 0 with all defaults comes first."""
    name, run = result["notebook"], result["folder"].name
    return (series.index(name) if name in series else len(series), name, run != "seed0", run)


def _link(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file, folder)).as_posix()


def _describe_notebook(path: Path) -> dict[str, str]:
    """Title and first question of a notebook, in plain text, and what its metadata say under "omni_lab" of its card:
    figure, the name of the one to show; finding, a sentence; perhaps another question. Empty if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        text = re.sub(r"[*`]", "", "".join(content["cells"][0]["source"]))
        asked = re.search(r'The question\.(?:[^?]*?[.!])??([^.?!]+\?"?)', " ".join(text.split()))
        found = {"title": text.splitlines()[0].lstrip("# "), "question": asked[1].strip() if asked else ""}
        return found | content["metadata"].get("omni_lab", {})
    except (OSError, ValueError, LookupError):
        return {}


def _picture(run: Path, figure: str, folder: Path) -> str:
    """Where the picture of a run's card is: the named figure, or else the first one, as a file or within the page."""
    files = {file.stem: file for file in sorted((run / "figures").glob("*.*"))}
    inside = dict[str, str]()
    if figure not in files and (run / "notebook.html").exists():
        text = (run / "notebook.html").read_text(encoding="utf-8")
        for name, source in re.findall(r'<img alt="([^"]*)" src="(data:image/[^"]+)"', text):
            inside.setdefault(name.replace(" ", "_"), source)
        figure = max((name for name in inside if figure.startswith(name)), key=len, default=figure)
    named = inside.get(figure) or (_link(files[figure], folder) if figure in files else "")
    found = named or next(iter([*(_link(file, folder) for file in files.values()), *inside.values()]), "")
    return thumbnail(found) if found.startswith("data:") else found


def publish_run(run: Path, to: Path, *, figures: Sequence[str] = ()) -> None:
    """Copies a run's numbers, page, other files and the named figures, as WebP, to the folder `to`. Raises ValueError,
    and copies nothing, if one of them does not exist, or if the code of the run was not committed."""
    images = [run / "figures" / f"{name}.png" for name in figures]
    for file in (run / "metrics.json", run / "notebook.html", *images):
        if not file.exists():
            known = sorted(f.stem for f in (run / "figures").glob("*.png"))
            raise ValueError(f"{file}: does not exist; the figures of this run are {known}")
    (result,) = read_results(run)
    if not result["commit"] or not result["clean"]:
        state = "had changes that are in no commit" if result["commit"] else "is of an unknown commit"
        raise ValueError(f"{run}: nobody could repeat this run, as its code {state}: commit, and run it again")
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in run.iterdir():
        if file.is_file() and file.suffix != ".ipynb":
            shutil.copy(file, part)
    for image in images:
        (part / "figures").mkdir(exist_ok=True)
        (part / "figures" / f"{image.stem}.webp").write_bytes(to_webp(image.read_bytes()))
    shutil.rmtree(to, ignore_errors=True)
    part.rename(to)
