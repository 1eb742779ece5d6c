"""Confidence cascades: run encoders one after the other in a fixed order, and stop at the first confident answer.

No training: the thresholds are found on a validation split. The strong baseline of any router that looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omni_lab.batch import ComputeLevel, Modality

Action = tuple[Modality, ComputeLevel]
FINITE = float(np.finfo(float).max)


@dataclass(frozen=True)
class Cascade:
    """order: what runs, one after the other. thresholds: after each but the last, the confidence that suffices to stop;
    None: go on without computing an answer; minus infinity: stop without looking at the confidence."""

    order: tuple[Action, ...]
    thresholds: tuple[float | None, ...]


@dataclass(frozen=True)
class Stages:
    """What the stages of one order did on n questions. Costs are fractions of the dense cost.

    encoder_cost: of all encoders up to a stage. answer_cost: of the answer at a stage.
    look_cost: of the confidence at a stage; None: it is that of the answer, which is then computed anyway.
    """

    confidence: np.ndarray  # [n, S]
    correct: np.ndarray  # [n, S]
    encoder_cost: np.ndarray  # [n, S]
    answer_cost: np.ndarray  # [n, S]
    look_cost: float | None = None

    def run(self, thresholds: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Correctness, cost and stopping stage [n] each."""
        bounds = np.array([np.inf if t is None else t for t in thresholds] + [-np.inf])
        stage, rows = (self.confidence >= bounds).argmax(axis=1), np.arange(len(self.correct))
        looked = np.isfinite(bounds)
        each = self.answer_cost if self.look_cost is None else self.look_cost
        looks = np.broadcast_to(np.where(looked, each, 0.0), self.correct.shape).cumsum(axis=1)[rows, stage]
        answer = np.where(looked[stage] & (self.look_cost is None), 0.0, self.answer_cost[rows, stage])
        return self.correct[rows, stage], self.encoder_cost[rows, stage] + looks + answer, stage


def orders(actions: Sequence[Action]) -> list[tuple[Action, ...]]:
    """Every sequence of actions in which each modality's levels rise, up to its highest. Shorter ones are the start of
    one of these, with a threshold that all questions pass."""
    last = {modality: max(level for m, level in actions if m is modality) for modality, _ in actions}
    found: list[tuple[Action, ...]] = []

    def extend(order: tuple[Action, ...]) -> None:
        done = dict(order)  # the highest level of each modality so far
        if done == last:
            found.append(order)
        for modality, level in actions:
            if level > done.get(modality, ComputeLevel.SKIP):
                extend((*order, (modality, level)))

    extend(())
    return found


def fit_thresholds(stages: Stages, penalty: float, *, sweeps: int = 3) -> tuple[float | None, ...]:
    """The thresholds that maximise the mean of correctness minus penalty x cost, one stage after the other, from the
    last to the first, `sweeps` times: at each the best of all thresholds, the others held; or None."""
    count = stages.correct.shape[1]
    thresholds: list[float | None] = [None] * (count - 1)
    for _ in range(sweeps):
        before = list(thresholds)
        for s in reversed(range(count - 1)):
            thresholds[s] = _best_threshold(stages, thresholds, s, penalty)
        if thresholds == before:
            break
    return tuple(thresholds)


def _best_threshold(stages: Stages, thresholds: Sequence[float | None], s: int, penalty: float) -> float | None:
    def reward(bound: float | None) -> tuple[np.ndarray, np.ndarray]:
        correct, cost, stage = stages.run([*thresholds[:s], bound, *thresholds[s + 1 :]])
        return correct - penalty * cost, stage

    (stopping, stage), (going, _) = reward(-FINITE), reward(FINITE)  # all look, and all or none stop
    here = stage == s  # of the questions that reach this stage
    order = np.argsort(-stages.confidence[here, s], kind="stable")
    confidence = stages.confidence[here, s][order]
    gain = np.cumsum((stopping - going)[here][order])
    gain[:-1][confidence[1:] == confidence[:-1]] = -np.inf  # equal confidences stop together
    options: list[tuple[float, float | None]] = [(reward(bound)[0].sum(), bound) for bound in (None, -np.inf)]
    if len(gain):
        best = int(gain.argmax())
        options.append((gain[best] + going.sum(), float(confidence[best])))
    return max(options, key=lambda option: option[0])[1]
