from __future__ import annotations

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.model import OmniModel
from omni_lab.routing.baselines import (
    StaticPolicy,
    StaticRoute,
    at_cost,
    best_within,
    build_static_policies,
    matched_random,
    oracle_choice,
    random_routes,
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


def test_a_plan_is_the_same_for_all_but_for_what_is_missing(routed: OmniModel) -> None:
    present, space = presence(), routed.space
    route = StaticRoute.unimodal(space, IMAGE).route(space, present)
    written = present[:, TEXT.column]
    assert len(route.select(written.nonzero().squeeze(1)).signature().unique(dim=0)) == 1
    used = route.encoder_levels > ComputeLevel.SKIP
    assert used[written].tolist() == [[True, True, False, False]] * int(written.sum())
    assert used[~written][:, [IMAGE.column, AUDIO.column]].all() and not used[~written][:, VIDEO.column].any()
    names = [str(p) for p in space.paths]
    assert space.path_mask(route)[written][0, 0].tolist() == [n == "text_from_image" for n in names]
    assert space.path_mask(route)[~written][0, 1].tolist() == [n == "audio_from_image" for n in names]
    dense = StaticRoute.dense(space).route(space, present)
    assert torch.equal(dense.signature(), space.dense(present).signature())


def test_the_static_search_finds_what_is_worth_its_cost(routed: OmniModel) -> None:
    """Only the picture, in layer 0, is worth anything; the search is told so by a judge."""
    space = routed.space
    worth = [str(p) for p in space.paths].index("text_from_image")

    def judge(plan: StaticRoute) -> tuple[float, float]:
        levels = plan.encoder_levels[[IMAGE.column, AUDIO.column, VIDEO.column]].sum().item()
        useful = bool(plan.path_mask[0, worth]) and plan.encoder_levels[IMAGE.column] == ComputeLevel.FULL
        return 0.9 if useful else 0.3, 0.01 + 0.1 * levels + 0.05 * plan.path_mask.sum().item()

    front = search_static_routes(space, judge)
    assert [j.cost for j in front] == sorted((j.cost for j in front), reverse=True)
    points = [(j.cost, j.accuracy) for j in front]
    best = front[best_within(points, 0.3)]
    assert best.accuracy == 0.9 and best.static_route.path_mask.sum() == 1 and best.static_route.path_mask[0, worth]
    assert (
        best.static_route.encoder_levels[AUDIO.column]
        == best.static_route.encoder_levels[VIDEO.column]
        == ComputeLevel.SKIP
    )
    assert front[best_within(points, 0.2)].accuracy == 0.3
    with pytest.raises(ValueError, match=r"no policy costs at most 0.001 .*: the cheapest costs 0.010"):
        best_within(points, 0.001)

    present = presence()
    patterns = present.unique(dim=0)
    policies = build_static_policies(patterns, [front] * len(patterns))
    spent = [float(p.route(space, present).encoder_levels.float().mean()) for p in policies]
    assert len(policies) > 1 and spent == sorted(spent, reverse=True), "the dearer a cost, the less is run"
    cheapest = policies[-1].route(space, present)
    space.check(cheapest, present, [""] * len(present))
    assert (cheapest.encoder_levels > ComputeLevel.SKIP).sum() == len(present), (
        "what carries the question, and nothing else"
    )
    with pytest.raises(ValueError, match=r"no plan for samples with the modalities \[True, False, False, False\]"):
        policies[0].route(space, torch.tensor([[True, False, False, False]]))


def test_a_static_policy_has_a_plan_for_each_set_of_modalities(routed: OmniModel) -> None:
    space, present = routed.space, presence()
    patterns = present.unique(dim=0)
    plans = tuple(StaticRoute.unimodal(space, IMAGE) if p[TEXT.column] else StaticRoute.dense(space) for p in patterns)
    route = StaticPolicy(patterns, plans).route(space, present)
    written = present[:, TEXT.column]
    looking, everything = plans[-1].route(space, present), space.dense(present)
    for mine, expected in ((written, looking), (~written, everything)):
        chosen = mine.nonzero().squeeze(1)
        assert torch.equal(route.select(chosen).signature(), expected.select(chosen).signature())


def test_random_routes_are_open_as_often_as_asked(routed: OmniModel) -> None:
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
