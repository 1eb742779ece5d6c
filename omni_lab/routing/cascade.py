"""Confidence cascades: run encoders one after the other in a fixed order, and stop at the first confident answer.

No training: the thresholds are found on a validation split. The strong baseline of any router that looks again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omni_lab.batch import ComputeLevel, Modality

Action = tuple[Modality, ComputeLevel]


@dataclass(frozen=True)
class Cascade:
    """order: what runs, one after the other. thresholds: after each but the last, the confidence that suffices to stop;
    None: go on without computing an answer."""

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
    """Every sequence of actions in which each modality's levels rise."""
    found: list[tuple[Action, ...]] = []

    def extend(order: tuple[Action, ...]) -> None:
        if order:
            found.append(order)
        for modality, level in actions:
            if all(m is not modality or done < level for m, done in order):
                extend((*order, (modality, level)))

    extend(())
    return found


def threshold_grid(stages: Stages, count: int) -> Iterator[tuple[float | None, ...]]:
    """Every combination of `count` quantiles of the confidence at each stage but the last, and None."""
    quantiles = np.linspace(0, 1, count + 2)[1:-1]
    options = [[None, *np.unique(np.quantile(c, quantiles)).tolist()] for c in stages.confidence.T[:-1]]
    return itertools.product(*options)
