"""Baselines for a learned router: policies that know the cost of a route but not the question, and the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, Modality
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace


@dataclass(frozen=True)
class StaticRoute:
    """The same decisions for every sample, whatever it asks."""

    encoder_levels: Int[Tensor, " m"]
    path_mask: Bool[Tensor, "l p"]

    def route(self, space: RouteSpace, present: Bool[Tensor, "b m"]) -> Route:
        """The nearest legal route of each sample."""
        levels, path_mask = self.encoder_levels.to(present.device), self.path_mask.to(present.device)
        return space.project(levels.expand(len(present), -1), path_mask.expand(len(present), -1, -1), present)

    @classmethod
    def from_modalities(cls, space: RouteSpace, modalities: Sequence[Modality]) -> StaticRoute:
        """These modalities in full, and all paths; paths of modalities that are not encoded never run."""
        levels = torch.full((NUM_MODALITIES,), int(ComputeLevel.SKIP))
        levels[[m.column for m in modalities]] = int(ComputeLevel.FULL)
        return cls(levels, torch.ones(space.depth, len(space.paths), dtype=torch.bool))

    @classmethod
    def dense(cls, space: RouteSpace) -> StaticRoute:
        return cls.from_modalities(space, list(Modality))

    @classmethod
    def unimodal(cls, space: RouteSpace, modality: Modality) -> StaticRoute:
        """The question, one modality, and the paths by which others attend to that modality."""
        attends = torch.tensor([path.key is modality for path in space.paths])
        return replace(cls.from_modalities(space, [modality]), path_mask=attends.expand(space.depth, -1).clone())

    def reductions(self, space: RouteSpace) -> list[StaticRoute]:
        """All static routes with one path less, or with one encoder a level lower."""
        reduced = []
        for layer, i in self.path_mask.nonzero().tolist():
            path_mask = self.path_mask.clone()
            path_mask[layer, i] = False
            reduced.append(replace(self, path_mask=path_mask))
        for modality in space.modalities:
            lower = [level for level in space.allowed_levels(modality) if level < self.encoder_levels[modality.column]]
            if lower:
                levels = self.encoder_levels.clone()
                levels[modality.column] = max(lower)
                reduced.append(replace(self, encoder_levels=levels))
        return reduced


def modality_subsets(space: RouteSpace) -> list[StaticRoute]:
    """A static route for every set of modalities beside the question, from the question alone to everything."""
    subsets = []
    for encoded in itertools.product((False, True), repeat=len(space.modalities)):
        subset = list(itertools.compress(space.modalities, encoded))
        if Modality.TEXT not in space.modalities or Modality.TEXT in subset:
            subsets.append(StaticRoute.from_modalities(space, subset))
    return subsets


class ScoredStaticRoute(NamedTuple):
    """A static route with its accuracy and cost on a validation split. cost: fraction of the dense cost."""

    static_route: StaticRoute
    accuracy: float
    cost: float


def search_static_routes(
    space: RouteSpace, evaluate: Callable[[StaticRoute], tuple[float, float]]
) -> list[ScoredStaticRoute]:
    """Greedy backward elimination from everything to nothing, plus all `modality_subsets`; the most expensive first.

    Each step takes the reduction that loses the least accuracy per cost saved.
    evaluate: static route -> (accuracy, cost) on a validation split.
    """
    current = ScoredStaticRoute(StaticRoute.dense(space), *evaluate(StaticRoute.dense(space)))
    found = [current, *(ScoredStaticRoute(route, *evaluate(route)) for route in modality_subsets(space))]
    while True:
        last = current
        tried = [ScoredStaticRoute(route, *evaluate(route)) for route in last.static_route.reductions(space)]
        free = [t for t in tried if t.cost >= last.cost - 1e-9]  # a path between modalities that never meet
        if free:
            current = max(free, key=lambda t: t.accuracy)
        elif tried:
            current = max(tried, key=lambda t: (t.accuracy - last.accuracy) / (last.cost - t.cost))
        else:
            return sorted(found, key=lambda t: -t.cost)
        found.append(current)


@dataclass(frozen=True)
class StaticPolicy:
    """One static route for each set of modalities that samples come with. patterns: those sets, as presence."""

    patterns: Bool[Tensor, "k m"]
    static_routes: tuple[StaticRoute, ...]

    def route(self, space: RouteSpace, present: Bool[Tensor, "b m"]) -> Route:
        """Raises ValueError for samples whose set of modalities has no static route."""
        dense = space.dense(present)
        levels, interactions = dense.encoder_levels, dense.interaction_mask
        matched = torch.zeros(len(present), dtype=torch.bool)
        for pattern, static_route in zip(self.patterns, self.static_routes, strict=True):
            same = (present == pattern).all(dim=1)
            route = static_route.route(space, present[same])
            levels[same], interactions[same] = route.encoder_levels, route.interaction_mask
            matched |= same
        if not matched.all():
            missing = present[~matched][0].tolist()
            raise ValueError(f"no static route for samples with the modalities {missing} (of {[*Modality]})")
        return Route(levels, interactions)


def build_static_policies(
    patterns: Bool[Tensor, "k m"], fronts: Sequence[Sequence[ScoredStaticRoute]], *, count: int = 12
) -> list[StaticPolicy]:
    """The policies that maximise accuracy - price x cost, for `count` prices from 0 to 10; duplicates are dropped.

    fronts: per pattern, static routes scored on its samples alone; costs are fractions of the mean dense cost of all.
    """
    policies: dict[tuple[int, ...], StaticPolicy] = {}
    for price in [0.0, *torch.logspace(-2, 1, count - 1).tolist()]:
        values = [[scored.accuracy - price * scored.cost for scored in front] for front in fronts]
        best = tuple(each.index(max(each)) for each in values)
        routes = tuple(front[i].static_route for front, i in zip(fronts, best, strict=True))
        policies[best] = StaticPolicy(patterns, routes)
    return [*policies.values()]


def save_static_policies(file: Path, policies: Sequence[StaticPolicy]) -> None:
    """Writes policies, all with the same patterns, for `numpy.load`."""
    routes = [policy.static_routes for policy in policies]
    levels = np.stack([[route.encoder_levels.numpy() for route in few] for few in routes])
    masks = np.stack([[route.path_mask.numpy() for route in few] for few in routes])
    np.savez_compressed(file, patterns=policies[0].patterns.numpy(), levels=levels, masks=masks)


def load_static_policies(file: Path) -> list[StaticPolicy]:
    """Reads what `save_static_policies` wrote."""
    with np.load(file) as archive:
        patterns, levels, masks = (torch.from_numpy(archive[name]) for name in ("patterns", "levels", "masks"))
    return [StaticPolicy(patterns, tuple(map(StaticRoute, *pair))) for pair in zip(levels, masks, strict=True)]


def random_routes(space: RouteSpace, present: Bool[Tensor, "b m"], prob: float, *, generator: torch.Generator) -> Route:
    """Every encoder runs in full, else not at all, and every path runs, with probability `prob`."""
    encoded = torch.rand(len(present), NUM_MODALITIES, generator=generator) < prob
    path_mask = torch.rand(len(present), space.depth, len(space.paths), generator=generator) < prob
    levels = torch.where(encoded, int(ComputeLevel.FULL), int(ComputeLevel.SKIP))
    return space.project(levels, path_mask, present)


def at_cost(make_routes: Callable[[float], Route], cost: Callable[[Route], float], target: float) -> Route:
    """The routes of a family of policies that cost `target`, by bisection.

    make_routes: a parameter in [0, 1] -> routes whose cost grows with it. Raises ValueError for an unreachable target.
    """
    low, high = 0.0, 1.0
    least, most = cost(make_routes(low)), cost(make_routes(high))
    if not least <= target <= most:
        raise ValueError(f"no such policy costs {target:.3f} of the dense cost: they cost {least:.3f} to {most:.3f}")
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(make_routes(middle)) < target else (low, middle)
    return make_routes((low + high) / 2)


def matched_random(
    space: RouteSpace, learned: Route, present: Bool[Tensor, "b m"], *, generator: torch.Generator
) -> Route:
    """Each decision resampled on its own from samples with the same modalities (a path from those where both its ends
    are encoded): the marginals of a learned policy without its dependence on the question."""

    def resample(samples: Tensor, size: int) -> Tensor:
        return samples[torch.randint(len(samples), (size,), generator=generator)]

    levels, learned_mask = learned.encoder_levels.clone(), space.path_mask(learned)
    path_mask = torch.zeros_like(learned_mask)
    encoded = learned.encoder_levels > ComputeLevel.SKIP
    for samples in group_by_presence(present):
        for modality in Modality:
            levels[samples, modality.column] = learned.encoder_levels[resample(samples, len(samples)), modality.column]
        for i, path in enumerate(space.paths):
            both = samples[encoded[samples, path.query.column] & encoded[samples, path.key.column]]
            for layer in range(space.depth if len(both) else 0):
                path_mask[samples, layer, i] = learned_mask[resample(both, len(samples)), layer, i]
    return space.project(levels, path_mask, present)


def shuffle_routes(learned: Route, present: Bool[Tensor, "b m"], *, generator: torch.Generator) -> Route:
    """The learned routes, permuted among samples with the same modalities: equal cost, but for token counts."""
    order = torch.arange(len(learned))
    for samples in group_by_presence(present):
        order[samples] = samples[torch.randperm(len(samples), generator=generator)]
    return learned.select(order)


def group_by_presence(present: Bool[Tensor, "b m"]) -> list[Int[Tensor, " s"]]:
    """The indices of the samples of each set of modalities."""
    _, group = present.unique(dim=0, return_inverse=True)
    return [(group == i).nonzero().squeeze(1) for i in range(int(group.max()) + 1)]


def oracle_choice(correct: Bool[Tensor, "r b"], cost: Float[Tensor, "r b"]) -> Int[Tensor, " b"]:
    """Per sample, the cheapest of R routes whose answer is correct; without one, the cheapest of all. It knows the
    answer, and counts lucky guesses: an upper bound for routers over these routes, not a policy."""
    cost_if_correct = torch.where(correct, cost, torch.inf)
    return torch.where(correct.any(0), cost_if_correct.argmin(0), cost.argmin(0))
