"""How far a training is: a table that grows by a line an epoch, under one bar that moves with every update."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from omni_lab.progress import Live, in_notebook


class ProgressTable(Callback):
    """A bar over all updates and a line an epoch; in a notebook both in one output, updated in place.

    columns: heading to the name of the metric under it. `rows` keeps the lines (a dict of headings per epoch, "epoch"
    and "seconds" among them), across an interruption too.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.headings = ("epoch", *columns, "seconds")
        self.rows: list[dict[str, float]] = []
        self._live: Live | None = None
        self._epoch_start = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._live = Live("training", total=int(trainer.estimated_stepping_batches), unit="update")
        if not in_notebook():
            print("  ".join(f"{c:>9}" for c in self.headings))
        self._epoch_start = time.monotonic()  # an epoch resumed in the middle has no start of its own
        self._show(trainer, force=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._show(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        m = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values = [trainer.current_epoch + 1, *(m.get(n, float("nan")) for n in self.columns.values())]
        self.rows.append(dict(zip(self.headings, [*values, time.monotonic() - self._epoch_start], strict=True)))
        if not in_notebook():
            cells = (f"{_format(v):>{max(len(c), 9)}}" for c, v in self.rows[-1].items())
            tqdm.write("  ".join(cells), file=sys.stdout)
        self._show(trainer, force=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._live is not None:
            self._live.close()

    def _show(self, trainer: L.Trainer, *, force: bool = False) -> None:
        if self._live is not None:
            epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 1)
            note = f"epoch {epoch} of {trainer.max_epochs}"
            self._live.update(trainer.global_step, note=note, below=self._table(), force=force)

    def _table(self) -> str:
        lines = [self.headings, *([_format(v) for v in row.values()] for row in self.rows)]
        cells = ("".join(f"<td>{cell}</td>" for cell in line) for line in lines)
        return f"<table>{''.join(f'<tr>{c}</tr>' for c in cells)}</table>"


def _format(value: float) -> str:
    return f"{value:d}" if isinstance(value, int) else f"{value:.4f}" if value < 10 else f"{value:.1f}"
