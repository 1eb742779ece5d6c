"""LitQAT: quantization-aware training of a model together with the router that decides on its routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from omni_lab.batch import OmniBatch
from omni_lab.compression.fake_quant import FakeQuantizer
from omni_lab.compression.parts import AssemblySpec, assemble_model, assemble_router
from omni_lab.compression.pruning import apply_masks
from omni_lab.config.schema import TrainingConfig
from omni_lab.data.sources.base import QuestionFamily
from omni_lab.lightning_modules.vqa import LitVQA
from omni_lab.model import OmniModel
from omni_lab.routing.route import Route
from omni_lab.routing.router import Router


class LitQAT(LitVQA):
    """Trains a model as it will run once exported: in the precision of `fake`, under the routes of its frozen router,
    which runs in that precision too, and with probability `config.random_route_prob` under random routes.

    With a teacher, the targets are the teacher's probabilities in full precision (distillation, Hinton et al. 2015,
    section 2, at temperature one). Dense routes then replace random ones, under which no model can be as certain.
    """

    def __init__(
        self,
        model: OmniModel,
        router: Router,
        fake: FakeQuantizer,
        config: TrainingConfig,
        *,
        answers: int,
        families: Mapping[str, QuestionFamily] = MappingProxyType({}),
        masks: Mapping[str, Tensor] = MappingProxyType({}),
        teacher: OmniModel | None = None,
        seed: int = 0,
    ) -> None:
        """masks: by name of a weight of `model`, True where it is not pruned. Other arguments: see `LitVQA`."""
        super().__init__(model, config, answers=answers, families=families, seed=seed)
        self.fake = fake
        self.masks = masks
        self._teacher = () if teacher is None else (teacher.eval(),)
        self._frozen = (router, *self._teacher)  # in a tuple, so that they are no submodules
        spec = AssemblySpec.from_model(model, router.requires_grad_(False))
        self._assembled: Any = (assemble_model(spec, fake.run), assemble_router(spec, fake.run))

    def forward(self, batch: OmniBatch, route: Route | None = None) -> Tensor:
        model, router = self._assembled
        precomputed = None
        if route is None:
            route, precomputed = model.select_route(router, batch)
        return model(batch, heads=["answer"], route=route, precomputed=precomputed).head_outputs["answer"]

    def on_fit_start(self) -> None:
        for module in self._frozen:
            module.to(self.device)

    def on_fit_end(self) -> None:
        for module in self._frozen:
            module.cpu()

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        for teacher in self._teacher:
            with torch.no_grad():
                soft_targets = teacher(batch, heads=["answer"]).head_outputs["answer"].softmax(1)
            batch = replace(batch, targets={**batch.targets, "answer_scores": soft_targets})
        return super().training_step(batch, batch_idx)

    def alternative_route(self, batch: OmniBatch) -> Route:
        """Dense with a teacher, else random."""
        return self.model.space.dense(batch.present) if self._teacher else super().alternative_route(batch)

    def on_train_batch_end(self, *args: Any) -> None:
        apply_masks(self.model, self.masks)
