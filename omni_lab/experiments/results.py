"""What a notebook measured: `metrics.json` and figures, written as the run goes and read back."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omni_lab.experiments import provenance
from omni_lab.utils.env import keep_freed_memory, project_root
from omni_lab.utils.lookup import lookup

SCHEMA = 2  # files of schema 1 are still read: they were recorded before runs named their commit and processor
KEYS = ("notebook", "profile", "parameters", "seed", "device", "started", "seconds", "metrics")
METRIC_KEYS = {"name", "value", "interval", "unit", "higher_is_better", "control"}
METRIC_NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)+")


class RunRecorder:
    """Results of one run. Every `record` writes metrics.json anew, so that an interrupted run loses nothing."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self.metrics: list[dict[str, Any]] = []
        self.figures: dict[str, float] = {}  # name -> size of its smallest text on a page, in points
        self._run = run  # what metrics.json holds beside the metrics
        self._start = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise ValueError(f"output_dir {str(folder)!r} cannot be written ({error})") from error

    def record(
        self,
        name: str,
        value: float,
        interval: Sequence[float] | None = None,
        unit: str = "",
        higher_is_better: bool = True,
        control: bool = False,
        n: int | None = None,
    ) -> None:
        """Records a metric. Recording a name again replaces it.

        name: `room/metric`, in lower case.
        interval: (low, high), of 95 % unless the notebook says otherwise.
        control: the value belongs to a baseline, not to the method.
        n: how many independent cases (questions, scenes, images) stand behind the value.
        """
        if not METRIC_NAME.fullmatch(name):
            raise ValueError(f"name must look like room/what in lower case: got {name!r}")
        bounds = None if interval is None else [float(b) for b in interval]
        if bounds is not None and (len(bounds) != 2 or bounds[0] > bounds[1]):
            raise ValueError(f"{name}: the interval must be (low, high), in order: got {interval!r}")
        if not all(map(math.isfinite, (value, *(bounds or ())))):
            raise ValueError(f"{name}: value and interval must be finite: got {value} and {interval!r}")
        if n is not None and n < 1:
            raise ValueError(f"{name}: n must be at least 1: got {n}")
        entry = {"name": name, "value": float(value), "interval": bounds, "unit": unit}
        entry |= {"higher_is_better": higher_is_better, "control": control}
        entry |= {} if n is None else {"n": int(n)}
        self.metrics = [m for m in self.metrics if m["name"] != name] + [entry]
        self._write()

    def compare(self, name: str, unit: str = "questions") -> str:
        """A recorded metric in one line, beside that of the published run with the same parameters, if there is one:
        "here, 400 questions: 0.950 (0.930 to 0.970); published, 24,033: 0.958"."""
        from omni_lab.config.profiles import get_profile

        own = lookup(name, {m["name"]: m for m in self.metrics}, "recorded metric")
        line = "here" + (f", {own['n']:,} {unit}" if "n" in own else "") + f": {own['value']:.3f}"
        if own["interval"]:
            line += " ({:.3f} to {:.3f})".format(*own["interval"])
        folder = project_root() / "reports" / "published" / get_profile(self._run["profile"]).trained_as
        other = find_published(
            {**self._run, "metrics": self.metrics}, read_results(folder / self._run["notebook"], broken=print)
        ).get(name)
        if other is None:
            return line
        return f"{line}; published" + (f", {other['n']:,}" if "n" in other else "") + f": {other['value']:.3f}"

    def save_figure(self, figure: Any, name: str) -> Any:
        """Writes `figures/<name>.png`, notes how small its text is, and returns the figure."""
        from omni_lab.viz.style import smallest_text

        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        if math.isfinite(points := smallest_text(figure)):
            self.figures[name] = round(points, 1)
        self._write()
        return figure

    def _write(self) -> None:
        seconds = round(time.monotonic() - self._start, 1)
        write_results(
            self.folder / "metrics.json",
            {**self._run, "seconds": seconds, "smallest_text": self.figures, "metrics": self.metrics},
        )


