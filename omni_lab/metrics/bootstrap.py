"""Estimates with 95 % intervals: by the cluster bootstrap, which resamples whole groups of samples, not single samples;
over seeds, which are too few to be resampled, by Student's t."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm
from scipy.stats import t as student


class Estimate(NamedTuple):
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    @classmethod
    def from_resamples(cls, value: float, resampled: Sequence[float] | np.ndarray, count: int) -> Estimate:
        """The interval of the value's resamples at `percentile_levels`. count: of the groups that were resampled."""
        low, high = np.quantile(resampled, percentile_levels(count))
        return cls(float(value), float(low), float(high))

    @classmethod
    def mean_of(cls, estimates: Sequence[Estimate]) -> Estimate:
        """The mean of independent estimates, with the variances that their intervals tell (Zou and Donner 2008)."""
        if not estimates:
            raise ValueError("estimates must hold at least one: got none")
        values, lows, highs = np.array(estimates).T
        below, above = (float(np.sqrt(np.square(values - ends).sum())) / len(values) for ends in (lows, highs))
        return cls(float(values.mean()), float(values.mean()) - below, float(values.mean()) + above)


def resample(*sizes: int, resamples: int, seed: int = 0) -> Iterator[list[np.ndarray]]:
    """Yields for each resample one array of indices per size, drawn with replacement: [size] int, below size."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1: got {resamples}")
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield [rng.integers(size, size=size) for size in sizes]


def percentile_levels(count: int) -> tuple[float, float]:
    """Where a 95 % interval ends in the distribution of resamples of `count` groups: at 2.5 and 97.5 %, further out for
    few groups, of which plain percentiles miss the truth too often (the expanded percentiles of Hesterberg 2015)."""
    if count < 2:
        return 0.025, 0.975
    low = float(norm.cdf(-student.ppf(0.975, count - 1) * (count / (count - 1)) ** 0.5))
    return low, 1 - low


def t_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Estimate:
    """The mean of few independent values [n >= 2], such as one per seed, and Student's interval (1908) of it."""
    if len(values) < 2:
        raise ValueError(f"values must be at least two, as one has no spread: got {len(values)}")
    value, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(student.ppf((1 + level) / 2, len(values) - 1)) * error
    return Estimate(value, value - half, value + half)


def two_way_estimate(
    statistic: Callable[[np.ndarray], np.ndarray], *, seeds: int, groups: int, resamples: int, seed: int = 0
) -> Estimate:
    """The mean over seeds of a statistic, with a 95 % interval for other seeds and other groups of samples.

    The variance is that over seeds plus that over resampled groups (Owen and Eckles 2012); its degrees of freedom are
    Satterthwaite's (1946), so that few seeds widen the interval. With one seed: the percentile interval over groups.

    statistic: maps how often each group is drawn [groups] to one value per seed [seeds].
    """
    values = statistic(np.ones(groups))
    means = [
        statistic(np.bincount(drawn, minlength=groups).astype(float)).mean()
        for _, drawn in resample(seeds, groups, resamples=resamples, seed=seed)
    ]
    if seeds == 1:
        return Estimate.from_resamples(values[0], means, groups)
    variances = np.array([values.var(ddof=1) / seeds, np.var(means)])
    total, degrees = variances.sum(), np.array([seeds - 1, max(1, groups - 1)])
    half = student.ppf(0.975, total**2 / (variances**2 / degrees).sum()) * total**0.5 if total > 0 else 0.0
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def sum_by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[..., n] to [..., G]: sums over the samples of each group, groups in ascending order."""
    _, index = np.unique(groups, return_inverse=True)
    return np.apply_along_axis(lambda row: np.bincount(index, weights=row), -1, values)


def bootstrap_estimate(
    statistic: Callable[[np.ndarray], np.ndarray],
    counts: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """A statistic of summed counts, with a cluster bootstrap interval (Davison and Hinkley 1997, section 3.8).

    statistic: maps sums [R, K] to values [R].
    counts: [n, K], of each sample; they are counted once and summed for each resample.
    groups: [n] labels; samples of a group, such as questions about one image, are dependent. None: all independent.
    """
    groups = np.arange(len(counts)) if groups is None else groups
    if len(counts) != len(groups) or len(counts) == 0:
        raise ValueError(f"values and groups must be equally long, not empty: got {len(counts)} and {len(groups)}")
    sums = sum_by_group(counts.T, groups)  # [K, G]
    resampled = [sums.take(i, axis=1).sum(1) for (i,) in resample(sums.shape[1], resamples=resamples, seed=seed)]
    value, *others = statistic(np.stack([sums.sum(1), *resampled]))
    return Estimate.from_resamples(value, others, sums.shape[1])


def bootstrap_interval(values: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `values` [n], by `bootstrap_estimate`. For a paired comparison, pass differences."""
    counts = np.stack([values, np.ones(len(values))], axis=1)
    return bootstrap_estimate(lambda s: s[:, 0] / s[:, 1], counts, groups, resamples=resamples, seed=seed).interval


def proportion(hits: np.ndarray, groups: np.ndarray | None = None, *, resamples: int, seed: int = 0) -> Estimate:
    """The fraction of hits [n], 0 or 1 each, and its interval as in `bootstrap_estimate`. If all or none are hits,
    resamples do not vary; then the exact binomial interval with a trial per group (Clopper and Pearson 1934)."""
    if len(hits) == 0:
        raise ValueError("hits must not be empty: got 0")
    groups = np.arange(len(hits)) if groups is None else groups
    value, count = float(hits.mean()), len(np.unique(groups))
    if 0 < value < 1:
        return Estimate(value, *bootstrap_interval(hits, groups, resamples=resamples, seed=seed))
    low, high = binomtest(round(value) * count, count).proportion_ci(0.95, method="exact")
    return Estimate(value, float(low), float(high))
