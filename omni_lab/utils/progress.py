"""Progress bars: in JupyterLab, in the terminal, and for the runner, which reads them from the executed notebook."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


class ProgressBar:
    """One progress bar: in a notebook one output updated in place and saved with it, in a terminal a tqdm bar.

    In a log file nothing is shown. tqdm.auto is not used because it leaves the state of widgets in executed notebooks.
    """

    def __init__(self, description: str, *, total: int, unit: str) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self._last = 0.0
        self._handle: Any = None
        self._bar: tqdm[Any] | None = None
        if in_notebook():
            from IPython.display import HTML, display

            self._handle = display(HTML(""), display_id=True)
        else:
            self._bar = tqdm(total=total, desc=description, unit=unit, leave=False, disable=not sys.stderr.isatty())

    def update(self, done: int, *, note: str = "", below: str = "", force: bool = False) -> None:
        """Shows that `done` units of the total are done. In a notebook at most once a second, unless forced.

        note: a few words beside the bar.
        below: HTML under the bar.
        """
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif force or time.monotonic() - self._last >= 1.0:
            from IPython.display import HTML

            self._last = time.monotonic()
            bar = f'<progress value="{done}" max="{self.total}" style="width: 20em"></progress>'
            line = f"{self.description}: {done:,} of {self.total:,} {plural(self.unit)}{note and ', '}{note}"
            self._handle.update(HTML(f"{bar} {line}{below}"))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def plural(unit: str) -> str:
    """Regular English plurals: batch, penalty, update to batches, penalties, updates."""
    if unit.endswith("y"):
        return unit[:-1] + "ies"
    return unit + ("es" if unit.endswith(("ch", "s", "x")) else "s")


def track_progress(items: Iterable[T], description: str, *, total: int, unit: str) -> Iterator[T]:
    """Yields the items and shows how many are done."""
    bar = ProgressBar(description, total=total, unit=unit)
    for done, item in enumerate(items):
        bar.update(done)
        yield item
    bar.update(total, force=True)
    bar.close()


def read_progress(executed: Path) -> dict[str, Any]:
    """Cells done in a notebook that papermill is executing, and the last `ProgressBar` of the cell that is running.

    As fields of a rich task; empty while there is no readable notebook.
    """
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (OSError, json.JSONDecodeError):  # not there yet, or half written
        return {}
    states = [cell["metadata"]["papermill"]["status"] for cell in cells]
    outputs = [cell["outputs"] for cell, state in zip(cells, states, strict=True) if state == "running"]
    bars = re.findall(r"</progress> ([^<\"]*)", json.dumps(outputs, ensure_ascii=False))
    done, total = states.count("completed"), len(states)
    return {"completed": done, "total": total, "line": ": ".join([f"cell {done} of {total}", *bars[-1:]])}
