"""Accuracy against cost: Pareto fronts, hypervolumes, and intervals of the differences between policies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from omni_lab.metrics.bootstrap import Estimate, sum_by_group, two_way_estimate

Point = tuple[float, float]  # cost, accuracy


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point dominates, in order of rising cost and accuracy."""
    front: list[Point] = []
    for cost, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that `points` dominate (Zitzler and Thiele 1999), up to the cost and down to the accuracy of a reference
    point; points beyond it add nothing."""
    front = [p for p in pareto_front(points) if p[0] < reference[0] and p[1] > reference[1]]
    steps = pairwise([*front, reference])
    return sum(((end - cost) * (accuracy - reference[1]) for (cost, accuracy), (end, _) in steps), start=0.0)


def paired_difference(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0
) -> Estimate:
    """Mean of first - second, paired by seed and by sample, with the interval of `two_way_estimate`.

    first, second: [S, n], S seeds and n samples.
    groups: [n] labels, such as the scene that a question is about.
    """
    _check_paired(first, second, groups)
    difference = _ratio(first - second, np.ones_like(first), groups, resamples, seed)
    return _with_unseen(difference, first, second, groups, first.shape[1])


def paired_ratio(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0
) -> Estimate:
    """Sum of `first` over sum of `second`, none negative, averaged over seeds. Both sums are resampled; the interval
    ends at 0, so that 1 minus it, a share that is saved, never exceeds 1. Arguments as in `paired_difference`."""
    _check_paired(first, second, groups)
    if first.min() < 0 or second.min() < 0 or not second.any(axis=1).all():
        raise ValueError("a ratio needs values that are not negative, and a second that is not all zero")
    ratio = _ratio(first, second, groups, resamples, seed)
    ratio = _with_unseen(ratio, first, second, groups, float(second.sum(axis=1).mean()))
    return ratio._replace(low=max(0.0, ratio.low))


def _with_unseen(
    estimate: Estimate, first: np.ndarray, second: np.ndarray, groups: np.ndarray, total: float
) -> Estimate:
    """The interval for hits of one seed, where no sample changed for the better, or none for the worse. Resamples know
    nothing of what was not seen, but it may happen in as many groups as the exact bound for no event allows (Clopper
    and Pearson 1934), and change at least one sample in each. total: what the estimate was divided by."""
    if len(first) > 1 or not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        return estimate
    count = len(np.unique(groups))
    unseen = count * (1 - 0.025 ** (1 / count)) / total
    low = estimate.low - unseen * bool((first >= second).all())
    return estimate._replace(low=low, high=estimate.high + unseen * bool((first <= second).all()))


def _check_paired(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 2 or len(groups) != first.shape[1]:
        raise ValueError(
            f"both must be [seeds, samples], with a group for each sample: got {first.shape}, {second.shape} and "
            f"{len(groups)} groups"
        )


def _ratio(above: np.ndarray, below: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> Estimate:
    above, below = sum_by_group(above, groups), sum_by_group(below, groups)  # [S, G]
    size = {"seeds": above.shape[0], "groups": above.shape[1]}
    return two_way_estimate(lambda w: (above @ w) / (below @ w), **size, resamples=resamples, seed=seed)


class Policies(NamedTuple):
    """K policies of one kind, such as one per penalty, trained with S seeds each and evaluated on n samples."""

    flops: np.ndarray  # [S, K, n]
    correct: np.ndarray  # [S, K, n], 1 for a right answer, else 0


def hypervolume_difference(
    first: Policies,
    second: Policies,
    dense_flops: np.ndarray,
    groups: np.ndarray,
    reference: Point,
    *,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """Hypervolume of `first` minus that of `second`, each the mean over one front per seed; interval as in
    `two_way_estimate`.

    dense_flops: [n]; a policy's cost is its fraction of them.
    """
    if first.flops.shape[::2] != second.flops.shape[::2] or len(dense_flops) != len(groups):
        raise ValueError(
            f"both must have the same seeds and samples: got {first.flops.shape}, {second.flops.shape} "
            f"[seeds, policies, samples], {len(dense_flops)} dense costs and {len(groups)} groups"
        )
    sizes, dense = sum_by_group(np.ones(len(groups)), groups), sum_by_group(dense_flops, groups)
    sums = [(sum_by_group(p.flops, groups), sum_by_group(p.correct, groups)) for p in (first, second)]

    def gap(weights: np.ndarray) -> np.ndarray:
        volumes = []
        for flops, correct in sums:
            costs, accuracies = flops @ weights / (dense @ weights), correct @ weights / (sizes @ weights)  # [S, K]
            fronts = [list(zip(*points, strict=True)) for points in zip(costs, accuracies, strict=True)]
            volumes.append(np.array([hypervolume(front, reference) for front in fronts]))
        return np.asarray(volumes[0] - volumes[1])

    return two_way_estimate(gap, seeds=len(first.flops), groups=len(sizes), resamples=resamples, seed=seed)


class RequiredModalityScore(NamedTuple):
    """How well the encoded modalities match the required ones, the question's own modality left out."""

    precision: float  # the fraction of encoded modalities that are required
    recall: float  # the fraction of required modalities that are encoded
    f1: float


def required_modality_score(
    encoded: np.ndarray, required: np.ndarray, question_mask: np.ndarray
) -> RequiredModalityScore:
    """All [n, M] bool. The modality of the question is always encoded, so it does not count."""
    encoded, required = encoded & ~question_mask, required & ~question_mask
    hits = float((encoded & required).sum())
    precision, recall = hits / max(1.0, encoded.sum()), hits / max(1.0, required.sum())
    return RequiredModalityScore(precision, recall, 2 * precision * recall / max(1e-12, precision + recall))
