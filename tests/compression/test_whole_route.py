"""A route as one module answers as the model does under that route."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from omni_lab.batch import OmniBatch
from omni_lab.compression.export import route_signatures
from omni_lab.compression.graphs import ExportError
from omni_lab.compression.litert import missing_packages
from omni_lab.compression.whole_route import RouteModule, compile_route
from omni_lab.model import OmniModel
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]


def made(model: OmniModel, batch: OmniBatch, seed: int) -> tuple[RouteModule, torch.Tensor, int]:
    """The module of a random route, the answers under it, and how many paths it opens. Without latents, which make
    large differences of tiny ones."""
    model = copy.copy(model)
    model.latent_bits = None
    route = model.space.sample(batch.present[:1], generator=torch.Generator().manual_seed(seed))
    route = route.select(torch.zeros(len(batch), dtype=torch.long))
    with torch.inference_mode():
        expected = model(batch, heads=["answer"], route=route).head_outputs["answer"]
    signature = route_signatures(route, model.space)[0]
    return RouteModule(model, signature), expected, len(signature.paths)


@pytest.mark.parametrize("seed", range(6))
def test_it_answers_as_the_model_under_that_route(routed: OmniModel, make_batch: MakeBatch, seed: int) -> None:
    batch = make_batch(3, seed=seed)
    module, expected, opened = made(routed, batch, seed)
    with torch.inference_mode():
        found = module(*module.inputs(batch))
    assert torch.allclose(found, expected, atol=1e-4)
    paths = [path for layer in module.model.fusion.layers for path in layer.paths]  # type: ignore[union-attr, misc]
    assert len(paths) == opened and routed.space.pruned_paths == (), "a copy, with open paths alone"


def test_what_cannot_be_compiled_is_said(routed: OmniModel, make_batch: MakeBatch, tmp_path: Path) -> None:
    module, *_ = made(routed, make_batch(1), 0)
    inputs = module.inputs(make_batch(1))
    with pytest.raises(ValueError, match=r"compiler must be one of \('AOTInductor', .*: got 'gcc'"):
        compile_route(module, inputs, "gcc", tmp_path)
    if importlib.util.find_spec("openvino") is None:
        with pytest.raises(ExportError, match="OpenVINO is not installed"):
            compile_route(module, inputs, "OpenVINO", tmp_path)
    if missing_packages():
        with pytest.raises(ExportError, match="LiteRT files need"):
            compile_route(module, inputs, "LiteRT", tmp_path)
    with pytest.raises(ExportError, match="torch.compile cannot compile this route"):
        compile_route(module, inputs[:-1], "torch.compile", tmp_path)
