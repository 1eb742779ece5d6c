from __future__ import annotations

import numpy as np
import pytest

from omni_lab.metrics.pareto import (
    Policies,
    hypervolume,
    hypervolume_difference,
    paired_difference,
    paired_ratio,
    pareto_front,
    required_modality_score,
)


def test_the_front_holds_the_points_that_no_point_dominates() -> None:
    points = [(0.5, 0.8), (0.2, 0.6), (0.3, 0.5), (0.5, 0.7), (1.0, 0.8), (0.9, 0.95)]
    assert pareto_front(points) == [(0.2, 0.6), (0.5, 0.8), (0.9, 0.95)]
    assert pareto_front([]) == []


def test_the_hypervolume_by_hand() -> None:
    points = [(0.2, 0.6), (0.5, 0.8), (0.4, 0.55), (1.5, 0.99), (0.1, 0.2)]
    area = (0.5 - 0.2) * (0.6 - 0.3) + (1.0 - 0.5) * (0.8 - 0.3)
    assert hypervolume(points, (1.0, 0.3)) == pytest.approx(area)
    assert hypervolume([(1.2, 0.9), (0.5, 0.1)], (1.0, 0.3)) == 0.0
    rng = np.random.default_rng(0)
    cloud = [tuple(p) for p in rng.random((30, 2)).tolist()]
    drawn = rng.random((200_000, 2))
    hit = np.zeros(len(drawn), dtype=bool)
    for cost, accuracy in cloud:
        hit |= (drawn[:, 0] >= cost) & (drawn[:, 1] <= accuracy)
    assert hypervolume(cloud, (1.0, 0.0)) == pytest.approx(hit.mean(), abs=0.005)


def test_a_difference_and_how_sure_it_is() -> None:
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(200), 5)
    hard = np.repeat(rng.random(200) < 0.3, 5)
    first = np.stack([(rng.random(1000) < np.where(hard, 0.5, 0.95)).astype(float) for _ in range(5)])
    worse = first * (rng.random((5, 1000)) < 0.9)
    found = paired_difference(first, worse, scenes, resamples=400)
    assert found.value == pytest.approx((first - worse).mean())
    assert 0 < found.low < found.value < found.high
    same = paired_difference(first, first, scenes, resamples=100)
    assert same == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"\[seeds, samples\]"):
        paired_difference(first, worse[:, :10], scenes, resamples=10)


@pytest.mark.parametrize(("between_seeds", "between_scenes"), [(0.02, 0.3), (0.05, 0.05), (0.05, 0.5)])
def test_the_interval_covers_the_truth(between_seeds: float, between_scenes: float) -> None:
    """Questions about a scene go right together, five seeds differ. Resampled seeds would miss one time in
    seven where seeds matter most."""
    hits = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        scenes = np.repeat(between_scenes * rng.standard_normal((1, 100)), 4, axis=1)
        effect = 0.1 + between_seeds * rng.standard_normal((5, 1)) + scenes
        found = paired_difference(effect, np.zeros_like(effect), np.repeat(np.arange(100), 4), resamples=100)
        hits += found.low <= 0.1 <= found.high
    assert 0.9 * 300 <= hits <= 0.995 * 300


def test_a_saved_share_is_a_ratio_and_never_exceeds_one() -> None:
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(100), 4)
    dense = np.repeat(1 + 3 * (rng.random((1, 100)) < 0.2), 4, axis=1) * np.ones((5, 1))
    for share in (0.0, 0.01, 0.3, 1.0):
        spread = np.array([[0.0], [0.0], [0.5], [1.0], [3.5]])  # all the cost is that of few seeds
        cost = paired_ratio(share * spread * dense, dense, scenes, resamples=200)
        assert cost.value == pytest.approx(share) and 0 <= cost.low <= cost.value <= cost.high
    fixed = paired_ratio(0.25 * dense, dense, scenes, resamples=200)
    assert fixed == pytest.approx((0.25, 0.25, 0.25)), "a constant share, however dear the scenes that are drawn"
    with pytest.raises(ValueError, match="a ratio needs values that are not negative"):
        paired_ratio(dense - 2, dense, scenes, resamples=10)
    with pytest.raises(ValueError, match="a second that is not all zero"):
        paired_ratio(dense, 0 * dense, scenes, resamples=10)


def test_required_modalities_without_that_of_the_question() -> None:
    question_mask = np.array([[True, False, False, False]] * 3)
    required = np.array([[True, True, False, False], [True, False, True, False], [True, False, False, False]])
    encoded = np.array([[True, True, True, False], [True, False, False, False], [True, False, False, False]])
    score = required_modality_score(encoded, required, question_mask)
    assert score == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert required_modality_score(required, required, question_mask) == pytest.approx((1.0, 1.0, 1.0))


def test_fronts_are_compared_seed_by_seed() -> None:
    rng = np.random.default_rng(0)
    scenes, dense = np.repeat(np.arange(150), 4), 1 + rng.random(600)
    costs, chances = np.array([0.2, 0.5, 0.9]), np.array([0.6, 0.8, 0.9])
    total = np.broadcast_to(costs[None, :, None] * dense, (5, 3, 600))
    better = Policies(total, (rng.random((5, 3, 600)) < chances[None, :, None]).astype(float))
    worse = Policies(total, better.correct * (rng.random((5, 3, 600)) < 0.9))
    found = hypervolume_difference(better, worse, dense, scenes, (1.0, 0.3), resamples=200)
    by_hand = [
        hypervolume(list(zip(costs, b.mean(1), strict=True)), (1.0, 0.3))
        - hypervolume(list(zip(costs, w.mean(1), strict=True)), (1.0, 0.3))
        for b, w in zip(better.correct, worse.correct, strict=True)
    ]
    assert found.value == pytest.approx(np.mean(by_hand)) and 0 < found.low < found.value < found.high
    assert hypervolume_difference(better, better, dense, scenes, (1.0, 0.3), resamples=20) == (0.0, 0.0, 0.0)
    fewer = Policies(total[:3], better.correct[:3])
    with pytest.raises(ValueError, match="the same seeds and samples"):
        hypervolume_difference(better, fewer, dense, scenes, (1.0, 0.3), resamples=20)