def write_results(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a metrics.json, one metric per line, under a temporary name first."""
    run = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "metrics"]
    metrics = ",\n".join(f"    {json.dumps(metric)}" for metric in content["metrics"])
    part = file.with_name(f"{file.name}.part")
    part.write_text("{\n" + ",\n".join([*run, f'  "metrics": [\n{metrics}\n  ]']) + "\n}\n", encoding="utf-8")
    part.replace(file)


def start_run(
    notebook: str, *, profile: str, seed: int, output_dir: str = "", command: str = "", **parameters: Any
) -> RunRecorder:
    """Starts the recorder of a notebook. Without output_dir (in JupyterLab): reports/interactive/<notebook>.

    command: what repeats the run; by default `omni-lab run`.

    The process then keeps the memory that it frees: see `keep_freed_memory`.
    """
    keep_freed_memory()
    folder = Path(output_dir) if output_dir else project_root() / "reports" / "interactive" / notebook
    libraries = ("omni-lab", "torch", "lightning", "timm", "torchmetrics")
    run: dict[str, Any] = {
        "schema": SCHEMA,
        "notebook": notebook,
        "profile": profile,
        "parameters": (recorded := {"profile": profile, "seed": seed, **parameters}),
        "seed": seed,
        "device": _device(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance.provenance(notebook, recorded),
    }
    run |= {"command": command} if command else {}
    recorder = RunRecorder(folder, run)
    print(f"{notebook}, profile {profile}, seed {seed}, on {run['device']}")
    print(", ".join(f"{name} {number}" for name, number in run["versions"].items()))
    changed = "" if run["clean"] else ", with changes that are not committed"
    print(f"commit {run['commit'][:12]}{changed}" if run["commit"] else "commit unknown", end="; ")
    print(f"{run['processor']}, {run['capability']}, {run['threads']} threads")
    return recorder


def read_results(
    root: Path, *, profile: str | None = None, notebook: str | None = None, broken: Callable[[str], Any] | None = None
) -> list[dict[str, Any]]:
    """The content of every `metrics.json` below `root`, in order of folders, each with its "folder" added.

    broken: called with a message for each damaged file, which is left out; by default it raises ValueError.
    """
    results = []
    for file in sorted(root.glob("**/metrics.json")):
        if any(part.startswith(".") for part in file.relative_to(root).parts):
            continue
        try:
            content = _read_checked(file)
        except ValueError as error:
            if broken is None:
                raise
            broken(f"{error} (left out)")
            continue
        if profile in (None, content["profile"]) and notebook in (None, content["notebook"]):
            results.append(content | {"folder": file.parent})
    return results


def find_published(run: Mapping[str, Any], published: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The metrics by name of the published run of the same notebook, seed and parameters; of several that with most of
    this run's metrics, then the latest; empty if there is none. Only parameters that both recorded are compared,
    without the profile; a count of 0 fits any, as it stands for the profile's own."""
    own, found, names = run["parameters"], [], {m["name"] for m in run.get("metrics", ())}
    for other in published:
        theirs = other["parameters"]
        differing = [k for k in own.keys() & theirs.keys() if k != "profile" and own[k] != theirs[k]]
        open_counts = all(k != "seed" and type(own[k]) is int and own[k] == 0 for k in differing)
        if other["notebook"] == run["notebook"] and open_counts:
            shared = sum(m["name"] in names for m in other["metrics"])
            found.append((-len(differing), shared, str(other["started"]), other["metrics"]))
    return {m["name"]: m for m in max(found, key=lambda f: f[:3])[3]} if found else {}


def _read_checked(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] not in (1, SCHEMA):
            raise ValueError(f"schema {content['schema']}: expected 1 or {SCHEMA}")
        if missing := [key for key in KEYS if key not in content]:
            raise ValueError(f"{missing[0]!r} is missing")
        if not isinstance(content["metrics"], list):
            raise ValueError(f"metrics must be a list: got {content['metrics']!r}")
        for place, metric in enumerate(content["metrics"]):
            if not isinstance(metric, dict) or not metric.keys() >= METRIC_KEYS:
                raise ValueError(f"metric {place}: expected {sorted(METRIC_KEYS)}, got {metric!r}")
    except (ValueError, KeyError, TypeError) as error:  # bad JSON and bad UTF-8 are ValueErrors
        raise ValueError(f"{file}: not a metrics file ({error})") from error
    return dict.fromkeys(provenance.KEYS) | content


def format_duration(seconds: float) -> str:
    """Minutes and seconds, like 3:07."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
