"""Accuracy against cost: fronts, hypervolumes, and how sure one can be that one policy is better than another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from omni_lab.metrics.bootstrap import Estimate

Point = tuple[float, float]  # cost, accuracy


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both: cheapest first, accuracy rising."""
    front: list[Point] = []
    for cost, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that the front of `points` dominates, down to `reference` (cost, accuracy): the dearest and the least
    accurate that counts (Zitzler and Thiele 1999). Points beyond it add nothing."""
    area, (worst_cost, floor) = 0.0, reference
    kept = [(cost, accuracy) for cost, accuracy in pareto_front(points) if cost < worst_cost and accuracy > floor]
    for i, (cost, accuracy) in enumerate(kept):
        until = kept[i + 1][0] if i + 1 < len(kept) else worst_cost
        area += (until - cost) * (accuracy - floor)
    return area


def paired_difference(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0
) -> Estimate:
    """Mean of first - second over seeds and samples, both [S, n]: seed s of the one is paired with seed s of the other,
    sample with sample. The bootstrap draws seeds, and groups of samples (questions about one scene belong together),
    with replacement (the two-way cluster bootstrap; Owen and Eckles 2012)."""
    if first.shape != second.shape or first.ndim != 2 or len(groups) != first.shape[1]:
        raise ValueError(
            f"both must be [seeds, samples], with a group for each sample: got {first.shape}, {second.shape} and "
            f"{len(groups)} groups"
        )
    difference = first - second
    sums, sizes = _by_group(difference, groups), _by_group(np.ones(len(groups)), groups)
    means = [
        (sums[seeds].mean(0) * drawn).sum() / (sizes * drawn).sum()
        for seeds, drawn in _resamples(len(sums), len(sizes), resamples, seed)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(difference.mean()), float(low), float(high))


class Policies(NamedTuple):
    """K policies of one kind (a penalty or a budget each), S seeds, n samples. total, correct: [S, K, n]: FLOPs, and
    1 where the answer was right."""

    flops: np.ndarray
    correct: np.ndarray


def hypervolume_difference(
    first: Policies,
    second: Policies,
    dense_total: np.ndarray,
    groups: np.ndarray,
    reference: Point,
    *,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """How much more the fronts of `first` dominate than those of `second`: of each seed its own front, on average over
    seeds; interval as in `paired_difference`. dense_total: [n], what a cost is a share of. Raises ValueError if the two
    do not have the same seeds and samples."""
    if first.flops.shape[::2] != second.flops.shape[::2] or len(dense_total) != len(groups):
        raise ValueError(
            f"both must have the same seeds and samples: got {first.flops.shape}, {second.flops.shape} "
            f"[seeds, policies, samples], {len(dense_total)} dense costs and {len(groups)} groups"
        )
    sizes, dense = _by_group(np.ones(len(groups)), groups), _by_group(dense_total, groups)
    summed = [(_by_group(p.flops, groups), _by_group(p.correct, groups)) for p in (first, second)]

    def gap(seeds: np.ndarray, drawn: np.ndarray) -> float:
        volumes = []
        for total, correct in summed:
            costs, accuracies = total @ drawn / (dense @ drawn), correct @ drawn / (sizes @ drawn)  # [S, K]
            each = [
                hypervolume(list(zip(c, a, strict=True)), reference) for c, a in zip(costs, accuracies, strict=True)
            ]
            volumes.append(np.array(each)[seeds].mean())
        return float(volumes[0] - volumes[1])

    count = len(first.flops)
    gaps = [gap(*drawn) for drawn in _resamples(count, len(sizes), resamples, seed)]
    low, high = np.quantile(gaps, [0.025, 0.975])
    return Estimate(gap(np.arange(count), np.ones(len(sizes))), float(low), float(high))


def _by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[..., n] -> [..., G], summed over the samples of each group."""
    _, index = np.unique(groups, return_inverse=True)
    flat = values.reshape(-1, values.shape[-1])
    sums = np.stack([np.bincount(index, weights=row, minlength=int(index.max()) + 1) for row in flat])
    return sums.reshape(*values.shape[:-1], -1)


def _resamples(seeds: int, groups: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which seeds are drawn, and how often each group."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        drawn = rng.integers(seeds, size=seeds)
        yield drawn, np.bincount(rng.integers(groups, size=groups), minlength=groups).astype(float)


class RequiredModalityScore(NamedTuple):
    """Of the modalities that were encoded beside the question's own: how many were needed, how many of the needed were
    encoded, and the harmonic mean of the two."""

    precision: float
    recall: float
    f1: float


def required_modality_score(encoded: np.ndarray, needed: np.ndarray, carriers: np.ndarray) -> RequiredModalityScore:
    """All [n, M] bool. What carries the question is encoded whatever happens, and does not count."""
    encoded, needed = encoded & ~carriers, needed & ~carriers
    hits = float((encoded & needed).sum())
    precision, recall = hits / max(1.0, encoded.sum()), hits / max(1.0, needed.sum())
    return RequiredModalityScore(precision, recall, 2 * precision * recall / max(1e-12, precision + recall))
