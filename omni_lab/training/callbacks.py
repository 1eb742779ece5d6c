"""How far a training is: a table that grows by a line an epoch, under one bar that moves with every update."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from omni_lab.batch import Modality, OmniBatch
from omni_lab.lightning_modules.router import LitRouterBase
from omni_lab.training.latent_cache import cache_latents
from omni_lab.utils.progress import ProgressBar, in_notebook
from omni_lab.worlds.tasks import TaskBatch


class RestoreBestWeights(Callback):
    """Holds on to the weights of the best validation reward, and puts them back at the end: too long a training under
    the full penalty costs accuracy. What is validated before the penalty is whole does not count. history: a dict per
    validation, "update" and the columns of `module` that validation fills."""

    def __init__(self, module: LitRouterBase) -> None:
        self.module = module
        self.best = -torch.inf
        self.weights: dict[str, Any] | None = None
        self.update = 0
        self.history: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        shown = {c: n for c, n in self.module.columns.items() if n.startswith("validation/")}
        measured = {column: float(trainer.callback_metrics[name]) for column, name in shown.items()}
        self.history.append({"update": trainer.global_step, **measured})
        reward = float(trainer.callback_metrics["validation/reward"])
        if self.module.at_full_penalty and reward > self.best:
            self.best, self.update = reward, trainer.global_step
            self.weights = copy.deepcopy(self.module.router.state_dict())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.weights is not None:
            self.module.router.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "weights": self.weights, "update": self.update, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.weights, self.update = (state_dict[name] for name in ("best", "weights", "update"))
        self.history = list(state_dict["history"])


class CacheFrozenLatents(Callback):
    """Encodes the media of both splits when a training starts, by the weights that it starts or goes on with. seconds:
    what that took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        begin = time.perf_counter()
        training, data = cast(Any, pl_module), cast(Any, trainer).datamodule
        frozen = [m for m in training.config.frozen_encoders if m.value in training.model.encoders]
        for split in ("train", "validation") if frozen else ():
            cache_latents(training.model, data.dataset(split), frozen)
        self.seconds = time.perf_counter() - begin


class ProgressTable(Callback):
    """A bar over all updates and a line an epoch; in a notebook both in one output, updated in place.

    columns: heading to the name of the metric under it. `rows` keeps the lines (a dict of headings per epoch, "epoch"
    and "seconds" among them), across an interruption too.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.headings = ("epoch", *columns, "seconds")
        self.rows: list[dict[str, float]] = []
        self._live: ProgressBar | None = None
        self._epoch_start = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._live = ProgressBar("training", total=int(trainer.estimated_stepping_batches), unit="update")
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


class ThroughputMeter(Callback):
    """Measures the training loop, loading included and validation left out: questions and pictures per second."""

    def __init__(self) -> None:
        self.totals = {"questions": 0, "pictures": 0, "seconds": 0.0}
        self._mark = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(self.totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.totals = dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()  # an epoch resumed in the middle has no start of its own

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: OmniBatch | TaskBatch,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        self.totals["seconds"] += now - self._mark
        self.totals["questions"] += len(batch)
        self.totals["pictures"] += len(batch.inputs[Modality.IMAGE].values) if Modality.IMAGE in batch.inputs else 0
        self._mark = now
