"""The model in parts says what the model says, and calls no part that the route closes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from omni_lab.batch import ComputeLevel, Modality, ModalityInput
from omni_lab.compression.parts import AssemblySpec, assemble_model, split_model
from omni_lab.model import OmniModel
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]
TEXT, IMAGE, AUDIO, VIDEO = Modality


class Runner:
    """Carries parts out as they are, and counts."""

    def __init__(self, model: OmniModel, batch: Any) -> None:
        self.parts = {part.name: part for part in split_model(model, batch)}
        self.calls: Counter[str] = Counter()

    def __call__(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls[name] += 1
        assert len(inputs) == len(self.parts[name].inputs)
        return self.parts[name].module(*inputs)


@pytest.mark.parametrize("seed", range(4))
def test_put_together_again_it_says_the_same(routed: OmniModel, make_batch: MakeBatch, seed: int) -> None:
    runner = Runner(routed, make_batch(2))
    whole = assemble_model(AssemblySpec.from_model(routed), runner)
    batch = make_batch(12, seed=seed, share=seed % 2 == 1, missing=0.3 * (seed > 1), lengths=True)
    route = routed.space.sample(batch.present, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        for chosen in (None, route):
            expected = routed(batch, route=chosen).head_outputs["answer"]
            assert torch.allclose(whole(batch, route=chosen).head_outputs["answer"], expected, atol=1e-5)
    assert set(runner.calls) <= set(runner.parts)


def test_a_closed_part_is_not_called(routed: OmniModel, make_batch: MakeBatch) -> None:
    runner, batch = Runner(routed, make_batch(2)), make_batch(5)
    whole, space = assemble_model(AssemblySpec.from_model(routed), runner), routed.space
    levels = torch.zeros(5, 4, dtype=torch.long)
    levels[:, IMAGE.column] = ComputeLevel.EARLY_EXIT
    opened = torch.zeros(5, space.depth, len(space.paths), dtype=torch.bool)
    to_picture = [p.query is TEXT and p.key is IMAGE for p in space.paths].index(True)
    opened[:, 1, to_picture] = True
    with torch.inference_mode():
        whole(batch, route=space.project(levels, opened, batch.present))
    assert {n for n in runner.calls if n.startswith(("encoder", "path"))} == {
        "encoder.text",
        "encoder.image.early_exit",
        "path.1.text_from_image",
    }


def test_every_weight_belongs_to_a_part(routed: OmniModel, make_batch: MakeBatch) -> None:
    parts = split_model(routed, make_batch(2))
    held = {id(weight) for part in parts for weight in part.module.parameters()}
    assert {name for name, weight in routed.named_parameters() if id(weight) not in held} == set()
    for part in parts:
        output = part.module(*part.example)
        assert isinstance(output, tuple) and len(output[0]) == len(part.example[0])
        assert len(part.inputs) == len(part.example)


def test_what_cannot_be_taken_apart_is_refused(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    with pytest.raises(ValueError, match="the batch has none of \\['audio'\\]"):
        split_model(routed, batch.without(AUDIO))
    tokens = ModalityInput(torch.randn(2, 64, 16), torch.ones(2, 64).bool(), torch.arange(2))
    with pytest.raises(ValueError, match="raw inputs .*\\['image'\\]"):
        split_model(routed, replace(batch, inputs={**batch.inputs, IMAGE: tokens}))
    with pytest.raises(ValueError, match="does not return attention weights"):
        assemble_model(AssemblySpec.from_model(routed), Runner(routed, batch))(batch, need_weights=True)
