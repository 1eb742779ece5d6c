"""A sequential router as parts: what it glances at, and one decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omni_lab.batch import NUM_MODALITIES, Modality
from omni_lab.compression.parts import ModelPart
from omni_lab.routing.glance import WIDTH, Glance, glance_at
from omni_lab.routing.sequential import NUM_LEVELS, RouterState, SequentialRouter


class _GlancePart(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, glance: Glance, modality: Modality) -> None:
        super().__init__()
        self.modality = modality
        rows = slice(modality.column * WIDTH, (modality.column + 1) * WIDTH)
        self.register_buffer("mean", glance.mean[rows].clone())
        self.register_buffer("std", glance.std[rows].clone())

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        if values.ndim == 3:  # a waveform, cut into tokens
            values, mask = values.flatten(1), mask.flatten(1)
        return (((glance_at(self.modality, values, mask) - self.mean) / self.std).clamp(-5, 5),)


class _DecidePart(nn.Module):
    """From the state of a router, apart by modality, to what it does most likely: the index of its action [B] (0 stops,
    then those of `SequentialRouter.actions`), and where it stops the levels [B, M] and open paths [B, L, P]."""

    def __init__(self, router: SequentialRouter) -> None:
        super().__init__()
        self.router = router
        _ = router.space.path_columns  # cached: not while the graph is traced

    def forward(
        self, question: Tensor, present: Tensor, asked: Tensor, ran: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        router, penalty = self.router, None
        if router.penalty_conditioned:
            penalty, *rest = rest  # type: ignore[assignment]
        modalities, glanced = router.space.modalities, router.glance.modalities
        seen: dict[Modality, Tensor] = dict(zip(glanced, rest[: len(glanced)], strict=True))
        found = dict(zip(modalities, rest[len(glanced) :], strict=True))
        here = present > 0.5
        nothing = torch.zeros_like(next(iter(seen.values())))
        glances = torch.stack([seen.get(m, nothing) for m in Modality], dim=1) * present[:, :, None]
        summaries = torch.stack([found.get(m, torch.zeros_like(question)) for m in Modality], dim=1)
        state = RouterState(question, here, asked > 0.5, glances, ran > 0.5, summaries)
        logits = router(state, penalty)
        levels, paths = router.space.project_decisions(state.levels, logits.path_logits > 0, here)
        return logits.action_logits.argmax(1), levels, paths


def split_sequential_router(
    router: SequentialRouter, examples: Mapping[Modality, tuple[Tensor, ...]]
) -> list[ModelPart]:
    """Its parts. examples: of raw values and masks, as those of the encoders' parts, by modality."""
    parts = []
    for m in router.glance.modalities:
        varies = m is not Modality.IMAGE
        parts.append(
            ModelPart(f"router.glance.{m}", _GlancePart(router.glance, m), m, examples[m], ("values", "mask"), varies)
        )
    dim = router.question_proj.in_features
    inputs: dict[str, Any] = {
        "question": torch.randn(2, dim),
        "present": torch.ones(2, NUM_MODALITIES),
        "asked": torch.eye(NUM_MODALITIES)[:2],
        "ran": torch.zeros(2, NUM_MODALITIES, NUM_LEVELS),
    }
    if router.penalty_conditioned:
        inputs["penalty"] = torch.rand(2)
    inputs |= {f"glance.{m}": torch.randn(2, WIDTH) for m in router.glance.modalities}
    inputs |= {f"summary.{m}": torch.randn(2, dim) for m in router.space.modalities}
    return [*parts, ModelPart("router.step", _DecidePart(router), None, (*inputs.values(),), (*inputs,))]
