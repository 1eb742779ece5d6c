"""Accuracy against cost: Pareto fronts, hypervolumes, and intervals of the differences between policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from omni_lab.metrics.bootstrap import Estimate, resample, sum_by_group

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
    """Mean of first - second, paired by seed and by sample, with a two-way cluster bootstrap interval (Owen and Eckles
    2012): seeds and groups of samples are resampled.

    first, second: [S, n], S seeds and n samples.
    groups: [n] labels, such as the scene that a question is about.
    """
    if first.shape != second.shape or first.ndim != 2 or len(groups) != first.shape[1]:
        raise ValueError(
            f"both must be [seeds, samples], with a group for each sample: got {first.shape}, {second.shape} and "
            f"{len(groups)} groups"
        )
    difference = first - second
    sums, sizes = sum_by_group(difference, groups), sum_by_group(np.ones(len(groups)), groups)
    draws = _two_way(len(sums), len(sizes), resamples, seed)
    means = [(sums[seeds].mean(0) * weights).sum() / (sizes * weights).sum() for seeds, weights in draws]
    return Estimate.from_resamples(difference.mean(), means)


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
    `paired_difference`.

    dense_flops: [n]; a policy's cost is its fraction of them.
    """
    if first.flops.shape[::2] != second.flops.shape[::2] or len(dense_flops) != len(groups):
        raise ValueError(
            f"both must have the same seeds and samples: got {first.flops.shape}, {second.flops.shape} "
            f"[seeds, policies, samples], {len(dense_flops)} dense costs and {len(groups)} groups"
        )
    sizes, dense = sum_by_group(np.ones(len(groups)), groups), sum_by_group(dense_flops, groups)
    sums = [(sum_by_group(p.flops, groups), sum_by_group(p.correct, groups)) for p in (first, second)]

    def gap(seeds: np.ndarray, weights: np.ndarray) -> float:
        means = []
        for flops, correct in sums:
            costs, accuracies = flops @ weights / (dense @ weights), correct @ weights / (sizes @ weights)  # [S, K]
            fronts = [list(zip(*points, strict=True)) for points in zip(costs, accuracies, strict=True)]
            means.append(np.array([hypervolume(front, reference) for front in fronts])[seeds].mean())
        return float(means[0] - means[1])

    gaps = [gap(*draw) for draw in _two_way(len(first.flops), len(sizes), resamples, seed)]
    return Estimate.from_resamples(gap(np.arange(len(first.flops)), np.ones(len(sizes))), gaps)


def _two_way(seeds: int, groups: int, resamples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the drawn seeds [S], and how often each group is drawn [G]."""
    for drawn, members in resample(seeds, groups, resamples=resamples, seed=seed):
        yield drawn, np.bincount(members, minlength=groups).astype(float)


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
