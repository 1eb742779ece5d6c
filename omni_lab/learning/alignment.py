"""EncoderAlignment: contrastive pre-training, so that one thing looks alike whichever modality it comes in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from omni_lab.config import ModelConfig, TrainingConfig
from omni_lab.evaluation.retrieval import recall_at
from omni_lab.learning.schedule import seed_step, warmup_cosine
from omni_lab.modalities import Modality, OmniBatch
from omni_lab.model import build_encoders, encode_inputs


class AlignmentModel(nn.Module):
    """Encoders whose tokens are compared as they are: the space that is aligned is the one that fusion works in."""

    def __init__(self, config: ModelConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {m.value: encoder for m, encoder in build_encoders(config, vocab_size=vocab_size).items()}
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, batch: OmniBatch) -> dict[Modality, Float[Tensor, "b w"]]:
        """A unit vector per sample and modality: the largest value of each channel over the tokens, layer norm without
        weights, length one. Every sample must carry every modality of the batch.
        """
        pooled = {m: tokens.strongest() for m, tokens in encode_inputs(self.encoders, batch).items()}
        return {m: F.normalize(F.layer_norm(x, x.shape[-1:]), dim=-1) for m, x in pooled.items()}


def contrastive_loss(
    first: Float[Tensor, "b w"], second: Float[Tensor, "b w"], labels: Int[Tensor, " b"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over cosine similarities times `scale` (CLIP, Radford et al. 2021, figure 3); samples of
    one label count as equally right (supervised contrastive learning, Khosla et al. 2020, eq. 2)."""
    logits = scale * first @ second.T  # [B, B]
    same = (labels[:, None] == labels[None, :]).to(logits.dtype)
    right = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


class EncoderAlignment(L.LightningModule):
    """Draws the modalities of each thing together and different things apart: the mean of `contrastive_loss` over all
    pairs of modalities."""

    columns: ClassVar = {
        "train loss": "train/loss",
        "validation loss": "validation/loss",
        "recall@1": "validation/recall_at_1",
    }

    def __init__(self, model: AlignmentModel, config: TrainingConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.seed_value = seed
        self._views: list[tuple[Mapping[Modality, Tensor], Tensor]] = []

    def forward(self, batch: OmniBatch) -> Mapping[Modality, Tensor]:
        return self.model(batch)

    def _loss(self, views: Mapping[Modality, Tensor], labels: Tensor) -> Tensor:
        scale = self.model.log_scale.exp().clamp(max=100)
        pairs = itertools.combinations(views.values(), 2)
        return torch.stack([contrastive_loss(a, b, labels, scale) for a, b in pairs]).mean()

    def on_train_batch_start(self, batch: OmniBatch, batch_idx: int) -> None:
        seed_step(self, self.seed_value, batch_idx)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        loss = self._loss(self(batch), batch.targets["thing"])
        self.log("train/loss", loss, batch_size=len(batch), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        views, labels = self(batch), batch.targets["thing"]
        self.log("validation/loss", self._loss(views, labels), batch_size=len(batch))
        self._views.append((views, labels))

    def on_validation_epoch_end(self) -> None:
        """Each validation batch is one gallery: the mean over all ordered pairs of modalities."""
        pairs = [
            recall_at(1, views[a], views[b], labels, labels).mean()
            for views, labels in self._views
            for a, b in itertools.permutations(views, 2)
        ]
        self._views.clear()
        self.log("validation/recall_at_1", torch.stack(pairs).mean())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return warmup_cosine(self, self.config)


def embed(model: AlignmentModel, batches: Sequence[OmniBatch]) -> tuple[dict[Modality, Tensor], Tensor]:
    """Unit vectors [n, W] per modality and the things [n] of all batches, in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        views = [model(batch) for batch in batches]
    things = torch.cat([batch.targets["thing"] for batch in batches])
    return {m: torch.cat([v[m] for v in views]) for m in views[0]}, things
