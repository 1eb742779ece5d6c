from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.model import OmniModel
from omni_lab.routing.baselines import (
    StaticPolicy,
    StaticRoute,
    at_cost,
    build_static_policies,
    load_static_policies,
    matched_random,
    modality_subsets,
    oracle_choice,
    random_routes,
    save_static_policies,
    search_static_routes,
    shuffle_routes,
)
from omni_lab.routing.route import ComputeLevel, Route

TEXT, IMAGE, AUDIO, VIDEO = Modality


def presence(size: int = 400) -> torch.Tensor:
    present = torch.ones(size, 4, dtype=torch.bool)
    present[: size // 4, TEXT.column] = False  # spoken questions
    present[size // 2 :: 3, VIDEO.column] = False
    return present


def test_a_static_route_is_the_same_for_all_but_for_what_is_missing(routed: OmniModel) -> None:
    present, space = presence(), routed.space
    route = StaticRoute.unimodal(space, IMAGE).route(space, present)
    written = present[:, TEXT.column]
    assert len(route.select(written.nonzero().squeeze(1)).signature().unique(dim=0)) == 1
    encoded = route.encoder_levels > ComputeLevel.SKIP
    assert encoded[written].tolist() == [[True, True, False, False]] * int(written.sum())
    assert encoded[~written][:, [IMAGE.column, AUDIO.column]].all() and not encoded[~written][:, VIDEO.column].any()
    names = [str(p) for p in space.paths]
    assert space.path_mask(route)[written][0, 0].tolist() == [n == "text_from_image" for n in names]
    assert space.path_mask(route)[~written][0, 1].tolist() == [n == "audio_from_image" for n in names]
    dense = StaticRoute.dense(space).route(space, present)
    assert torch.equal(dense.signature(), space.dense(present).signature())


def test_the_static_search_finds_the_useful_path(routed: OmniModel) -> None:
    """Only the image, in layer 0, is of any use."""
    space = routed.space
    from_image = [str(p) for p in space.paths].index("text_from_image")

    def evaluate(route: StaticRoute) -> tuple[float, float]:
        levels = (route.encoder_levels[[IMAGE.column, AUDIO.column, VIDEO.column]] - 1).clamp(min=0).sum().item()
        useful = bool(route.path_mask[0, from_image]) and route.encoder_levels[IMAGE.column] == ComputeLevel.FULL
        return 0.9 if useful else 0.3, 0.01 + 0.1 * levels + 0.05 * route.path_mask.sum().item()

    front = search_static_routes(space, evaluate)
    assert [scored.cost for scored in front] == sorted((scored.cost for scored in front), reverse=True)
    assert front[-1].cost == pytest.approx(0.01), "down to nothing"
    best = max((scored for scored in front if scored.cost <= 0.3), key=lambda scored: scored.accuracy)
    levels, path_mask = best.static_route.encoder_levels, best.static_route.path_mask
    assert best.accuracy == 0.9 and path_mask.sum() == 1 and path_mask[0, from_image]
    assert levels[AUDIO.column] == levels[VIDEO.column] == ComputeLevel.SKIP
    assert max(scored.accuracy for scored in front if scored.cost <= 0.2) == 0.3

    present = presence()
    patterns = present.unique(dim=0)
    policies = build_static_policies(patterns, [front] * len(patterns))
    levels_run = [float(p.route(space, present).encoder_levels.float().mean()) for p in policies]
    assert len(policies) > 1 and levels_run == sorted(levels_run, reverse=True), "the higher the price, the less runs"
    cheapest = policies[-1].route(space, present)
    space.check(cheapest, present, [""] * len(present))
    assert (cheapest.encoder_levels > ComputeLevel.SKIP).sum() == len(present), (
        "what carries the question, and nothing else"
    )
    with pytest.raises(
        ValueError, match=r"no static route for samples with the modalities \[True, False, False, False\]"
    ):
        policies[0].route(space, torch.tensor([[True, False, False, False]]))


def test_a_static_policy_has_a_route_for_each_set_of_modalities(routed: OmniModel) -> None:
    space, present = routed.space, presence()
    patterns = present.unique(dim=0)
    routes = tuple(StaticRoute.unimodal(space, IMAGE) if p[TEXT.column] else StaticRoute.dense(space) for p in patterns)
    route = StaticPolicy(patterns, routes).route(space, present)
    written = present[:, TEXT.column]
    unimodal, dense = routes[-1].route(space, present), space.dense(present)
    for group, expected in ((written, unimodal), (~written, dense)):
        chosen = group.nonzero().squeeze(1)
        assert torch.equal(route.select(chosen).signature(), expected.select(chosen).signature())


def test_random_routes_run_with_the_given_probability(routed: OmniModel) -> None:
    present = torch.ones(4000, 4, dtype=torch.bool)
    route = random_routes(routed.space, present, 0.6, generator=torch.Generator().manual_seed(0))
    assert (route.encoder_levels[:, IMAGE.column] == ComputeLevel.FULL).float().mean().item() == pytest.approx(
        0.6, abs=0.03
    )
    names = [str(p) for p in routed.space.paths]
    rates = routed.space.path_mask(route).float().mean((0, 1))
    assert rates[names.index("text_from_image")].item() == pytest.approx(0.36, abs=0.03)


def test_matched_random_has_the_marginals_and_shuffled_the_routes(routed: OmniModel) -> None:
    space, present = routed.space, presence(4000)
    rng = torch.Generator().manual_seed(0)
    learned = space.sample(present, generator=rng)
    kinds = present.unique(dim=0)
    mixed, matched = (
        shuffle_routes(learned, present, generator=rng),
        matched_random(space, learned, present, generator=rng),
    )
    space.check(mixed, present, [""] * 4000)
    space.check(matched, present, [""] * 4000)
    for kind in kinds:
        of_kind = (present == kind).all(1)
        before, after = (r.select(of_kind.nonzero().squeeze(1)).signature() for r in (learned, mixed))
        assert sorted(before.tolist()) == sorted(after.tolist())
        assert (before != after).any()
        for level in ComputeLevel:
            rates = [(r.encoder_levels[of_kind] == level).float().mean(0) for r in (learned, matched)]
            assert (rates[0] - rates[1]).abs().max() < 0.06
    written = present[:, TEXT.column]
    rates = [space.path_mask(r)[written].float().mean(0) for r in (learned, matched)]
    heard = [i for i, path in enumerate(space.paths) if path.query is TEXT]
    assert (rates[0] - rates[1])[:, heard].abs().max() < 0.03, "paths from the question as often as before"


def test_the_oracle_takes_the_cheapest_right_route() -> None:
    correct = torch.tensor([[True, False, False], [True, True, False]])
    cost = 1e8 * torch.tensor([[0.9, 0.1, 0.5], [0.3, 0.7, 0.2]])
    assert oracle_choice(correct, cost).tolist() == [1, 1, 1]


def test_a_policy_of_a_given_cost_is_found(routed: OmniModel) -> None:
    space = routed.space
    present = torch.ones(500, 4, dtype=torch.bool)

    def make(share: float) -> Route:
        return random_routes(space, present, share, generator=torch.Generator().manual_seed(1))

    def cost(route: Route) -> float:
        return float(space.path_mask(route).float().mean())

    for target in (0.2, 0.6):
        assert cost(at_cost(make, cost, target)) == pytest.approx(target, abs=0.01)
    with pytest.raises(ValueError, match=r"no such policy costs 1\.500 of the dense cost: they cost 0\.000 to 1\.000"):
        at_cost(make, cost, 1.5)


def test_static_policies_are_read_back(routed: OmniModel, tmp_path: Path) -> None:
    subsets = modality_subsets(routed.space)
    patterns = torch.tensor([[True, True, True, True], [False, True, True, True]])
    policies = [StaticPolicy(patterns, (subsets[i], subsets[-1])) for i in (0, 1, 2)]
    save_static_policies(tmp_path / "policies.npz", policies)
    for saved, read in zip(policies, load_static_policies(tmp_path / "policies.npz"), strict=True):
        assert torch.equal(saved.patterns, read.patterns) and len(read.static_routes) == 2
        for one, other in zip(saved.static_routes, read.static_routes, strict=True):
            assert torch.equal(one.encoder_levels, other.encoder_levels)
            assert torch.equal(one.path_mask, other.path_mask)
