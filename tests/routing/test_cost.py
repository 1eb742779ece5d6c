from __future__ import annotations

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.evaluation.flops import build_cost_model, count_flops
from omni_lab.model import OmniModel
from omni_lab.routing.cost import CostModel
from omni_lab.routing.route import ComputeLevel, CrossModalPath, RouteSpace
from tests.routing.conftest import MakeBatch

TEXT, IMAGE, AUDIO, VIDEO = Modality


@pytest.fixture(scope="module")
def costs(routed: OmniModel) -> CostModel:
    return build_cost_model(routed, frames=4)


def test_a_path_and_a_block_by_hand() -> None:
    tokens, d = torch.tensor([[3, 5, 0, 0]]), 16
    space = RouteSpace((TEXT, IMAGE), (CrossModalPath(TEXT, IMAGE),), depth=2)
    plain, gated = (CostModel(torch.zeros(4, 3, 3), d, 8, 2, gated, {}, 1) for gated in (False, True))
    macs = 3 * d * d + 2 * 5 * d * d + 2 * 3 * 5 * d + 3 * d * d
    assert plain.path_flops(space, tokens).tolist() == [[2 * macs]]
    assert gated.path_flops(space, tokens).tolist() == [[2 * (macs + 2 * d)]]
    block = 2 * (4 * 3 * d * d + 2 * 9 * d + 2 * 3 * d * 8)
    assert plain.block_flops(space, TEXT, tokens[:, 0]).item() == 2 * block, "two layers"
    assert plain.block_flops(space, IMAGE, tokens[:, 1]).item() == 0, "it attends to nothing"


def test_every_single_path_costs_what_it_executes(routed: OmniModel, make_batch: MakeBatch, costs: CostModel) -> None:
    batch = make_batch(1)
    levels = torch.full((1, 4), int(ComputeLevel.FULL))
    none = torch.zeros(1, 2, len(routed.space.paths), dtype=torch.bool)
    closed = routed.space.project(levels, none, batch.present)
    base = count_flops(lambda: routed(batch, route=closed))
    counts = costs.count_tokens(batch)
    for layer in range(2):
        for i, path in enumerate(routed.space.paths):
            one = none.clone()
            one[0, layer, i] = True
            route = routed.space.project(levels, one, batch.present)
            executed = count_flops(lambda route=route: routed(batch, route=route))
            assert executed - base == pytest.approx(costs(routed.space, route, counts).cross_modal.item(), rel=0.01), (
                path
            )
            assert executed == pytest.approx(costs(routed.space, route, counts).total.item(), rel=0.01), path


@pytest.mark.parametrize("seed", range(12))
def test_random_routes_cost_what_they_execute(
    routed: OmniModel, make_batch: MakeBatch, costs: CostModel, seed: int
) -> None:
    batch = make_batch(1 + seed % 3, seed=seed, missing=0.2)
    route = routed.space.sample(batch.present, generator=torch.Generator().manual_seed(seed))
    executed = count_flops(lambda: routed(batch, route=route))
    assert executed == pytest.approx(costs(routed.space, route, costs.count_tokens(batch)).total.sum().item(), rel=0.01)


def test_the_length_of_each_sample_counts(routed: OmniModel, make_batch: MakeBatch, costs: CostModel) -> None:
    batch = make_batch(8, lengths=True)
    counts = costs.count_tokens(batch)
    encoded = routed.encode(batch)
    for modality in Modality:
        assert counts[:, modality.column].tolist() == encoded[modality].sample_mask.sum(1).tolist()
    flops = costs(routed.space, routed.space.dense(batch.present), counts).total
    order = (counts[:, TEXT.column] + counts[:, AUDIO.column]).argsort()
    assert flops[order[0]] < flops[order[-1]]


def test_a_router_adds_its_own_cost(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    route = routed.space.dense(batch.present)
    plain, routed_costs = (build_cost_model(routed, frames=4, router_flops=flops) for flops in (0.0, 500.0))
    without, with_it = (c(routed.space, route, c.count_tokens(batch)) for c in (plain, routed_costs))
    assert (with_it.total - without.total).tolist() == pytest.approx([500.0, 500.0])
    assert with_it.router.tolist() == [500.0, 500.0]


def test_skipping_saves_and_an_early_exit_saves_less(costs: CostModel) -> None:
    n, levels = torch.tensor([6]), (ComputeLevel.SKIP, ComputeLevel.EARLY_EXIT, ComputeLevel.FULL)
    for modality in (IMAGE, AUDIO, VIDEO):
        skip, early, full = (costs.encoder_flops(modality, level, n).item() for level in levels)
        assert 0 == skip < early < full, modality
