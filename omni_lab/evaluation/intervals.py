"""Intervals that respect which measurements belong together."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest


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


def share_interval(hits: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a share of hits, by `bootstrap_interval`. Where all hit or none does, resampling knows no doubt:
    then the exact one, of as many draws as there are groups (Clopper and Pearson 1934)."""
    if 0 < hits.mean() < 1:
        return bootstrap_interval(hits, groups, resamples=resamples, seed=seed)
    count = len(np.unique(groups))
    exact = binomtest(round(float(hits.mean())) * count, count).proportion_ci(0.95, method="exact")
    return float(exact.low), float(exact.high)
