"""What a notebook measured: `metrics.json` and figures, written as it goes and read back."""

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

from omni_lab.utils.env import project_root

SCHEMA = 1
KEYS = ("notebook", "profile", "parameters", "seed", "device", "started", "seconds", "metrics")
METRIC_KEYS = {"name", "value", "interval", "unit", "higher_is_better", "control"}
NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)+")


class RunRecorder:
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
        write_results(self.folder / "metrics.json", self._content)


def write_results(file: Path, content: Mapping[str, Any]) -> None:
    """What a `metrics.json` holds, a metric a line; under a temporary name first."""
    facts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "metrics"]
    metrics = ",\n".join(f"    {json.dumps(metric)}" for metric in content["metrics"])
    part = file.with_name(f"{file.name}.part")
    part.write_text("{\n" + ",\n".join([*facts, f'  "metrics": [\n{metrics}\n  ]']) + "\n}\n", encoding="utf-8")
    part.replace(file)


def start_run(notebook: str, *, profile: str, seed: int, output_dir: str = "", **parameters: Any) -> RunRecorder:
    """Opens the run of a notebook. Without output_dir (in JupyterLab) it goes to reports/interactive/<notebook>."""
    folder = Path(output_dir) if output_dir else project_root() / "reports" / "interactive" / notebook
    everything = {"profile": profile, "seed": seed, **parameters}
    run = RunRecorder(notebook, profile=profile, seed=seed, folder=folder, parameters=everything)
    facts = run._content
    print(f"{notebook}, profile {profile}, seed {seed}, on {facts['device']}")
    print(", ".join(f"{name} {v}" for name, v in facts["versions"].items()))
    return run


def read_results(
    root: Path,
    *,
    profile: str | None = None,
    notebook: str | None = None,
    broken: Callable[[str], object] | None = None,
) -> list[dict[str, Any]]:
    """The content of every `metrics.json` under `root`, in order of folder, each with its "folder" added.

    broken: is told of every file that is damaged or of another schema, which is then left out; without it the first
    of them raises ValueError.
    """
    results = []
    for file in sorted(root.glob("**/metrics.json")):
        if any(part.startswith(".") for part in file.relative_to(root).parts):
            continue
        try:
            content = _checked(file)
        except ValueError as error:
            if broken is None:
                raise
            broken(str(error))
            continue
        if profile in (None, content["profile"]) and notebook in (None, content["notebook"]):
            results.append(content | {"folder": file.parent})
    return results


def _checked(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = content["schema"]
    except (ValueError, KeyError, TypeError) as error:  # bad JSON and bad UTF-8 are ValueErrors
        raise ValueError(f"{file}: not a metrics file ({error})") from error
    if schema != SCHEMA:
        raise ValueError(f"{file}: schema {schema}: expected {SCHEMA}")
    lacking = [key for key in KEYS if key not in content]
    if lacking:
        raise ValueError(f"{file}: not a metrics file ({lacking[0]!r} is missing)")
    if not isinstance(content["metrics"], list):
        raise ValueError(f"{file}: not a metrics file (metrics must be a list: got {content['metrics']!r})")
    for place, metric in enumerate(content["metrics"]):
        if not isinstance(metric, dict) or not metric.keys() >= METRIC_KEYS:
            wanted = sorted(METRIC_KEYS)
            raise ValueError(f"{file}: not a metrics file (metric {place}: expected {wanted}, got {metric!r})")
    return content


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
