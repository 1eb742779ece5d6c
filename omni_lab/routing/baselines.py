"""What a learned policy must beat: policies that know the cost of a route, but not the question."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, Modality
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace


@dataclass(frozen=True)
class StaticRoute:
    """The same wish for every sample. levels: [M]. opened: [L, P]."""

    encoder_levels: Int[Tensor, " m"]
    path_mask: Bool[Tensor, "l p"]

    def route(self, space: RouteSpace, present: Bool[Tensor, "b m"]) -> Route:
        """What is legal of it for each sample."""
        size = len(present)
        levels, opened = self.encoder_levels.to(present.device), self.path_mask.to(present.device)
        return space.project(levels.expand(size, -1), opened.expand(size, -1, -1), present)

    @classmethod
    def dense(cls, space: RouteSpace) -> StaticRoute:
        full = torch.full((NUM_MODALITIES,), int(ComputeLevel.FULL))
        return cls(full, torch.ones(space.depth, len(space.paths), dtype=torch.bool))

    @classmethod
    def unimodal(cls, space: RouteSpace, modality: Modality) -> StaticRoute:
        """The question, one modality, and the paths from that one to whatever carries the question."""
        levels = torch.full((NUM_MODALITIES,), int(ComputeLevel.SKIP))
        levels[modality.column] = ComputeLevel.FULL
        heard = torch.tensor([path.key is modality for path in space.paths])
        return cls(levels, heard.expand(space.depth, -1).clone())

    def reductions(self, space: RouteSpace) -> list[StaticRoute]:
        """All plans that close one path more, or run one encoder a level lower."""
        plans = []
        for layer, i in self.path_mask.nonzero().tolist():
            opened = self.path_mask.clone()
            opened[layer, i] = False
            plans.append(replace(self, path_mask=opened))
        for modality in space.modalities:
            below = [level for level in space.allowed_levels(modality) if level < self.encoder_levels[modality.column]]
            if below:
                levels = self.encoder_levels.clone()
                levels[modality.column] = max(below)
                plans.append(StaticRoute(levels, self.path_mask))
        return plans


def modality_subsets(space: RouteSpace) -> list[StaticRoute]:
    """One plan for every set of modalities that are encoded beside the question, all paths between them open: from the
    question alone to everything."""
    plans = []
    for bits in itertools.product((ComputeLevel.SKIP, ComputeLevel.FULL), repeat=len(space.modalities)):
        levels = torch.full((NUM_MODALITIES,), int(ComputeLevel.SKIP))
        for modality, level in zip(space.modalities, bits, strict=True):
            levels[modality.column] = int(level)
        if Modality.TEXT not in space.modalities or levels[Modality.TEXT.column] == ComputeLevel.FULL:
            plans.append(StaticRoute(levels, torch.ones(space.depth, len(space.paths), dtype=torch.bool)))
    return plans


class ScoredStaticRoute(NamedTuple):
    """A plan and what it came to on the split it was searched on. cost: a share of the dense cost."""

    static_route: StaticRoute
    accuracy: float
    cost: float


def search_static_routes(
    space: RouteSpace, judge: Callable[[StaticRoute], tuple[float, float]]
) -> list[ScoredStaticRoute]:
    """Plans found by taking away, from everything down to nothing, each time what costs least accuracy per cost saved;
    and all `subsets`. judge: plan -> (accuracy, cost), on a validation split. Dearest first."""
    current = ScoredStaticRoute(StaticRoute.dense(space), *judge(StaticRoute.dense(space)))
    found = [current, *(ScoredStaticRoute(plan, *judge(plan)) for plan in modality_subsets(space))]
    while True:
        known = current
        tried = [ScoredStaticRoute(plan, *judge(plan)) for plan in known.static_route.reductions(space)]
        free = [t for t in tried if t.cost >= known.cost - 1e-9]  # a path between modalities that never meet
        if free:
            current = max(free, key=lambda t: t.accuracy)
        elif tried:
            current = max(tried, key=lambda t: (t.accuracy - known.accuracy) / (known.cost - t.cost))
        else:
            return sorted(found, key=lambda t: -t.cost)
        found.append(current)


@dataclass(frozen=True)
class StaticPolicy:
    """A plan for every set of modalities that samples come with, whatever they ask. patterns: [K, M]. plans: K."""

    patterns: Bool[Tensor, "k m"]
    plans: tuple[StaticRoute, ...]

    def route(self, space: RouteSpace, present: Bool[Tensor, "b m"]) -> Route:
        """Raises ValueError for samples with modalities that there is no plan for."""
        everything = space.dense(present)
        levels, interactions = everything.encoder_levels, everything.interaction_mask
        known = torch.zeros(len(present), dtype=torch.bool)
        for pattern, plan in zip(self.patterns, self.plans, strict=True):
            mine = (present == pattern).all(dim=1)
            route = plan.route(space, present[mine])
            levels[mine], interactions[mine] = route.encoder_levels, route.interaction_mask
            known |= mine
        if not known.all():
            raise ValueError(
                f"no plan for samples with the modalities {present[~known][0].tolist()} (of {[*Modality]})"
            )
        return Route(levels, interactions)


def build_static_policies(
    patterns: Bool[Tensor, "k m"], fronts: Sequence[Sequence[ScoredStaticRoute]], *, count: int = 12
) -> list[StaticPolicy]:
    """From plans judged for each pattern apart, the policies that are best if a unit of cost is worth so much accuracy,
    for `count` prices from nothing to more than anything is worth. A cost is a share of the mean dense cost of all
    samples."""
    policies: dict[tuple[int, ...], StaticPolicy] = {}
    for price in [0.0, *torch.logspace(-2, 1, count - 1).tolist()]:
        worth = [[judged.accuracy - price * judged.cost for judged in front] for front in fronts]
        chosen = [each.index(max(each)) for each in worth]
        policies[tuple(chosen)] = StaticPolicy(
            patterns, tuple(f[i].static_route for f, i in zip(fronts, chosen, strict=True))
        )
    return [*policies.values()]


def best_within(points: Sequence[tuple[float, float]], budget: float) -> int:
    """Which of the points (cost, accuracy) is the most accurate of at most that cost. Raises ValueError where none is
    so cheap."""
    cheap = [i for i, (cost, _) in enumerate(points) if cost <= budget]
    if not cheap:
        least = min(cost for cost, _ in points)
        raise ValueError(f"no policy costs at most {budget:.3f} of the dense cost: the cheapest costs {least:.3f}")
    return max(cheap, key=lambda i: points[i][1])


def random_routes(
    space: RouteSpace, present: Bool[Tensor, "b m"], share: float, *, generator: torch.Generator
) -> Route:
    """Every encoder runs in full, or not at all, and every path is open, with the same chance."""
    size = len(present)
    levels = torch.where(
        torch.rand(size, NUM_MODALITIES, generator=generator) < share, int(ComputeLevel.FULL), int(ComputeLevel.SKIP)
    )
    opened = torch.rand(size, space.depth, len(space.paths), generator=generator) < share
    return space.project(levels, opened, present)


def at_cost(make: Callable[[float], Route], cost: Callable[[Route], float], target: float) -> Route:
    """The routes of a family of policies that cost `target`, found by bisection. make: a share between 0 and 1 ->
    routes that cost the more, the larger it is. Raises ValueError if none is so cheap, or so dear."""
    low, high = 0.0, 1.0
    least, most = cost(make(low)), cost(make(high))
    if not least <= target <= most:
        raise ValueError(f"no such policy costs {target:.3f} of the dense cost: they cost {least:.3f} to {most:.3f}")
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(make(middle)) < target else (low, middle)
    return make((low + high) / 2)


def matched_random(
    space: RouteSpace, learned: Route, present: Bool[Tensor, "b m"], *, generator: torch.Generator
) -> Route:
    """Each decision drawn by itself, among samples with the same modalities: a level as often as the learned policy
    takes it, a path as often as it is open there where both its ends are encoded. Its marginals without its knowledge.
    """

    def draw(samples: Tensor, size: int) -> Tensor:
        return samples[torch.randint(len(samples), (size,), generator=generator)]

    levels, opened, known = (
        learned.encoder_levels.clone(),
        torch.zeros_like(space.path_mask(learned)),
        space.path_mask(learned),
    )
    encoded = learned.encoder_levels > ComputeLevel.SKIP
    for samples in group_by_presence(present):
        for modality in Modality:
            levels[samples, modality.column] = learned.encoder_levels[draw(samples, len(samples)), modality.column]
        for i, path in enumerate(space.paths):
            both = samples[encoded[samples, path.query.column] & encoded[samples, path.key.column]]
            for layer in range(space.depth if len(both) else 0):
                opened[samples, layer, i] = known[draw(both, len(samples)), layer, i]
    return space.project(levels, opened, present)


def shuffle_routes(learned: Route, present: Bool[Tensor, "b m"], *, generator: torch.Generator) -> Route:
    """Each sample takes the route of another with the same modalities: the same routes, the same cost but for lengths,
    not meant for it."""
    order = torch.arange(len(learned))
    for samples in group_by_presence(present):
        order[samples] = samples[torch.randperm(len(samples), generator=generator)]
    return learned.select(order)


def group_by_presence(present: Bool[Tensor, "b m"]) -> list[Int[Tensor, " s"]]:
    """The samples, by which modalities they have."""
    _, kinds = present.unique(dim=0, return_inverse=True)
    return [(kinds == kind).nonzero().squeeze(1) for kind in range(int(kinds.max()) + 1)]


def oracle_choice(correct: Bool[Tensor, "r b"], cost: Float[Tensor, "r b"]) -> Int[Tensor, " b"]:
    """The oracle's choice among R routes tried for each sample: the cheapest that is right; where none is, the
    cheapest of all. It knows the answer (and takes a lucky guess for knowledge): a bound for who chooses among these
    routes, not a policy."""
    dear = torch.where(correct, cost, torch.inf)
    return torch.where(correct.any(0), dear.argmin(0), cost.argmin(0))
