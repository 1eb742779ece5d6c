"""Lightning callbacks: the best router's weights, latents of frozen encoders, a progress table, and throughput."""

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
from omni_lab.training.frozen_encoders import cache_latents
from omni_lab.utils.progress import ProgressBar, in_notebook
from omni_lab.worlds.tasks import TaskBatch

MAX_ROWS = 20  # of the table of epochs that is shown


class RestoreBestWeights(Callback):
    """At the end, gives a router the weights of its best validation reward: long training under the full penalty costs
    accuracy. Validations before the penalty is fully annealed do not count."""

    def __init__(self, module: LitRouterBase) -> None:
        self.module = module
        self.reward = -torch.inf
        self.weights: dict[str, Any] | None = None
        self.step = 0
        self.history: list[dict[str, float]] = []  # per validation: "update" (the step), and the module's columns

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        columns = {heading: name for heading, name in self.module.columns.items() if name.startswith("validation/")}
        values = {heading: float(trainer.callback_metrics[name]) for heading, name in columns.items()}
        self.history.append({"update": trainer.global_step, **values})
        reward = float(trainer.callback_metrics["validation/reward"])
        if self.module.at_full_penalty and reward > self.reward:
            self.reward, self.step = reward, trainer.global_step
            self.weights = copy.deepcopy(self.module.router.state_dict())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.weights is not None:
            self.module.router.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("reward", "weights", "step", "history")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class CacheFrozenLatents(Callback):
    """Encodes the media of both splits when a training starts, with the weights that it starts or resumes from."""

    def __init__(self) -> None:
        self.seconds = 0.0  # spent on encoding

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        begin = time.perf_counter()
        module, data = cast(Any, pl_module), cast(Any, trainer).datamodule
        frozen = [m for m in module.config.frozen_encoders if m.value in module.model.encoders]
        for split in ("train", "validation") if frozen else ():
            cache_latents(module.model, data.dataset(split), frozen)
        self.seconds = time.perf_counter() - begin


class ProgressTable(Callback):
    """A progress bar over all steps and a table with a row per epoch, of many epochs some twenty; in a notebook one
    output, updated in place.

    columns: heading to the name of a metric. rows: heading to value, per epoch.
    totals: questions, images and seconds of the training batches, with loading, without validation after an epoch.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.headings = ("epoch", *columns, "seconds")
        self.rows: list[dict[str, float]] = []
        self.totals = {"questions": 0, "images": 0, "seconds": 0.0}
        self._epoch_start = self._batch_start = 0.0
        self._stride = 1

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "totals": self.totals}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stride = -(-(trainer.max_epochs or 1) // MAX_ROWS)
        self._bar = ProgressBar("training", total=int(trainer.estimated_stepping_batches), unit="step")
        if not in_notebook():
            print("  ".join(f"{heading:>9}" for heading in self.headings))
        self.on_train_epoch_start(trainer, pl_module)  # an epoch that is resumed in the middle has no start of its own
        self._show(trainer, force=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = self._batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: OmniBatch | TaskBatch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.totals["seconds"] += now - self._batch_start
        self.totals["questions"] += len(batch)
        self.totals["images"] += len(batch.inputs[Modality.IMAGE].values) if Modality.IMAGE in batch.inputs else 0
        self._batch_start = now
        self._show(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values = [trainer.current_epoch + 1, *(metrics.get(name, float("nan")) for name in self.columns.values())]
        self.rows.append(dict(zip(self.headings, [*values, time.perf_counter() - self._epoch_start], strict=True)))
        if not in_notebook() and len(self.rows) % self._stride == 0:
            cells = (f"{_format(v):>{max(len(heading), 9)}}" for heading, v in self.rows[-1].items())
            tqdm.write("  ".join(cells), file=sys.stdout)
        self._show(trainer, force=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.close()

    def _show(self, trainer: L.Trainer, *, force: bool = False) -> None:
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 1)
        note = f"epoch {epoch} of {trainer.max_epochs}"
        self._bar.update(trainer.global_step, note=note, below=self._html(), force=force)

    def _html(self) -> str:
        shown = self.rows[self._stride - 1 :: self._stride]
        lines = [self.headings, *([_format(v) for v in row.values()] for row in shown)]
        cells = ("".join(f"<td>{cell}</td>" for cell in line) for line in lines)
        return f"<table>{''.join(f'<tr>{c}</tr>' for c in cells)}</table>"


def _format(value: float) -> str:
    return f"{value:d}" if isinstance(value, int) else f"{value:.4f}" if value < 10 else f"{value:.1f}"
