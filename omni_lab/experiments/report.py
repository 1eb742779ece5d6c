"""What was recorded, for readers: tables in the terminal, the scorecard, and one page without outside resources."""

from __future__ import annotations

import html
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from omni_lab.experiments.claims import ScoredClaim, Verdict
from omni_lab.experiments.pages import html_page

VERDICT_MARKS = {Verdict.HELD: "✓", Verdict.NOT_HELD: "✗", Verdict.NOT_MEASURED: "–"}


def format_value(metric: Mapping[str, Any]) -> str:
    unit = f" {metric['unit']}" if metric["unit"] else ""
    return f"{metric['value']:.4g}{unit}"


def format_interval(metric: Mapping[str, Any]) -> str:
    return "" if metric["interval"] is None else "{:.4g} to {:.4g}".format(*metric["interval"])


def _said(metric: Mapping[str, Any]) -> str:
    interval = format_interval(metric)
    return format_value(metric) + (f" ({interval})" if interval else "")


def scorecard_rows(scored: Sequence[ScoredClaim]) -> list[dict[str, Any]]:
    """A dict a claim, of texts and lists of texts: area, claim, figure, ours, controls, run, verdict."""
    rows = []
    for one in scored:
        ours = []
        for m in one.measured:
            value = "not recorded" if m.metric is None else _said(m.metric)
            ours.append(f"{m.name.partition('/')[2]}: {value}; bar {m.threshold}")
        run = "no run yet"
        if one.result is not None:
            kind = "published" if "published" in one.result["folder"].parts else "this machine"
            facts = (one.result["notebook"], one.result["folder"].name, one.result["profile"], one.result["device"])
            run = ", ".join((*facts, kind))
        rows.append(
            {
                "area": one.claim.area,
                "claim": one.claim.claim,
                "figure": one.claim.reported,
                "ours": ours,
                "controls": [f"{m['name'].partition('/')[2]}: {_said(m)}" for m in one.controls],
                "run": run,
                "verdict": one.verdict,
            }
        )
    return rows


def tally(scored: Sequence[ScoredClaim]) -> str:
    """How many claims held, did not, are not measured yet, in words."""
    verdicts = [one.verdict for one in scored]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in Verdict)
    return f"{len(verdicts)} claims: {counts}"


def print_scorecard(scored: Sequence[ScoredClaim]) -> None:
    """The scorecard in the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("claim", "ours, with 95 % interval", "controls", "", title="scorecard", show_lines=True)
    colours = {Verdict.HELD: "green", Verdict.NOT_HELD: "red", Verdict.NOT_MEASURED: "dim"}
    for row in scorecard_rows(scored):
        figure = f"\n[dim]as described: {row['figure']}[/]" if row["figure"] else ""
        verdict = f"[{colours[row['verdict']]}]{VERDICT_MARKS[row['verdict']]} {row['verdict']}[/]"
        ours = "\n".join([*row["ours"], f"[dim]{row['run']}[/]"])
        table.add_row(f"{row['area']}: {row['claim']}{figure}", ours, "\n".join(row["controls"]), verdict)
    console.print(table)
    console.print(tally(scored))


def scorecard_markdown(scored: Sequence[ScoredClaim]) -> str:
    """The scorecard as a Markdown table."""
    lines = ["| claim | as described | ours | control | |", "|---|---|---|---|---|"]
    for row in scorecard_rows(scored):
        cells = (row["claim"], row["figure"], "<br>".join(row["ours"]), "<br>".join(row["controls"]))
        lines.append("| " + " | ".join((*cells, f"{VERDICT_MARKS[row['verdict']]} {row['verdict']}")) + " |")
    return "\n".join(lines) + f"\n\n{tally(scored)}.\n"


def print_results(results: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """A table of everything recorded, in the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    if not results:
        console.print("nothing recorded yet")
        return
    table = Table("metric", "value", "95 % interval", "", title=title)
    for result in results:
        minutes, seconds = divmod(round(result["seconds"]), 60)
        table.add_row(
            f"[bold]{result['notebook']}", f"[dim]{result['folder'].name}", f"[dim]{minutes}:{seconds:02d} min"
        )
        for metric in result["metrics"]:
            cells = (f"  {metric['name']}", format_value(metric), format_interval(metric))
            table.add_row(*cells, "control" if metric["control"] else "")
        table.add_section()
    console.print(table)


def write_index(
    folder: Path, results: Sequence[Mapping[str, Any]], *, title: str, scored: Sequence[ScoredClaim] = ()
) -> Path:
    """`folder/index.html`: the scorecard, then a card a run: a figure, the numbers that claims rest on, all others
    folded away, and a link to the executed notebook. Everything it shows lies in `folder`."""
    wanted = {name for one in scored for name in one.claim.measures}
    runs = []
    for notebook, some in groupby(results, key=lambda result: str(result["notebook"])):
        cards = "".join(_card(result, folder, wanted) for result in some)
        runs.append(f"<h2>{html.escape(notebook)}</h2>\n{cards}")
    part = folder / "index.html.part"
    body = f"<h1>{html.escape(title)}</h1>\n{_scorecard_html(scored)}\n" + "\n".join(runs)
    part.write_text(html_page(title, body, INDEX), encoding="utf-8")
    return part.replace(folder / "index.html")


