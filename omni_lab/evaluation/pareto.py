"""Accuracy against cost: fronts, hypervolumes, and how sure one can be that one policy is better than another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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


class Difference(NamedTuple):
    """A mean difference and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0
) -> Difference:
    """Mean of first - second over seeds and samples, both [S, n]: seed s of the one is paired with seed s of the other,
    sample with sample. The bootstrap draws seeds, and groups of samples (questions about one scene belong together),
    with replacement (the two-way cluster bootstrap; Owen and Eckles 2012)."""
    if first.shape != second.shape or first.ndim != 2 or len(groups) != first.shape[1]:
        raise ValueError(
            f"both must be [seeds, samples], with a group for each sample: got {first.shape}, {second.shape} and "
            f"{len(groups)} groups"
        )
    difference = first - second
    _, index = np.unique(groups, return_inverse=True)
    count = int(index.max()) + 1
    sums = np.stack([np.bincount(index, weights=row, minlength=count) for row in difference])  # [S, G]
    sizes = np.bincount(index, minlength=count).astype(float)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        seeds = rng.integers(len(sums), size=len(sums))
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        means[i] = (sums[seeds].mean(0) * drawn).sum() / (sizes * drawn).sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(difference.mean()), float(low), float(high))


class NeedsScore(NamedTuple):
    """Of the modalities that were encoded beside the question's own: how many were needed, how many of the needed were
    encoded, and the harmonic mean of the two."""

    precision: float
    recall: float
    f1: float


def needs_score(encoded: np.ndarray, needed: np.ndarray, carriers: np.ndarray) -> NeedsScore:
    """All [n, M] bool. What carries the question is encoded whatever happens, and does not count."""
    encoded, needed = encoded & ~carriers, needed & ~carriers
    hits = float((encoded & needed).sum())
    precision, recall = hits / max(1.0, encoded.sum()), hits / max(1.0, needed.sum())
    return NeedsScore(precision, recall, 2 * precision * recall / max(1e-12, precision + recall))
