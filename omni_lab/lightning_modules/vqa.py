"""LitVQA: supervised training of an OmniModel on its answer head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from omni_lab.batch import Modality, OmniBatch, Tokens
from omni_lab.config.schema import TrainingConfig
from omni_lab.data.sources.base import QuestionFamily
from omni_lab.encoders.levels import at_levels
from omni_lab.lightning_modules.base import SeededModule
from omni_lab.model import OmniModel
from omni_lab.routing.route import Route


def answer_loss(logits: Float[Tensor, "b a"], scores: Float[Tensor, "b a"]) -> Float[Tensor, ""]:
    """Cross-entropy against soft scores, normalized to sum to one; a sample whose scores are all zero has loss zero."""
    total = scores.sum(dim=1, keepdim=True)
    return F.cross_entropy(logits, scores / total.clamp(min=1e-6), reduction="none").mean()


def random_flips(images: UInt8[Tensor, "u 3 h w"]) -> UInt8[Tensor, "u 3 h w"]:
    """Flips each image left to right with probability one half."""
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flip, images.flip(-1), images)


class LitVQA(SeededModule):
    """Trains the injected model on its answer head, with the augmentations and dropouts of its `TrainingConfig`."""

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
        """answers: number of classes.
        families: the modalities that each question family needs, for `config.distractor_dropout`.

        Raises ValueError for distractor dropout without families, and for frozen encoders whose tokens cannot be cached
        as 8-bit latents.
        """
        if config.distractor_dropout > 0 and not families:
            raise ValueError("distractor_dropout needs to know what each question family needs: got no families")
        frozen = [m for m in config.frozen_encoders if m.value in model.encoders]
        if frozen and model.latent_bits != 8:
            raise ValueError(f"frozen encoders' tokens are cached in 8 bits: got latent_bits {model.latent_bits}")
        visual = [m for m in (Modality.IMAGE, Modality.VIDEO) if m.value in model.encoders]
        if 0 < len({*frozen} & {*visual}) < len(visual):
            raise ValueError(f"image and video encoders share weights: freeze both, got {config.frozen_encoders}")
        super().__init__(config, seed)
        for modality in frozen:
            model.encoders[modality.value].requires_grad_(False)
        if config.tiny_only:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(".tiny." in name)
        self.model = model
        self.families = families
        self.probed = [m for m in model.space.modalities if m is not Modality.TEXT] if config.probe_weight else []
        names = [f"{m}_{level.name.lower()}" for m in self.probed for level in model.space.allowed_levels(m)[1:]]
        dim = cast(Any, model.heads["answer"]).classify[-1].in_features if names else 0
        self.probes = nn.ModuleDict({name: nn.Linear(dim, answers) for name in names})
        accuracy = MulticlassAccuracy(num_classes=answers, average="micro")
        macro_f1 = MulticlassF1Score(num_classes=answers, average="macro")
        self.metrics = MetricCollection({"accuracy": accuracy, "macro_f1": macro_f1}, prefix="validation/")

    def train(self, mode: bool = True) -> LitVQA:
        """With `tiny_only` the model stays in evaluation mode: statistics of what is not trained must not change."""
        super().train(mode)
        self.model.train(mode and not self.config.tiny_only)
        return self

    def forward(self, batch: OmniBatch, route: Route | None = None) -> Float[Tensor, "b a"]:
        return self.model(batch, heads=["answer"], route=route).head_outputs["answer"]

    def _step(self, batch: OmniBatch, stage: str, route: Route | None = None) -> tuple[Tensor, Tensor]:
        logits = self(batch, route)
        loss = answer_loss(logits, batch.targets["answer_scores"])
        self.log(f"{stage}/loss", loss, batch_size=len(batch), on_step=False, on_epoch=True)
        return loss, logits

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        if self.config.horizontal_flip and Modality.IMAGE in batch.inputs:
            images = batch.inputs[Modality.IMAGE]
            flipped = replace(images, values=random_flips(images.values))
            batch = replace(batch, inputs={**batch.inputs, Modality.IMAGE: flipped})
        distractor_dropout = self.config.distractor_dropout * (1 - self.current_epoch / self.config.epochs)
        if distractor_dropout > 0:
            batch = self._drop_distractors(batch, distractor_dropout)
        if len(batch.inputs) > 1 and torch.rand(()) < self.config.modality_dropout:
            batch = batch.without(list(batch.inputs)[int(torch.randint(len(batch.inputs), ()))])
        if self.config.routes_per_batch:
            return self._loss_under_routes(batch)
        route = None
        if self.config.random_route_prob > 0 and torch.rand(()) < self.config.random_route_prob:
            route = self.alternative_route(batch)
        return self._step(batch, "train", route)[0]

    def _loss_under_routes(self, batch: OmniBatch) -> Tensor:
        """Mean of the losses under the dense route and `config.routes_per_batch` random ones."""
        space, present = self.model.space, batch.present
        routes = [space.dense(present), *(space.sample(present) for _ in range(self.config.routes_per_batch))]
        encoded = {m: self.model.encode_levels(m, inputs) for m, inputs in batch.inputs.items()}
        losses: list[Tensor] = []
        dense_logits, weight = torch.empty(0), self.config.distill_weight
        for route in routes:
            streams = at_levels(batch, encoded, route.encoder_levels)
            logits = self.model.fuse(streams, heads=["answer"], route=route).head_outputs["answer"]
            loss = answer_loss(logits, batch.targets["answer_scores"])
            if not losses:
                dense_logits = logits.detach()
            elif weight:
                distance = F.kl_div(logits.log_softmax(1), dense_logits.softmax(1), reduction="batchmean")
                loss = (1 - weight) * loss + weight * distance
            losses.append(loss)
        loss = torch.stack(losses).mean()
        if self.config.probe_weight:
            loss = loss + self.config.probe_weight * self._probe_loss(batch, encoded)
        self.log("train/loss", loss, batch_size=len(batch), on_step=False, on_epoch=True)
        return loss

    def _probe_loss(self, batch: OmniBatch, encoded: Mapping[Modality, tuple[Tokens, Tensor]]) -> Tensor:
        """Mean over the probes, of questions that need no second medium."""
        losses = []
        for m, (tokens, first) in encoded.items():
            for level in self.model.space.allowed_levels(m)[1:] if m in self.probed else ():
                entries = batch.inputs[m].entry_index
                alone = [{*self.families[f].required_modalities} <= {Modality.TEXT, m} for f in batch.families]
                here = ((entries >= 0) & torch.tensor(alone, device=entries.device)).nonzero().squeeze(1)
                pooled = tokens.max_pool()[first[level] + entries[here]]
                logits = self.probes[f"{m}_{level.name.lower()}"](pooled)
                if len(here):
                    losses.append(answer_loss(logits, batch.targets["answer_scores"][here]))
        return torch.stack(losses).mean() if losses else torch.zeros((), device=self.device)

    def alternative_route(self, batch: OmniBatch) -> Route:
        """The route that a batch takes with probability `config.random_route_prob`."""
        return self.model.space.sample(batch.present)

    def _drop_distractors(self, batch: OmniBatch, probability: float) -> OmniBatch:
        """Removes, from some of the questions, all modalities that their family does not need."""
        isolated = torch.rand(len(batch), device=self.device) < probability
        for modality, inputs in batch.inputs.items():
            unneeded = torch.tensor([modality not in self.families[f].required_modalities for f in batch.families])
            dropped = isolated & unneeded.to(self.device)
            batch = batch.with_entry_index(modality, inputs.entry_index.masked_fill(dropped, -1))
        return batch

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        _, logits = self._step(batch, "validation")
        self.metrics.update(logits, batch.targets["answer_scores"].argmax(dim=1))
        self.log_dict(self.metrics, batch_size=len(batch))