def publish_run(run: Path, to: Path, *, figures: Sequence[str] = ()) -> None:
    """Copies to the folder `to` what is worth keeping of a run: numbers, page, what else it wrote, the named figures
    (in 256 colours). Raises ValueError, and copies nothing, where one of them does not exist."""
    pictures = [run / "figures" / f"{name}.png" for name in figures]
    for file in (run / "metrics.json", run / "notebook.html", *pictures):
        if not file.exists():
            known = sorted(f.stem for f in (run / "figures").glob("*.png"))
            raise ValueError(f"{file}: does not exist; the figures of this run are {known}")
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in run.iterdir():
        if file.is_file() and file.suffix != ".ipynb":
            shutil.copy(file, part)
    for picture in pictures:
        (part / "figures").mkdir(exist_ok=True)
        few = Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(part / "figures" / picture.name, optimize=True)
    shutil.rmtree(to, ignore_errors=True)
    part.rename(to)


def _scorecard_html(scored: Sequence[ScoredClaim]) -> str:
    if not scored:
        return ""
    rows = []
    for row in scorecard_rows(scored):
        ours, controls = ("<br>".join(html.escape(text) for text in row[key]) for key in ("ours", "controls"))
        kind = str(row["verdict"]).replace(" ", "-")
        rows.append(
            f'<tr class="{kind}"><td>{html.escape(row["claim"])}</td><td>{html.escape(row["figure"])}</td>'
            f"<td>{ours}<br><small>{html.escape(row['run'])}</small></td><td>{controls}</td>"
            f"<td>{VERDICT_MARKS[row['verdict']]} {row['verdict']}</td></tr>"
        )
    head = "<tr><th>claim</th><th>as described</th><th>ours, 95 % interval</th><th>controls</th><th></th></tr>"
    return (
        f'<h2>Scorecard</h2><p>{tally(scored)}.</p><div class="wide"><table class="scorecard">{head}'
        f"{''.join(rows)}</table></div>"
    )


def _card(result: Mapping[str, Any], folder: Path, wanted: set[str]) -> str:
    where = result["folder"].relative_to(folder).as_posix()
    metrics = result["metrics"]
    key = [m for m in metrics if m["name"] in wanted] or [m for m in metrics if not m["control"]][:4]
    figures = sorted((result["folder"] / "figures").glob("*.png"))
    shown = "".join(
        f'<a href="{where}/figures/{f.name}"><img src="{where}/figures/{f.name}" alt="{html.escape(f.stem)}"></a>'
        for f in figures
    )
    name = html.escape(result["folder"].name)
    if (result["folder"] / "notebook.html").exists():
        name = f'<a href="{where}/notebook.html">{name}</a>'
    minutes, seconds = divmod(round(result["seconds"]), 60)
    more = f"<details><summary>all {len(metrics)} numbers</summary>{_numbers(metrics)}</details>"
    return (
        f"<section><h3>{name}</h3><p>{html.escape(result['device'])}; {result['started']}; {minutes}:{seconds:02d} min"
        f'</p>{_numbers(key)}<div class="figures">{shown}</div>{more if len(metrics) > len(key) else ""}</section>\n'
    )


def _numbers(metrics: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{m['name']}</td><td>{format_value(m)}</td><td>{format_interval(m)}</td>"
        f"<td>{'control' if m['control'] else ''}</td></tr>"
        for m in metrics
    )
    head = "<tr><th>metric</th><th>value</th><th>95 % interval</th><th></th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>'


INDEX = """
h2 { border-bottom: 2px solid #0072B2; margin-top: 3rem; }
.wide { overflow-x: auto; }
td { overflow-wrap: anywhere; }
.scorecard td:last-child { white-space: nowrap; font-weight: bold; }
.held td:last-child { color: #00664b; } .did-not-hold td:last-child { color: #a04000; }
.not-measured-yet { color: #666; }
small { color: #666; }
.figures { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0; }
.figures img { height: 11rem; max-width: 100%; object-fit: contain; border: 1px solid #eee; }
@media (max-width: 40rem) {
  .figures img { height: auto; width: 100%; }
  .scorecard, .scorecard tbody, .scorecard tr, .scorecard td { display: block; }
  .scorecard th { display: none; } .scorecard td { border: 0; padding: .1rem 0; }
  .scorecard tr { border-bottom: 1px solid #bbb; padding: .6rem 0; }
  .scorecard td:first-child { font-weight: bold; }
  .scorecard td:nth-child(2):not(:empty)::before { content: "as described: "; }
  .scorecard td:nth-child(4):not(:empty)::before { content: "controls: "; }
}
@media print { details, section { break-inside: avoid; } }
"""
