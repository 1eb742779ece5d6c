"""What a notebook measured: `metrics.json`, figures, and the tables and the index page made from them."""

from __future__ import annotations

import html
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from omni_lab.config import project_root

SCHEMA = 1
NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)+")


class Run:
    """One execution of a notebook. Every `record` rewrites metrics.json whole, under a temporary name first."""

    def __init__(self, notebook: str, *, profile: str, seed: int, folder: Path, parameters: dict[str, Any]) -> None:
        self.folder = folder
        self._start = time.monotonic()
        self._content: dict[str, Any] = {
            "schema": SCHEMA,
            "notebook": notebook,
            "profile": profile,
            "parameters": parameters,
            "seed": seed,
            "device": _device(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("omni-lab", "torch", "lightning", "timm", "torchmetrics")},
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "metrics": [],
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise ValueError(f"output_dir {str(folder)!r} cannot be written ({error})") from error

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return list(self._content["metrics"])

    def record(
        self,
        name: str,
        value: float,
        interval: Sequence[float] | None = None,
        unit: str = "",
        higher_is_better: bool = True,
        control: bool = False,
    ) -> None:
        """States a result. name: `room/what`. interval: (low, high), 95 % unless the notebook says otherwise.

        control: the value belongs to a baseline, not to the method. Recording a name again replaces it.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"name must look like room/what in lower case: got {name!r}")
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{name}: the value must be finite: got {value}")
        bounds = None if interval is None else [float(b) for b in interval]
        if bounds is not None and not (len(bounds) == 2 and bounds[0] <= bounds[1] and all(map(math.isfinite, bounds))):
            raise ValueError(f"{name}: the interval must be (low, high), finite and in order: got {interval!r}")
        entry = {
            "name": name,
            "value": value,
            "interval": bounds,
            "unit": unit,
            "higher_is_better": higher_is_better,
            "control": control,
        }
        self._content["metrics"] = [m for m in self._content["metrics"] if m["name"] != name] + [entry]
        self._write()

    def save_figure(self, figure: Any, name: str) -> Any:
        """Writes `figures/<name>.png` and returns the figure."""
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        return figure

    def _write(self) -> None:
        self._content["seconds"] = round(time.monotonic() - self._start, 1)
        part = self.folder / "metrics.json.part"
        part.write_text(json.dumps(self._content, indent=2), encoding="utf-8")
        part.replace(self.folder / "metrics.json")


def start_run(notebook: str, *, profile: str, seed: int, output_dir: str = "", **parameters: Any) -> Run:
    """Opens the run of a notebook. Without output_dir (in JupyterLab) it goes to reports/interactive/<notebook>."""
    folder = Path(output_dir) if output_dir else project_root() / "reports" / "interactive" / notebook
    everything = {"profile": profile, "seed": seed, **parameters}
    run = Run(notebook, profile=profile, seed=seed, folder=folder, parameters=everything)
    facts = run._content
    print(f"{notebook}, profile {profile}, seed {seed}, on {facts['device']}")
    print(", ".join(f"{name} {v}" for name, v in facts["versions"].items()))
    return run


def read_results(root: Path, *, profile: str | None = None, notebook: str | None = None) -> list[dict[str, Any]]:
    """The content of every `metrics.json` under `root`, in order of folder, each with its "folder" added."""
    results = []
    for file in sorted(root.glob("**/metrics.json")):
        if any(part.startswith(".") for part in file.relative_to(root).parts):
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            schema = content["schema"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a metrics file ({error})") from error
        if schema != SCHEMA:
            raise ValueError(f"{file}: schema {schema}: expected {SCHEMA}")
        if profile in (None, content["profile"]) and notebook in (None, content["notebook"]):
            results.append(content | {"folder": file.parent})
    return results


def format_value(metric: dict[str, Any]) -> str:
    unit = f" {metric['unit']}" if metric["unit"] else ""
    return f"{metric['value']:.4g}{unit}"


def format_interval(metric: dict[str, Any]) -> str:
    return "" if metric["interval"] is None else "{:.4g} to {:.4g}".format(*metric["interval"])


def print_results(results: Sequence[dict[str, Any]], *, title: str) -> None:
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


def write_index(folder: Path, results: Sequence[dict[str, Any]], *, title: str) -> Path:
    """`folder/index.html`: a section a run, with its numbers, its figures and a link to the executed notebook."""
    sections = []
    for result in results:
        where = result["folder"].relative_to(folder).as_posix()
        rows = "".join(
            f"<tr><td>{m['name']}</td><td>{format_value(m)}</td><td>{format_interval(m)}</td>"
            f"<td>{'control' if m['control'] else ''}</td></tr>"
            for m in result["metrics"]
        )
        figures = "".join(
            f'<a href="{where}/figures/{f.name}"><img src="{where}/figures/{f.name}" alt="{f.stem}"></a>'
            for f in sorted((result["folder"] / "figures").glob("*.png"))
        )
        link = f'<a href="{where}/notebook.html">' if (result["folder"] / "notebook.html").exists() else "<a>"
        sections.append(
            f"<h2>{link}{result['notebook']}</a></h2><p>{result['folder'].name}, {html.escape(result['device'])}, "
            f"{result['started']}, {result['seconds']:.0f} s</p><div>{figures}</div>"
            f"<table><tr><th>metric</th><th>value</th><th>95 % interval</th><th></th></tr>{rows}</table>"
        )
    page = folder / "index.html"
    part = folder / "index.html.part"
    part.write_text(INDEX.format(title=html.escape(title), sections="\n".join(sections)), encoding="utf-8")
    return part.replace(page)


INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; }}
table {{ text-align: left; }}
img {{ height: 14rem; max-width: 100%; object-fit: contain; margin: .5rem; border: 1px solid #eee; }}
</style></head><body><h1>{title}</h1>
{sections}
</body></html>
"""


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
