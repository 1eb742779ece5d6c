"""Answers under a sequential router: what it skips is not computed, and what it finds is what the model finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omni_lab.batch import ComputeLevel, Modality, OmniBatch
from omni_lab.build import build_model
from omni_lab.evaluation.flops import build_cost_model, count_flops
from omni_lab.model import OmniModel
from omni_lab.rollout import BatchEncoders, answer_sequentially
from omni_lab.routing.route import RouteError
from omni_lab.routing.sequential import SequentialRouter
from tests.conftest import TINY_WORLD
from tests.routing.conftest import MakeBatch, make_batch, routed

TEXT, IMAGE, AUDIO, VIDEO = Modality
__all__ = ["make_batch", "routed"]


@pytest.fixture(scope="module")
def model() -> OmniModel:
    tiny = TINY_WORLD.model
    config = replace(
        tiny,
        vision=replace(tiny.vision, early_exit=True, tiny_channels=(4, 4, 4)),
        audio=replace(tiny.audio, early_exit=True, tiny_channels=(4, 4)),
        latent_bits=None,
    )
    torch.manual_seed(0)
    return build_model(config, vocab_size=50, answers=7).eval()


def make_router(model: OmniModel, seed: int = 0) -> SequentialRouter:
    torch.manual_seed(seed)
    router = SequentialRouter(model.space, dim=16, num_answers=7)
    for head in (router.action_head, router.path_head):
        torch.nn.init.normal_(head.weight, std=3.0)  # decisions that differ from sample to sample
    return router.eval()


@pytest.mark.parametrize("seed", range(6))
def test_the_answer_is_that_of_the_route(model: OmniModel, make_batch: MakeBatch, seed: int) -> None:
    """Whatever it looked at on the way."""
    batch = make_batch(12, seed=seed, missing=0.2, share=seed % 2 == 1)
    output, trajectory = answer_sequentially(model, make_router(model, seed), batch)
    assert trajectory.steps.unique().numel() > 1, "samples stop at different steps"
    expected = model(batch, heads=["answer"], route=trajectory.route)
    assert torch.allclose(output.head_outputs["answer"], expected.head_outputs["answer"], atol=1e-5)
    assert ((trajectory.confidence > 1 / 8) & (trajectory.confidence <= 1)).all()


@pytest.mark.parametrize("seed", range(6))
def test_it_costs_what_it_executes(model: OmniModel, make_batch: MakeBatch, seed: int) -> None:
    batch, router = make_batch(1, seed=seed), make_router(model, seed)
    costs, found = build_cost_model(model, frames=4), []
    executed = count_flops(lambda: found.append(answer_sequentially(model, router, batch)[1]))
    charged = costs.of_trajectory(
        model.space, found[0], costs.count_tokens(batch), step=router.step_flops, glances=torch.zeros(1)
    )
    assert executed == pytest.approx(charged.total.item(), rel=0.01)


def test_shared_inputs_are_encoded_once(model: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(6, share=True)
    encoders = BatchEncoders(model, batch, model.encode_questions(batch))
    first = encoders(torch.tensor([0, 1]), IMAGE, ComputeLevel.TINY)
    assert count_flops(lambda: encoders(torch.tensor([3, 4]), IMAGE, ComputeLevel.TINY)) == 0, "the same two pictures"
    assert torch.equal(encoders(torch.tensor([3]), IMAGE, ComputeLevel.TINY), first[:1])
    assert count_flops(lambda: encoders(torch.tensor([2]), IMAGE, ComputeLevel.TINY)) > 0


def test_what_is_absent_cannot_be_looked_at(model: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(3)
    without = batch.without(AUDIO)
    encoders = BatchEncoders(model, without, model.encode_questions(without))
    with pytest.raises(RouteError, match="sample '1' has no audio to encode"):
        encoders(torch.tensor([1]), AUDIO, ComputeLevel.FULL)
    some = make_batch(8, seed=3, missing=0.5)
    lacking = (~some.present[:, IMAGE.column]).nonzero()[0]
    with pytest.raises(RouteError, match=f"sample '{int(lacking)}' has no image to encode"):
        BatchEncoders(model, some, model.encode_questions(some))(lacking, IMAGE, ComputeLevel.TINY)


def test_a_black_picture_and_a_silent_sound_get_an_answer(model: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    blank = {
        m: replace(i, values=i.values if m is TEXT else torch.zeros_like(i.values)) for m, i in batch.inputs.items()
    }
    nothing: OmniBatch = replace(batch, inputs=blank)
    output, trajectory = answer_sequentially(model, make_router(model), nothing)
    assert output.head_outputs["answer"].isfinite().all() and trajectory.confidence.isfinite().all()


def test_another_action_space_is_refused(model: OmniModel, routed: OmniModel, make_batch: MakeBatch) -> None:
    with pytest.raises(ValueError, match="a router with the actions .* cannot route a model with"):
        answer_sequentially(routed, make_router(model), make_batch(2))
