"""Several heads trained together, each batch for those that its task asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from omni_lab.config.schema import TrainingConfig
from omni_lab.layers.mel import LogMelSpectrogram
from omni_lab.lightning_modules.schedule import adamw_warmup_cosine, seed_step
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.model import OmniModel
from omni_lab.worlds.tasks import TaskBatch

SMOOTHING = 0.05  # of what is written (Szegedy et al. 2016, section 7)
CTC_WEIGHT = 0.5  # of the loss of what is written down is that of `TextHead.heard_loss`
MIN_LOG_VARIANCE = -3.0  # of the logarithm of an uncertainty: no task counts more than 20 times


class LitMultitask(L.LightningModule):
    """Trains the injected model on batches of one task each.

    uncertainty: task t's loss L counts exp(-s) L + s with a learned s, so that tasks whose losses stay large count
    less (Kendall et al. 2018, eq. 7, with s = log sigma^2 and the factors of one half left out); else it counts L.
    All randomness of a step depends on (seed, epoch, batch) alone, as in `MultitaskTraining`.
    """

    def __init__(
        self, model: OmniModel, config: TrainingConfig, *, tasks: Sequence[str], uncertainty: bool, seed: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.tasks = list(tasks)
        self.columns = {"train loss": "train/loss"} | {task: f"validation/{task}" for task in self.tasks}
        self.seed_value = seed
        self.mel = LogMelSpectrogram()
        self.uncertainty = torch.nn.Parameter(torch.zeros(len(self.tasks))) if uncertainty else None

    def head_requests(self, given: TaskBatch) -> dict[str, dict[str, Any]]:
        """Which heads a batch is for, and what each is told."""
        targets = given.targets
        text = {name: targets[name] for name in ("prompt", "target") if name in targets}
        if given.task == "find":
            return {"detection": {}}
        if given.task == "answer":
            return {"answer": {}, "text": text}
        if given.task == "restore":
            return {"restoration": {"image": targets["damaged"], "keep_mask": targets.get("kept")}}
        if given.task == "speak":
            return {"tts": {name: targets[name] for name in ("ids", "voice", "durations")}}
        return {"text": text}

    def loss(self, given: TaskBatch) -> Float[Tensor, ""]:
        """Of one batch, before it is weighed."""
        output = self.model(given.batch, heads=self.head_requests(given))
        heads, said, targets = cast(Any, self.model.heads), output.head_outputs, given.targets
        if given.task == "find":
            there = targets["labels"] >= 0
            labels = [names[real] for names, real in zip(targets["labels"], there, strict=True)]
            boxes = [places[real] for places, real in zip(targets["boxes"], there, strict=True)]
            return heads["detection"].loss(said["detection"], labels, boxes)
        if given.task == "restore":
            missing = ~targets["kept"] if "kept" in targets else torch.ones_like(targets["damaged"][:, 0]).bool()
            off = (said["restoration"] - targets["picture"] / 255).square().mean(1)
            return 10 * (off * missing).sum() / missing.sum()
        if given.task == "speak":
            return sum(heads["tts"].loss(said["tts"], self.spectrogram(targets["wave"]), targets["durations"]))
        written = heads["text"].loss(said["text"], targets["target"], smoothing=SMOOTHING * self.training)
        if given.task == "answer":
            return written + answer_loss(said["answer"], targets["answer_scores"])
        if given.task == "transcribe":
            return (1 - CTC_WEIGHT) * written + CTC_WEIGHT * heads["text"].ctc_loss(output.context, targets["target"])
        return written

    def spectrogram(self, wave: Float[Tensor, "b s"]) -> Float[Tensor, "b f m"]:
        return self.mel(wave).transpose(1, 2)

    def on_train_batch_start(self, batch: TaskBatch, batch_idx: int) -> None:
        seed_step(self, self.seed_value, batch_idx)

    def training_step(self, given: TaskBatch, batch_idx: int) -> Tensor:
        loss = self.loss(given)
        self.log("train/loss", loss.detach(), batch_size=1, on_step=False, on_epoch=True)
        if self.uncertainty is None:
            return loss
        s = self.uncertainty[self.tasks.index(given.task)].clamp(min=MIN_LOG_VARIANCE)
        self.log(f"uncertainty/{given.task}", s.detach(), batch_size=1, on_step=False, on_epoch=True)
        return (-s).exp() * loss + s

    def validation_step(self, given: TaskBatch, batch_idx: int) -> None:
        self.log(f"validation/{given.task}", self.loss(given), batch_size=len(given))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return adamw_warmup_cosine(self, self.config)
