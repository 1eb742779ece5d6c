"""Supervised training of an OmniModel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from omni_lab.batch import Modality, OmniBatch
from omni_lab.config.schema import TrainingConfig
from omni_lab.data.sources.base import QuestionFamily
from omni_lab.lightning_modules.schedule import adamw_warmup_cosine, seed_step
from omni_lab.model import OmniModel
from omni_lab.routing.route import Route


def answer_loss(logits: Float[Tensor, "b a"], scores: Float[Tensor, "b a"]) -> Float[Tensor, ""]:
    """Cross-entropy against the soft scores made to sum to one; a sample without any creditable answer counts zero."""
    total = scores.sum(dim=1, keepdim=True)
    return F.cross_entropy(logits, scores / total.clamp(min=1e-6), reduction="none").mean()


def random_flips(pictures: UInt8[Tensor, "u 3 h w"]) -> UInt8[Tensor, "u 3 h w"]:
    """Mirrors each picture left to right with probability one half."""
    flip = torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < 0.5
    return torch.where(flip, pictures.flip(-1), pictures)


class LitVQA(L.LightningModule):
    """Trains the injected model on its answer task.

    All randomness of a training step (augmentation, dropout, stochastic depth) is drawn from a stream that depends on
    (seed, epoch, batch) alone. A training stopped at any update and resumed therefore ends with the same weights.
    """

    columns: ClassVar = {
        "train loss": "train/loss",
        "validation loss": "validation/loss",
        "validation accuracy": "validation/accuracy",
        "macro F1": "validation/macro_f1",
    }

    def __init__(
        self,
        model: OmniModel,
        config: TrainingConfig,
        *,
        answers: int,
        families: Mapping[str, QuestionFamily] = MappingProxyType({}),
        seed: int = 0,
    ) -> None:
        """answers: how many there are. families: what each needs, for `config.distractor_dropout`. Raises ValueError
        where that is wanted and nothing is known, and where what is to be frozen cannot be kept as 8-bit latents."""
        if config.distractor_dropout > 0 and not families:
            raise ValueError("distractor_dropout wants to know what each family needs: got no families")
        kept = [m for m in config.frozen_encoders if m.value in model.encoders]
        if kept and model.latent_bits != 8:
            raise ValueError(
                f"frozen encoders' tokens are kept in 8 bits: got a model with latent_bits {model.latent_bits}"
            )
        seen = [m for m in (Modality.IMAGE, Modality.VIDEO) if m.value in model.encoders]
        if 0 < len({*kept} & {*seen}) < len(seen):
            raise ValueError(
                f"pictures and clips are encoded with the same weights: freeze both, got {config.frozen_encoders}"
            )
        super().__init__()
        for modality in kept:
            model.encoders[modality.value].requires_grad_(False)
        self.model = model
        self.config = config
        self.families = families
        self.seed_value = seed
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes=answers, average="micro"),
                "macro_f1": MulticlassF1Score(num_classes=answers, average="macro"),
            }
        )
        self.metrics = metrics.clone(prefix="validation/")

    def forward(self, batch: OmniBatch, route: Route | None = None) -> Float[Tensor, "b a"]:
        return self.model(batch, heads=["answer"], route=route).head_outputs["answer"]

    def _step(self, batch: OmniBatch, stage: str, route: Route | None = None) -> tuple[Tensor, Tensor]:
        logits = self(batch, route)
        loss = answer_loss(logits, batch.targets["answer_scores"])
        self.log(f"{stage}/loss", loss, batch_size=len(batch), on_step=False, on_epoch=True)
        return loss, logits

    def on_train_batch_start(self, batch: OmniBatch, batch_idx: int) -> None:
        seed_step(self, self.seed_value, batch_idx)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        if self.config.horizontal_flip and Modality.IMAGE in batch.inputs:
            given = batch.inputs[Modality.IMAGE]
            flipped = replace(given, values=random_flips(given.values))
            batch = replace(batch, inputs={**batch.inputs, Modality.IMAGE: flipped})
        chance = self.config.distractor_dropout * (1 - self.current_epoch / self.config.epochs)
        if chance > 0:
            batch = self._quietened(batch, chance)
        if len(batch.inputs) > 1 and torch.rand(()) < self.config.modality_dropout:
            lost = list(batch.inputs)[int(torch.randint(len(batch.inputs), ()))]
            batch = batch.without(lost)
        route = None
        if self.config.random_route_prob > 0 and torch.rand(()) < self.config.random_route_prob:
            route = self.alternative_route(batch)
        return self._step(batch, "train", route)[0]

    def alternative_route(self, batch: OmniBatch) -> Route:
        """What runs with the chance `config.random_routes`."""
        return self.model.space.sample(batch.present)

    def _quietened(self, batch: OmniBatch, chance: float) -> OmniBatch:
        """Some of the questions without what their family does not need."""
        quiet = torch.rand(len(batch), device=self.device) < chance
        for modality, given in batch.inputs.items():
            unneeded = torch.tensor([modality not in self.families[f].required_modalities for f in batch.families])
            batch = batch.with_entry_index(
                modality, given.entry_index.masked_fill(quiet & unneeded.to(self.device), -1)
            )
        return batch

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        _, logits = self._step(batch, "validation")
        self.metrics.update(logits, batch.targets["answer_scores"].argmax(dim=1))
        self.log_dict(self.metrics, batch_size=len(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return adamw_warmup_cosine(self, self.config)
