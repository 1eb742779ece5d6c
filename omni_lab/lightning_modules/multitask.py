"""LitMultitask: several heads trained together, each batch on the heads of its task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from omni_lab.config.schema import TrainingConfig
from omni_lab.layers.mel import LogMelSpectrogram
from omni_lab.lightning_modules.base import SeededModule
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.model import OmniModel
from omni_lab.worlds.tasks import TaskBatch

LABEL_SMOOTHING = 0.05  # of text targets (Szegedy et al. 2016, section 7)
CTC_WEIGHT = 0.5  # weight of `TextHead.ctc_loss` in the loss of transcription; the decoder's loss has the rest
MIN_LOG_VARIANCE = -3.0  # smallest log variance, so that no task's loss is weighted by more than 20


class LitMultitask(SeededModule):
    """Trains the injected model on batches of one task each.

    uncertainty: weight the loss L of task t as exp(-s) L + s with a learned log variance s, so that tasks with large
    losses weigh less (Kendall et al. 2018, eq. 7, with s = log sigma^2, without the factors of one half).
    """

    def __init__(
        self, model: OmniModel, config: TrainingConfig, *, tasks: Sequence[str], uncertainty: bool, seed: int = 0
    ) -> None:
        super().__init__(config, seed)
        self.model = model
        self.tasks = list(tasks)
        self.columns = {"train loss": "train/loss"} | {task: f"validation/{task}" for task in self.tasks}
        self.mel = LogMelSpectrogram()
        self.uncertainty = torch.nn.Parameter(torch.zeros(len(self.tasks))) if uncertainty else None

    def head_requests(self, batch: TaskBatch) -> dict[str, dict[str, Any]]:
        """The heads that a batch trains, by name, and the inputs of each."""
        targets = batch.targets
        text = {name: targets[name] for name in ("prompt", "target") if name in targets}
        if batch.task == "find":
            return {"detection": {}}
        if batch.task == "answer":
            return {"answer": {}, "text": text}
        if batch.task == "restore":
            return {"restoration": {"image": targets["damaged"], "keep_mask": targets.get("kept")}}
        if batch.task == "speak":
            return {"tts": {name: targets[name] for name in ("ids", "voice", "durations")}}
        return {"text": text}

    def loss(self, batch: TaskBatch) -> Float[Tensor, ""]:
        """The loss of one batch, before uncertainty weighting."""
        output = self.model(batch.batch, heads=self.head_requests(batch))
        heads, outputs, targets = cast(Any, self.model.heads), output.head_outputs, batch.targets
        if batch.task == "find":
            masks = targets["labels"] >= 0
            labels = [row[mask] for row, mask in zip(targets["labels"], masks, strict=True)]
            boxes = [row[mask] for row, mask in zip(targets["boxes"], masks, strict=True)]
            return heads["detection"].loss(outputs["detection"], labels, boxes)
        if batch.task == "restore":
            missing = ~targets["kept"] if "kept" in targets else torch.ones_like(targets["damaged"][:, 0]).bool()
            error = (outputs["restoration"] - targets["picture"] / 255).square().mean(1)
            return 10 * (error * missing).sum() / missing.sum()
        if batch.task == "speak":
            spectrogram = self.mel(targets["wave"]).transpose(1, 2)  # [B, F, mel bands]
            return sum(heads["tts"].loss(outputs["tts"], spectrogram, targets["durations"]))
        loss = heads["text"].loss(outputs["text"], targets["target"], smoothing=LABEL_SMOOTHING * self.training)
        if batch.task == "answer":
            return loss + answer_loss(outputs["answer"], targets["answer_scores"])
        if batch.task == "transcribe":
            return (1 - CTC_WEIGHT) * loss + CTC_WEIGHT * heads["text"].ctc_loss(output.context, targets["target"])
        return loss

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), batch_size=1, on_step=False, on_epoch=True)
        if self.uncertainty is None:
            return loss
        log_variance = self.uncertainty[self.tasks.index(batch.task)].clamp(min=MIN_LOG_VARIANCE)
        self.log(f"uncertainty/{batch.task}", log_variance.detach(), batch_size=1, on_step=False, on_epoch=True)
        return (-log_variance).exp() * loss + log_variance

    def validation_step(self, batch: TaskBatch, batch_idx: int) -> None:
        self.log(f"validation/{batch.task}", self.loss(batch), batch_size=len(batch))
