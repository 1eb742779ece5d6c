"""Encoders, answer heads and routers of one's own, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.build import build_model, component_versions
from omni_lab.config.models import Component, ModelConfig, TextConfig, VisionConfig
from omni_lab.config.profiles import get_profile
from omni_lab.data.collate import Sample, collate
from omni_lab.evaluation.flops import build_cost_model, count_flops
from omni_lab.registry import ANSWER_HEADS, ENCODERS, ROUTERS, Registry
from omni_lab.routing.router import Router
from omni_lab.training.checkpoint import digest
from omni_lab.training.recipes import get_recipe
from omni_lab.training.router_recipes import build_router, get_router_recipe

IMAGE = Modality.IMAGE


class MeanColors(nn.Module):
    """Four tokens: the mean colour of each quarter."""

    image_size, grid = 16, (2, 2)

    def __init__(self, *, out_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.project = nn.Linear(3, out_dim)

    def forward(self, images: Tensor, mask: Tensor) -> Tokens:
        cells = nn.functional.adaptive_avg_pool2d(images / 255 * self.scale, self.grid).flatten(2).transpose(1, 2)
        values = self.project(cells)
        return Tokens(values, mask.expand(-1, values.shape[1]))


class NoGrid(nn.Module):
    """Lacks what routing reads of an encoder."""

    def __init__(self, *, out_dim: int) -> None:
        super().__init__()


class SumHead(nn.Module):
    """One linear layer on the sum of all means."""

    needs_context = False

    def __init__(self, *, modalities: Any, dim: int, num_answers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_answers)

    def forward(self, streams: Any, weights: Any = None) -> Tensor:
        return torch.stack([self.linear(tokens.mean_pool()) for tokens in streams.values()]).sum(0)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    parts = ((ENCODERS, "mean_colors", MeanColors), (ANSWER_HEADS, "sum", SumHead), (ROUTERS, "mine", Router))
    for registry, name, builder in parts:
        registry.register(name)(builder)
    yield
    for registry, name, _ in parts:
        registry._entries.pop(name)


def model_config(**options: Any) -> ModelConfig:
    tiny = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2, "patch_size": 4}
    return ModelConfig(
        dim=16,
        vision=VisionConfig(image_size=16, overrides=tiny),
        text=TextConfig(dim=8, depth=1, num_heads=1),
        encoders={IMAGE: Component("mean_colors", options)},
    )


def batch() -> Any:
    inputs = [
        {Modality.TEXT: torch.tensor([1, 2, 3]), IMAGE: torch.full((3, 16, 16), 40 * i, dtype=torch.uint8)}
        for i in range(3)
    ]
    return collate([Sample(str(i), "answer", "", given) for i, given in enumerate(inputs)])


def test_own_parts_are_built_run_and_counted() -> None:
    config = replace(model_config(scale=2.0), answer_head=Component("sum"))
    model = build_model(config, vocab_size=10, answers=4).eval()
    encoder: Any = model.encoders["image"]
    assert isinstance(encoder, MeanColors) and encoder.scale == 2.0
    questions = batch()
    assert model(questions).head_outputs["answer"].shape == (3, 4)
    assert [int(level) for level in model.space.allowed_levels(IMAGE)] == [0, 3]
    costs, route = build_cost_model(model), model.space.dense(questions.present)
    counted = count_flops(lambda: model(questions, route=route))
    assert costs(model.space, route, costs.count_tokens(questions)).total.sum() == pytest.approx(counted, rel=0.01)


def test_an_encoder_that_cannot_be_counted_is_named() -> None:
    ENCODERS.register("mean_colors")(NoGrid)
    model = build_model(model_config(), vocab_size=10, answers=4)
    with pytest.raises(
        ValueError, match=r"image encoder, a NoGrid, cannot be routed: it lacks .*\['image_size', 'grid'"
    ):
        build_cost_model(model)


def test_a_router_of_ones_own_is_a_recipe() -> None:
    profile = get_profile("smoke")
    network = get_recipe("easy_vqa", profile)
    recipe = get_router_recipe("group_0.2", profile, network=network, policy=Component("mine"))
    assert recipe.network is network and "group_0.2-mine" in str(recipe.folder)
    space = build_model(model_config(), vocab_size=10, answers=4).space
    assert type(build_router(recipe.router, space, dim=16)) is Router


def test_the_code_of_a_part_is_in_its_identity() -> None:
    config = model_config()
    before = component_versions(config)
    assert before.keys() == {"image"} and len(before["image"]) == 8
    ENCODERS.register("mean_colors", version="2")(MeanColors)
    assert component_versions(config) == {"image": "2"}
    assert component_versions(ModelConfig()) == {}
    assert digest({"model": replace(ModelConfig(), encoders={})}) == digest({"model": ModelConfig()})


def test_bad_names_and_options_are_told() -> None:
    with pytest.raises(ValueError, match="unknown encoder 'mean_color'; the nearest of .* is 'mean_colors'"):
        build_model(replace(model_config(), encoders={IMAGE: Component("mean_color")}), vocab_size=9, answers=2)
    with pytest.raises(
        ValueError, match="encoder 'mean_colors': got an unexpected keyword argument 'size'; a builder is"
    ):
        build_model(model_config(size=3), vocab_size=9, answers=2)
    namespace: dict[str, Any] = {}
    exec("def build(out_dim): ...", namespace)
    with pytest.raises(ValueError, match="the source of part 'made' cannot be read: pass version="):
        Registry("part", "").register("made")(namespace["build"])
