"""Published intervals depend on the order of random draws: plain loops must give the same numbers, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from omni_lab.evaluation.profiling import time_ratio
from omni_lab.metrics.bootstrap import (
    Estimate,
    bootstrap_estimate,
    bootstrap_interval,
    percentile_levels,
    resample,
    sum_by_group,
    t_interval,
)
from omni_lab.metrics.pareto import paired_difference, paired_ratio


def test_an_interval_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=500), rng.integers(60, size=500)
    _, index = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(index, weights=values), np.bincount(index)
    draws = np.random.default_rng(3)
    means = []
    for _ in range(100):
        drawn = draws.integers(len(sums), size=len(sums))
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    assert bootstrap_interval(values, groups, resamples=100, seed=3) == tuple(np.quantile(means, percentile_levels(60)))


def test_a_paired_difference_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    first, second, groups = rng.normal(size=(3, 200)), rng.normal(size=(3, 200)), rng.integers(30, size=200)
    draws = np.random.default_rng(0)
    means = []
    for _ in range(100):
        draws.integers(3, size=3)
        drawn = np.concatenate([np.flatnonzero(groups == g) for g in draws.integers(30, size=30)])
        means.append((first - second)[:, drawn].mean(1))
    over_seeds, over_groups = (first - second).mean(1).var(ddof=1) / 3, np.mean(means, axis=1).var()
    total = over_seeds + over_groups
    half = stats.t.ppf(0.975, total**2 / (over_seeds**2 / 2 + over_groups**2 / 29)) * np.sqrt(total)
    mean = (first - second).mean()
    assert paired_difference(first, second, groups, resamples=100) == pytest.approx((mean, mean - half, mean + half))
    alone = paired_difference(first[:1], second[:1], groups, resamples=100)
    draws, one = np.random.default_rng(0), []
    for _ in range(100):
        draws.integers(1, size=1)
        drawn = np.concatenate([np.flatnonzero(groups == g) for g in draws.integers(30, size=30)])
        one.append((first - second)[0, drawn].mean())
    assert alone.interval == pytest.approx(tuple(np.quantile(one, percentile_levels(30)))), (
        "one seed: other scenes alone"
    )


def test_intervals_of_few_groups_hold_the_truth_as_often_as_they_say() -> None:
    assert percentile_levels(100_000) == pytest.approx((0.025, 0.975), abs=1e-5)
    assert percentile_levels(1) == (0.025, 0.975), "nothing varies"
    rng, held, plain = np.random.default_rng(0), 0, 0
    for _ in range(800):
        values = rng.normal(size=8)
        low, high = bootstrap_interval(values, np.arange(8), resamples=400, seed=int(rng.integers(2**31)))
        held += low <= 0 <= high
        ends = np.quantile(rng.choice(values, size=(400, 8)).mean(1), (0.025, 0.975))
        plain += ends[0] <= 0 <= ends[1]
    assert 0.925 <= held / 800 <= 0.975 and plain / 800 < 0.91


def test_what_was_not_seen_may_still_happen() -> None:
    """200 questions about 100 scenes, of which one of two policies loses two: it may gain elsewhere."""
    second, groups = np.ones((1, 200)), np.arange(200) // 2
    first = second.copy()
    first[0, :2] = 0
    ratio, difference = (f(first, second, groups, resamples=400) for f in (paired_ratio, paired_difference))
    unseen = 100 * (1 - 0.025**0.01) / 200
    assert ratio.high == pytest.approx(1 + unseen) and difference.high == pytest.approx(unseen)
    assert ratio.low < 0.98 < ratio.value < 1 < ratio.high < 1.02
    same = paired_ratio(second, second, groups, resamples=400)
    assert (same.low, same.value, same.high) == pytest.approx((1 - unseen, 1, 1 + unseen))
    second[0, 5] = 0  # one is gained: both kinds of change were seen
    assert paired_ratio(first, second, groups, resamples=400).high < 1 + 2 * unseen
    costs = np.random.default_rng(0).random((1, 200)) + 0.5
    assert paired_ratio(0.5 * costs, costs, groups, resamples=400).interval == pytest.approx((0.5, 0.5)), "no hits"


def test_few_values_get_a_t_interval() -> None:
    values = [0.91, 0.94, 0.95, 0.93, 0.97]
    for level in (0.95, 0.8):
        expected = stats.t.interval(level, 4, loc=np.mean(values), scale=stats.sem(values))
        assert t_interval(values, level).interval == pytest.approx(expected)
    assert t_interval([1.0, 3.0]).interval == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4), "by the table"
    with pytest.raises(ValueError, match="at least two, as one has no spread: got 1"):
        t_interval([0.5])


def test_a_ratio_of_times_is_that_of_one_draw_of_all() -> None:
    rng = np.random.default_rng(2)
    seconds = {"a": rng.random(9) + 0.1, "b": rng.random(9) + 0.1}
    ratios = seconds["a"] / seconds["b"]
    medians = np.median(np.random.default_rng(0).choice(ratios, size=(2000, 9)), axis=1)
    assert time_ratio(seconds, "a", "b") == (np.median(ratios), *np.quantile(medians, percentile_levels(9)))


def test_groups_are_summed_and_wrong_input_is_named() -> None:
    summed = sum_by_group(np.array([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]), np.array(["b", "a", "b"]))
    assert summed.tolist() == [[2.0, 5.0], [1.0, 2.0]]
    ratio = bootstrap_estimate(lambda s: s[:, 0] / s[:, 1], np.array([[1, 2], [1, 2]]), resamples=5)
    assert ratio == Estimate(0.5, 0.5, 0.5) and str(ratio) == "0.500 (0.500 to 0.500)"
    with pytest.raises(ValueError, match="equally long, not empty: got 2 and 3"):
        bootstrap_interval(np.ones(2), np.arange(3), resamples=5)
    with pytest.raises(ValueError, match="resamples must be at least 1: got 0"):
        list(resample(3, resamples=0))


def test_the_mean_of_independent_estimates() -> None:
    """Normal intervals: the half-width of the mean is the root of the summed squares over their number."""
    mean = Estimate.mean_of([Estimate(0.5, 0.2, 0.9), Estimate(0.7, 0.3, 1.0)])
    assert mean == pytest.approx((0.6, 0.6 - 0.25, 0.6 + 0.25))
    assert Estimate.mean_of([Estimate(0.5, 0.2, 0.9)]) == pytest.approx((0.5, 0.2, 0.9))
    with pytest.raises(ValueError, match="estimates must hold at least one: got none"):
        Estimate.mean_of([])
