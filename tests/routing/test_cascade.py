"""Confidence cascades: which orders there are, where they stop, and what that costs."""

from __future__ import annotations

import numpy as np
import pytest

from omni_lab.batch import ComputeLevel, Modality
from omni_lab.routing.cascade import Stages, fit_thresholds, orders

IMAGE, AUDIO = Modality.IMAGE, Modality.AUDIO
TINY, FULL = ComputeLevel.TINY, ComputeLevel.FULL


def test_an_order_never_goes_down() -> None:
    found = orders([(IMAGE, TINY), (IMAGE, FULL), (AUDIO, FULL)])
    assert len(found) == len({*found}) == 5, "all end with the highest level of both"
    assert ((IMAGE, TINY), (AUDIO, FULL), (IMAGE, FULL)) in found and ((AUDIO, FULL), (IMAGE, FULL)) in found
    assert not any(order.index((IMAGE, FULL)) < order.index((IMAGE, TINY)) for order in found if len({*order}) > 2)


@pytest.fixture
def stages() -> Stages:
    return Stages(
        confidence=np.array([[0.9, 0.2, 0.5], [0.4, 0.8, 0.5], [0.4, 0.3, 0.1]]),
        correct=np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
        encoder_cost=np.array([[0.1, 0.3, 0.9]] * 3),
        answer_cost=np.array([[0.01, 0.02, 0.03]] * 3),
    )


def test_it_stops_at_the_first_confident_answer(stages: Stages) -> None:
    correct, cost, stage = stages.run((0.7, 0.7))
    assert stage.tolist() == [0, 1, 2] and correct.tolist() == [1, 1, 1]
    assert cost == pytest.approx([0.1 + 0.01, 0.3 + 0.01 + 0.02, 0.9 + 0.01 + 0.02 + 0.03])


def test_an_answer_that_is_not_looked_at_costs_nothing(stages: Stages) -> None:
    correct, cost, stage = stages.run((None, 0.7))
    assert stage.tolist() == [2, 1, 2] and correct.tolist() == [0, 1, 1]
    assert cost == pytest.approx([0.9 + 0.02 + 0.03, 0.3 + 0.02, 0.9 + 0.02 + 0.03])


def test_a_head_of_its_own_is_charged_beside_the_answer(stages: Stages) -> None:
    own = Stages(stages.confidence, stages.correct, stages.encoder_cost, stages.answer_cost, look_cost=0.001)
    assert own.run((0.7, 0.7))[1] == pytest.approx([0.1 + 0.001 + 0.01, 0.3 + 0.002 + 0.02, 0.9 + 0.002 + 0.03])


def test_stopping_without_a_look_costs_the_answer_alone(stages: Stages) -> None:
    own = Stages(stages.confidence, stages.correct, stages.encoder_cost, stages.answer_cost, look_cost=0.001)
    _, cost, stage = own.run((-np.inf, 0.7))
    assert stage.tolist() == [0, 0, 0] and cost == pytest.approx([0.1 + 0.01] * 3)


@pytest.mark.parametrize("look_cost", [None, 0.002])
@pytest.mark.parametrize("penalty", [0.0, 0.3, 3.0])
def test_fitted_thresholds_are_as_good_as_those_of_a_grid(penalty: float, look_cost: float | None) -> None:
    rng = np.random.default_rng(0)
    chance = rng.random((500, 1)) ** np.array([3.0, 1.0, 0.2])  # of a right answer, higher from stage to stage
    stages = Stages(
        confidence=(chance + rng.normal(0, 0.1, chance.shape)).clip(0, 1),
        correct=(rng.random(chance.shape) < chance).astype(float),
        encoder_cost=np.tile([0.1, 0.3, 0.9], (500, 1)),
        answer_cost=np.full((500, 3), 0.01),
        look_cost=look_cost,
    )

    def reward(thresholds: tuple[float | None, ...]) -> float:
        correct, cost, _ = stages.run(thresholds)
        return float((correct - penalty * cost).mean())

    values = [None, -np.inf, *np.linspace(0, 1, 12).tolist()]
    best = max(reward((first, second)) for first in values for second in values)
    assert reward(fit_thresholds(stages, penalty)) >= best - 1e-9
