"""How far something is: in JupyterLab, in a terminal, in a log file, and for the runner that waits outside."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

STATUS_ENV_VAR = "OMNI_LAB_STATUS"  # names a file whose content the runner shows beside its own bar
T = TypeVar("T")


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


class ProgressBar:
    """One progress bar. In a notebook it is a single output updated in place, whose last state is saved with it;
    in a terminal a tqdm bar; in a log file nothing."""

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
        """done: so many units of the total. note: a few words. below: HTML under the bar, in a notebook."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        if not force and time.monotonic() - self._last < 1.0:
            return
        self._last = time.monotonic()
        line = f"{self.description}: {done:,} of {self.total:,} {plural(self.unit)}{note and ', '}{note}"
        if STATUS_ENV_VAR in os.environ:
            Path(os.environ[STATUS_ENV_VAR]).write_text(line, encoding="utf-8")
        if self._handle is not None:
            from IPython.display import HTML

            bar = f'<progress value="{done}" max="{self.total}" style="width: 20em"></progress>'
            self._handle.update(HTML(f"{bar} {line}{below}"))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def plural(unit: str) -> str:
    """Regular English: batch, penalty, update to batches, penalties, updates."""
    if unit.endswith("y"):
        return unit[:-1] + "ies"
    return unit + ("es" if unit.endswith(("ch", "s", "x")) else "s")


def track_progress(items: Iterable[T], description: str, *, total: int, unit: str) -> Iterator[T]:
    """Yields the items and shows how many of them have been dealt with."""
    live = ProgressBar(description, total=total, unit=unit)
    for done, item in enumerate(items):
        live.update(done)
        yield item
    live.update(total, force=True)
    live.close()
