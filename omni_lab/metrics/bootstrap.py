"""Intervals that respect which measurements belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest


class Estimate(NamedTuple):
    """What was measured, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap_interval(values: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, resampling whole groups (cluster bootstrap, Davison and Hinkley
    1997, section 3.8): questions about one picture stand or fall together, so pictures are drawn, not questions.

    values: [n]; for a paired comparison, the differences. groups: [n] labels.
    """
    if len(values) != len(groups) or len(values) == 0:
        raise ValueError(f"values and groups must be equally long, not empty: got {len(values)} and {len(groups)}")
    _, member = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(member, weights=values), np.bincount(member)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(len(sums), size=len(sums))
        means[i] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def proportion_interval(hits: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a share of hits, by `bootstrap_interval`. Where all hit or none does, resampling knows no doubt:
    then the exact one, of as many draws as there are groups (Clopper and Pearson 1934)."""
    if 0 < hits.mean() < 1:
        return bootstrap_interval(hits, groups, resamples=resamples, seed=seed)
    count = len(np.unique(groups))
    exact = binomtest(round(float(hits.mean())) * count, count).proportion_ci(0.95, method="exact")
    return float(exact.low), float(exact.high)


def proportion(hits: np.ndarray, groups: np.ndarray | None = None, *, resamples: int, seed: int = 0) -> Estimate:
    """The share of hits, with its `share_interval`. groups: as there; None where every hit stands for itself."""
    if len(hits) == 0:
        raise ValueError("hits must not be empty: got 0")
    groups = np.arange(len(hits)) if groups is None else groups
    return Estimate(float(hits.mean()), *proportion_interval(hits, groups, resamples=resamples, seed=seed))


def corpus_estimate(
    counts: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    groups: np.ndarray | None = None,
    *,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """A measure that is no mean of single ones, but a function of sums, and its percentile interval: samples, or whole
    groups of them, are drawn as in `bootstrap_interval`, and their counts summed, so that nothing is counted again.

    counts: [n, K] of each sample. score: of sums [R, K] to values [R].
    """
    if len(counts) == 0 or (groups is not None and len(groups) != len(counts)):
        raise ValueError(
            f"counts and groups must be equally long, not empty: got {len(counts)} and "
            f"{'no groups' if groups is None else len(groups)}"
        )
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1: got {resamples}")
    if groups is not None:
        _, member = np.unique(groups, return_inverse=True)
        counts = np.stack([np.bincount(member, weights=column) for column in counts.T], axis=1)
    rng = np.random.default_rng(seed)
    sums = np.stack([counts[rng.integers(len(counts), size=len(counts))].sum(0) for _ in range(resamples)])
    value, *drawn = score(np.concatenate([counts.sum(0, keepdims=True), sums]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))
