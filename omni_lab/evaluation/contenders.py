"""Kinds of routing policies on one network, evaluated on an `OutcomeTable`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality
from omni_lab.evaluation.outcome_table import OutcomeTable
from omni_lab.evaluation.policies import PolicyEvaluator, PolicyOutcome
from omni_lab.metrics.bootstrap import sum_by_group
from omni_lab.metrics.pareto import pareto_front
from omni_lab.routing.cascade import Action, Cascade, Stages, fit_thresholds, orders
from omni_lab.routing.glance import Glance
from omni_lab.routing.route import Route
from omni_lab.routing.sequential import RouterState, SequentialRouter
from omni_lab.utils.progress import track_progress


class PolicySet(NamedTuple):
    """K policies on the same n questions."""

    correct: np.ndarray  # [K, n], 1 for a right answer, else 0
    flops: np.ndarray  # [K, n]
    cross_modal_flops: np.ndarray  # [K, n]

    @classmethod
    def from_outcomes(cls, outcomes: Sequence[PolicyOutcome]) -> PolicySet:
        return cls(*(np.stack([getattr(outcome, name) for outcome in outcomes]) for name in cls._fields))


def kept_at_least(correct: np.ndarray, dense: np.ndarray, scenes: np.ndarray) -> np.ndarray:
    """[K], the lower end of the 95 % interval of the fraction of the dense accuracy that each policy [K, n] keeps.

    Normal, with questions about one scene as a cluster (Liang and Zeger 1986); fast enough for thousands of policies.
    """
    difference = correct - dense
    residuals = sum_by_group(difference - difference.mean(axis=-1, keepdims=True), scenes)
    error = np.sqrt(np.square(residuals).sum(axis=-1)) / len(scenes)
    return np.asarray(1 + (difference.mean(axis=-1) - 1.96 * error) / max(float(dense.mean()), 1e-9))


def cheapest_policy(fraction: float, policies: PolicySet, dense: np.ndarray, scenes: np.ndarray) -> int:
    """Which policy is the cheapest that keeps a fraction of the dense accuracy, see `kept_at_least`; if none does, that
    which keeps most. Use it on a validation split."""
    kept, cost = kept_at_least(policies.correct, dense, scenes), policies.flops.mean(axis=1)
    good = np.flatnonzero(kept >= fraction)
    return int(good[cost[good].argmin()]) if len(good) else int(kept.argmax())


def dense_plan(table: OutcomeTable) -> int:
    """The plan that runs everything."""
    return int(table.cost.mean(0).argmax())


def family_choices(validation: OutcomeTable, penalties: Sequence[float]) -> list[dict[str, int]]:
    """For each penalty the plan of the highest mean reward, by kind of question: what words alone can tell."""
    found = []
    members = {f: torch.from_numpy(validation.families == f) for f in np.unique(validation.families)}
    for penalty in penalties:
        reward = validation.answer_prob - penalty * validation.cost
        found.append({str(f): int(reward[here].mean(0).argmax()) for f, here in members.items()})
    return found


def mix_at_random(table: OutcomeTable, probability: float, *, seed: int = 0) -> Int[Tensor, " n"]:
    """Everything with a probability, else the question alone."""
    uniform = torch.rand(len(table), generator=torch.Generator().manual_seed(seed))
    return torch.where(uniform < probability, dense_plan(table), int(table.cost.mean(0).argmin()))


def oracle_policy(table: OutcomeTable) -> Int[Tensor, " n"]:
    """The cheapest plan that answers right, else the cheapest: it knows the answer, and counts lucky guesses."""
    cost = torch.where(table.correct > 0, table.cost, torch.inf)
    return torch.where((table.correct > 0).any(1), cost.argmin(1), table.cost.argmin(1))


SCREENED, SHORTLIST = 1000, 12  # questions that cascades are screened on; how many are left for each penalty
CascadeKind = tuple[bool, SequentialRouter | None, tuple[Action, ...]]  # paths, early head, order


class FittedCascade(NamedTuple):
    """paths: whether cross-modal paths are open. early: its confidence is that of the router's early head, which is
    cheaper, not that of the answer."""

    cascade: Cascade
    paths: bool
    early: bool


def confidence_cascades(
    validation: OutcomeTable,
    actions: Sequence[Action],
    penalties: Sequence[float],
    *,
    fraction: float,
    early: SequentialRouter,
) -> list[FittedCascade]:
    """The best confidence cascades: of all orders of encoders, with all paths and with none, the best under each
    penalty on a part of validation; with thresholds fitted to all of it; on the Pareto front. And the cheapest that
    keeps a fraction of the dense accuracy."""
    found: dict[FittedCascade, None] = {}
    points, kept = [], []
    dense = validation.correct[:, dense_plan(validation)].numpy()
    kinds = list(itertools.product((True, False), (None, early), orders(actions)))
    for penalty, kind in _promising(validation, kinds, penalties):
        paths, head, order = kind
        stages = cascade_stages(validation, order, paths=paths, early=head)
        fitted = FittedCascade(Cascade(order, fit_thresholds(stages, penalty)), paths, head is not None)
        if fitted in found:
            continue
        found[fitted] = None
        correct, cost, _ = stages.run(fitted.cascade.thresholds)
        points.append((float(cost.mean()), float(correct.mean())))
        kept.append(float(kept_at_least(correct[None], dense, validation.scenes)[0]))
    front, good = {*pareto_front(points)}, [i for i in range(len(found)) if kept[i] >= fraction]
    best = min(good, key=lambda i: points[i][0]) if good else int(np.argmax(kept))
    return [fitted for i, fitted in enumerate(found) if points[i] in front or i == best]


def _promising(
    validation: OutcomeTable, kinds: Sequence[CascadeKind], penalties: Sequence[float]
) -> list[tuple[float, CascadeKind]]:
    """For each penalty the `SHORTLIST` best kinds of cascades on a part of validation."""
    if len(validation) > SCREENED:
        validation = validation.select(np.random.default_rng(0).permutation(len(validation))[:SCREENED])
    rewards = np.zeros((len(penalties), len(kinds)))
    for k, (paths, head, order) in enumerate(track_progress(kinds, "cascades", total=len(kinds), unit="order")):
        stages = cascade_stages(validation, order, paths=paths, early=head)
        for p, penalty in enumerate(penalties):
            correct, cost, _ = stages.run(fit_thresholds(stages, penalty, sweeps=1))
            rewards[p, k] = float((correct - penalty * cost).mean())
    best = np.argsort(-rewards, axis=1)[:, :SHORTLIST]
    return [(penalty, kinds[k]) for penalty, row in zip(penalties, best, strict=True) for k in row]


def cascade_stages(
    table: OutcomeTable, order: Sequence[Action], *, paths: bool = True, early: SequentialRouter | None = None
) -> Stages:
    """What each stage of an order answers, and at which cost."""
    levels = torch.full((NUM_MODALITIES,), int(ComputeLevel.SKIP))
    levels[Modality.TEXT.column] = int(ComputeLevel.FULL)
    nothing, plans, encoders = table.plan_index(levels), [], []
    spent = table.encoder_flops[:, nothing]
    for modality, level in order:
        alone = levels.clone()
        alone[[m.column for m in Modality if m is not Modality.TEXT]] = int(ComputeLevel.SKIP)
        alone[modality.column] = int(level)
        spent = spent + table.encoder_flops[:, table.plan_index(alone)] - table.encoder_flops[:, nothing]
        levels[modality.column] = int(level)
        plans.append(table.plan_index(levels, paths=paths))
        encoders.append(spent)
    dense = table.dense_flops[:, None]
    confidence = table.confidence[:, plans] if early is None else early_confidence(early, table, order)
    return Stages(
        confidence=confidence.double().numpy(),
        correct=table.correct[:, plans].numpy(),
        encoder_cost=(torch.stack(encoders, 1) / dense).numpy(),
        answer_cost=(table.fusion_flops[:, plans] / dense).numpy(),
        look_cost=None if early is None else early.early_flops / float(table.dense_flops.mean()),
    )


def cascade_outcome(table: OutcomeTable, fitted: FittedCascade, early: SequentialRouter) -> PolicyOutcome:
    """What a cascade does on the questions of a table. early: the router whose head it may look at."""
    order = fitted.cascade.order
    stages = cascade_stages(table, order, paths=fitted.paths, early=early if fitted.early else None)
    _, cost, stage = stages.run(fitted.cascade.thresholds)
    levels = torch.zeros(len(order), NUM_MODALITIES, dtype=torch.long)
    levels[:, Modality.TEXT.column] = int(ComputeLevel.FULL)
    for i, (modality, level) in enumerate(order):
        levels[i:, modality.column] = int(level)
    plans = torch.tensor([table.plan_index(row, paths=fitted.paths) for row in levels])
    return replace(table.outcome(plans[torch.from_numpy(stage)]), flops=cost * table.dense_flops.numpy())


@torch.inference_mode()
def early_confidence(router: SequentialRouter, table: OutcomeTable, order: Sequence[Action]) -> Float[Tensor, "n s"]:
    """The largest probability of the early head after each stage of an order."""
    state, every, found = initial_state_of(router.glance, table), torch.arange(len(table)), []
    for modality, level in order:
        state = state.after(every, modality, level, table.summaries[:, modality.column, level])
        found.append(router.early_answer(state).softmax(1).amax(1))
    return torch.stack(found, dim=1)


def initial_state_of(glance: Glance, table: OutcomeTable) -> RouterState:
    """Of all questions, before anything but them was encoded."""
    glances = glance(table.glances, table.present)
    return RouterState.initial(table.question, table.present, table.question_mask, glances)


def sequential_outcomes(
    router: SequentialRouter,
    evaluator: PolicyEvaluator,
    table: OutcomeTable,
    penalties: Sequence[float],
    *,
    glances: float,
) -> tuple[list[PolicyOutcome], list[Route]]:
    """A sequential router under each penalty, and its routes.

    table: of the evaluator's questions, in its order; the router looks at its summaries, so that no encoder runs.
    glances: FLOPs of looking at all inputs of a question.
    """
    outcomes, routes = [], []
    state, looked = initial_state_of(router.glance, table), torch.full((len(table),), glances, dtype=torch.double)

    def look(samples: Tensor, modality: Modality, level: ComputeLevel) -> Tensor:
        return table.summaries[samples, modality.column, level]

    for penalty in penalties:
        with torch.inference_mode():
            trajectory, _ = router.run(state, look, penalty=torch.full((len(table),), penalty))
        flops = evaluator.costs.of_trajectory(
            evaluator.space, trajectory, evaluator.token_counts, step=router.step_flops, glances=looked
        )
        outcomes.append(replace(evaluator.evaluate(trajectory.route), flops=flops.total.numpy()))
        routes.append(trajectory.route)
    return outcomes, routes


def shuffle_within(families: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """[n], an order that permutes questions among those of the same family."""
    order, rng = np.arange(len(families)), np.random.default_rng(seed)
    for family in np.unique(families):
        members = np.flatnonzero(families == family)
        order[members] = rng.permutation(members)
    return order
