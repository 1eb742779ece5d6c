"""A tiny routed model, exported once in every precision."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from omni_lab.compression.export import Exporter
from omni_lab.compression.parts import AssemblySpec, ModelPart, split_model, split_router
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from tests.routing.conftest import MakeBatch, make_batch
from tests.routing.conftest import routed as with_latents

__all__ = ["make_batch", "with_latents"]
ANSWERS = [f"answer {i}" for i in range(7)]
POLICIES = [*map(PrecisionPolicy.uniform, Precision), PrecisionPolicy.mixed()]


@pytest.fixture(scope="session")
def routed(with_latents: OmniModel) -> OmniModel:
    """Without rounding between encoders and fusion, which makes large differences of tiny ones."""
    exact = copy.copy(with_latents)
    exact.latent_bits = None
    return exact


@pytest.fixture(scope="session")
def router(routed: OmniModel) -> Router:
    torch.manual_seed(1)
    made = Router(routed.space, dim=16, hidden_dim=16, penalty_conditioned=True).eval()
    nn.init.normal_(made.logit_head.weight, std=0.5)
    nn.init.normal_(made.penalty_gain.weight, std=0.5)
    made.costs.copy_(torch.linspace(0.9, 0.1, len(made.costs)))
    return made


@pytest.fixture(scope="session")
def parts(routed: OmniModel, router: Router, make_batch: MakeBatch) -> list[ModelPart]:
    return [*split_model(routed, make_batch(2)), *split_router(router)]


@pytest.fixture(scope="session")
def exporter() -> Exporter:
    return Exporter()


@pytest.fixture(scope="session")
def written(
    exporter: Exporter,
    parts: list[ModelPart],
    routed: OmniModel,
    router: Router,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folders, spec = {}, AssemblySpec.from_model(routed, router)
    for policy in POLICIES:
        folders[policy.name] = tmp_path_factory.mktemp("exported") / policy.name
        exporter.write(folders[policy.name], parts, spec, policy=policy, source="abc", answers=ANSWERS, router=router)
    return folders
