"""TODO"""

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
    """Trains a model as it will answer once it is exported: in the precision of `fake`, under the routes that its
    controller, in that precision too, decides on; with the chance `config.random_routes`, under random ones. The
    controller itself stays as it is.

    With a teacher, answers are to be as that says them in full (distillation, Hinton et al. 2015, section 2, at
    temperature one), and dense routes take the place of random ones, under which nobody can be as sure."""

    def __init__(
        self,
        model: OmniModel,
        controller: Router,
        fake: FakeQuantizer,
        config: TrainingConfig,
        *,
        answers: int,
        families: Mapping[str, QuestionFamily] = MappingProxyType({}),
        kept: Mapping[str, Tensor] = MappingProxyType({}),
        teacher: OmniModel | None = None,
        seed: int = 0,
    ) -> None:
        """kept: which weights of `model` are not pruned, by name."""
        super().__init__(model, config, answers=answers, families=families, seed=seed)
        self.fake = fake
        self.kept = kept
        self._teacher = () if teacher is None else (teacher.eval(),)
        self._still = (controller, *self._teacher)  # not trained, so not held as modules
        frame = AssemblySpec.from_model(model, controller.requires_grad_(False))
        self._carried: Any = (assemble_model(frame, fake.run), assemble_router(frame, fake.run))

    def forward(self, batch: OmniBatch, route: Route | None = None) -> Tensor:
        carried, controller = self._carried
        known = None
        if route is None:
            route, known = carried.select_route(controller, batch)
        return carried(batch, heads=["answer"], route=route, precomputed=known).head_outputs["answer"]

    def on_fit_start(self) -> None:
        for module in self._still:
            module.to(self.device)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        for teacher in self._teacher:
            with torch.no_grad():
                said = teacher(batch, heads=["answer"]).head_outputs["answer"].softmax(1)
            batch = replace(batch, targets={**batch.targets, "answer_scores": said})
        return super().training_step(batch, batch_idx)

    def alternative_route(self, batch: OmniBatch) -> Route:
        """What takes the place of the learned route now and then."""
        return self.model.space.dense(batch.present) if self._teacher else super().alternative_route(batch)

    def on_train_batch_end(self, *args: Any) -> None:
        apply_masks(self.model, self.kept)
