from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from omni_lab.evaluation.predictions import majority_by_question, predict
from omni_lab.evaluation.profiling import time_interleaved, time_ratio
from omni_lab.metrics.bootstrap import bootstrap_interval, proportion
from omni_lab.training.recipes import Recipe


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        values = np.repeat(rng.normal(size=40), 5) + rng.normal(scale=0.1, size=200)
        low, high = bootstrap_interval(values, np.repeat(np.arange(40), 5), resamples=300, seed=trial)
        hits += low <= 0 <= high
    assert 85 <= hits <= 100


def test_groups_make_the_interval_honest() -> None:
    """Five copies of the same forty measurements are still forty measurements."""
    values = np.random.default_rng(0).normal(size=40)
    copies = np.repeat(values, 5)
    alone = bootstrap_interval(values, np.arange(40), resamples=2000)
    grouped = bootstrap_interval(copies, np.repeat(np.arange(40), 5), resamples=2000)
    careless = bootstrap_interval(copies, np.arange(200), resamples=2000)
    assert np.allclose(alone, grouped, atol=0.05)
    assert careless[1] - careless[0] < 0.7 * (grouped[1] - grouped[0])


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not empty: got 0 and 0"):
        bootstrap_interval(np.array([]), np.array([]), resamples=10)


def test_predictions_line_up_with_the_dataset(recipe: Recipe) -> None:
    data = recipe.data_module()
    model, dataset = recipe.build_model(data).train(), data.dataset("validation")
    result = predict(model, data.val_dataloader(), dataset)
    assert model.training, "the mode is restored"
    assert result.answer.shape == (16,)
    assert set(result.family) == {"shade", "yes/no"}
    expected = dataset.scores[torch.arange(16), torch.from_numpy(result.answer)]
    assert np.allclose(result.score, expected)
    assert result.accuracy == pytest.approx((result.answer == result.truth).mean())
    both = [result.for_family(f) for f in ("shade", "yes/no")]
    assert sum(len(part.score) for part in both) == 16
    with pytest.raises(ValueError, match="the batches cover 16 of 48 questions"):
        predict(model, data.val_dataloader(), data.dataset("train"))


def test_the_majority_baseline_uses_the_question_alone(recipe: Recipe) -> None:
    data = recipe.data_module()
    result = majority_by_question(data.dataset("train"), data.dataset("test"))
    texts = np.array(data.dataset("test").texts)
    for text in set(texts):
        assert len(set(result.answer[texts == text])) == 1
    assert result.accuracy == pytest.approx(0.5), "bright and dark are balanced"


def test_times_are_measured_in_turn() -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    seconds = time_interleaved(
        {"slow": lambda: work("slow", 0.02), "fast": lambda: work("fast", 0.005)}, rounds=4, warmup=1
    )
    assert order == ["slow", "fast"] * 5
    assert len(seconds["slow"]) == 4
    slower = time_ratio(seconds, "slow", "fast")
    assert 1.5 < slower.low <= slower.value <= slower.high


def test_a_proportion_of_all_or_none_is_not_certain() -> None:
    groups = np.repeat(np.arange(30), 2)
    low, high = proportion(np.ones(60), groups, resamples=100).interval
    assert high == 1.0 and low == pytest.approx(0.025 ** (1 / 30))  # so likely is it that thirty hit
    assert proportion(np.zeros(60), groups, resamples=100).interval == pytest.approx((0.0, 1 - low))
    some = np.tile([1.0, 1.0, 1.0, 0.0], 15)
    assert proportion(some, groups, resamples=100).interval == bootstrap_interval(some, groups, resamples=100)
