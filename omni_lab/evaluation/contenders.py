"""Kinds of routing policies on one network: each as policies of rising cost, chosen on validation, run on test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from omni_lab.routing.cascade import Action, Cascade, Stages, orders, threshold_grid
from omni_lab.routing.glance import Glance
from omni_lab.routing.route import Route
from omni_lab.routing.sequential import RouterState, SequentialRouter

Choose = Callable[[OutcomeTable], Int[Tensor, " n"]]  # a plan for each question


class PolicySet(NamedTuple):
    """K policies on the same n questions."""

    correct: np.ndarray  # [K, n], 1 for a right answer, else 0
    flops: np.ndarray  # [K, n]
    cross_modal_flops: np.ndarray  # [K, n]

    @classmethod
    def from_outcomes(cls, outcomes: Sequence[PolicyOutcome]) -> PolicySet:
        return cls(*(np.stack([getattr(outcome, name) for outcome in outcomes]) for name in cls._fields))


class Contender(NamedTuple):
    """The same policies on the questions of both splits."""

    validation: PolicySet
    test: PolicySet


def kept_at_least(correct: np.ndarray, dense: np.ndarray, scenes: np.ndarray) -> np.ndarray:
    """[K], the lower end of the 95 % interval of the fraction of the dense accuracy that each policy [K, n] keeps.

    Normal, with questions about one scene as a cluster (Liang and Zeger 1986); fast enough for thousands of policies.
    """
    difference = correct - dense
    residuals = sum_by_group(difference - difference.mean(axis=-1, keepdims=True), scenes)
    error = np.sqrt(np.square(residuals).sum(axis=-1)) / len(scenes)
    return np.asarray(1 + (difference.mean(axis=-1) - 1.96 * error) / dense.mean())


def cheapest_policy(fraction: float, policies: PolicySet, dense: np.ndarray, scenes: np.ndarray) -> int:
    """Which policy is the cheapest that keeps a fraction of the dense accuracy, see `kept_at_least`; if none does, that
    which keeps most. Use it on a validation split."""
    kept, cost = kept_at_least(policies.correct, dense, scenes), policies.flops.mean(axis=1)
    good = np.flatnonzero(kept >= fraction)
    return int(good[cost[good].argmin()]) if len(good) else int(kept.argmax())


def dense_plan(table: OutcomeTable) -> int:
    """The plan that runs everything."""
    return int(table.cost.mean(0).argmax())


def choosing(
    policies: Sequence[Choose], validation: OutcomeTable, test: OutcomeTable, *, extra_flops: float = 0.0
) -> Contender:
    """Policies that choose a plan for each question. extra_flops: of choosing."""
    sets = [
        PolicySet.from_outcomes([table.outcome(choose(table), extra_flops=extra_flops) for choose in policies])
        for table in (validation, test)
    ]
    return Contender(*sets)


def static_policies(table: OutcomeTable) -> list[Choose]:
    """One plan for all questions."""

    def constant(plan: int) -> Choose:
        return lambda table: torch.full((len(table),), plan)

    return [constant(plan) for plan in range(len(table.plans))]


def family_policies(validation: OutcomeTable, penalties: Sequence[float]) -> list[Choose]:
    """For each penalty the plan of the highest mean reward, by kind of question: what words alone can tell."""

    def lookup_by(penalty: float) -> Choose:
        reward = validation.answer_prob - penalty * validation.cost
        families = np.unique(validation.families)
        best = {f: int(reward[torch.from_numpy(validation.families == f)].mean(0).argmax()) for f in families}
        return lambda table: torch.tensor([best[f] for f in table.families])

    return [lookup_by(penalty) for penalty in penalties]


def random_policies(table: OutcomeTable, count: int = 11, *, seed: int = 0) -> list[Choose]:
    """Everything with a probability, else the question alone."""
    everything, nothing = dense_plan(table), int(table.cost.mean(0).argmin())

    def mix(probability: float) -> Choose:
        def choose(table: OutcomeTable) -> Tensor:
            uniform = torch.rand(len(table), generator=torch.Generator().manual_seed(seed))
            return torch.where(uniform < probability, everything, nothing)

        return choose

    return [mix(probability) for probability in np.linspace(0, 1, count)]


def oracle_policy(table: OutcomeTable) -> Int[Tensor, " n"]:
    """The cheapest plan that answers right, else the cheapest: it knows the answer, and counts lucky guesses."""
    cost = torch.where(table.correct > 0, table.cost, torch.inf)
    return torch.where((table.correct > 0).any(1), cost.argmin(1), table.cost.argmin(1))


def confidence_cascades(
    validation: OutcomeTable,
    test: OutcomeTable,
    actions: Sequence[Action],
    *,
    fraction: float,
    quantiles: int = 8,
    early: SequentialRouter | None = None,
) -> tuple[Contender, list[Cascade]]:
    """The best confidence cascades: all orders of encoders, all thresholds, with all paths and with none, on the Pareto
    front of validation; and the cheapest that keeps a fraction of the dense accuracy.

    early: also try the confidence of this router's early head, which is cheaper than that of the answer.
    """
    found, costs, accuracies, kept = [], [], [], []
    dense = validation.correct[:, dense_plan(validation)].numpy()
    for paths in (True, False):
        for head in (None, early) if early is not None else (None,):
            for order in orders(actions):
                stages = cascade_stages(validation, order, paths=paths, early=head)
                grid = [*threshold_grid(stages, quantiles)]
                found += [(Cascade(order, thresholds), paths, head) for thresholds in grid]
                correct, cost, _ = map(np.stack, zip(*map(stages.run, grid), strict=True))
                costs += cost.mean(axis=1).tolist()
                accuracies += correct.mean(axis=1).tolist()
                kept += kept_at_least(correct, dense, validation.scenes).tolist()
    points = [*zip(costs, accuracies, strict=True)]
    front, good = {*pareto_front(points)}, [i for i in range(len(found)) if kept[i] >= fraction]
    best = min(good, key=lambda i: costs[i]) if good else int(np.argmax(kept))
    chosen = [i for i in range(len(found)) if points[i] in front or i == best]
    sets = []
    for table in (validation, test):
        outcomes = [_cascade_outcome(table, *found[i]) for i in chosen]
        sets.append(PolicySet.from_outcomes(outcomes))
    return Contender(*sets), [found[i][0] for i in chosen]


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


def _cascade_outcome(
    table: OutcomeTable, cascade: Cascade, paths: bool, early: SequentialRouter | None
) -> PolicyOutcome:
    stages = cascade_stages(table, cascade.order, paths=paths, early=early)
    correct, cost, stage = stages.run(cascade.thresholds)
    levels = torch.zeros(len(cascade.order), NUM_MODALITIES, dtype=torch.long)
    levels[:, Modality.TEXT.column] = int(ComputeLevel.FULL)
    for i, (modality, level) in enumerate(cascade.order):
        levels[i:, modality.column] = int(level)
    plans = torch.tensor([table.plan_index(row, paths=paths) for row in levels])
    outcome = table.outcome(plans[torch.from_numpy(stage)])
    assert np.array_equal(outcome.correct, correct)
    return replace(outcome, flops=cost * table.dense_flops.numpy())


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


def sequential_policies(
    router: SequentialRouter,
    evaluators: Sequence[PolicyEvaluator],
    tables: Sequence[OutcomeTable],
    penalties: Sequence[float],
    *,
    glances: float,
) -> tuple[Contender, list[Route]]:
    """A sequential router under each penalty, on validation and test; and its routes on test.

    tables: of the evaluators' questions, in their order; the router looks at their summaries, so that no encoder runs.
    glances: FLOPs of looking at all inputs of a question.
    """
    sets: list[PolicySet] = []
    routes: list[Route] = []
    for evaluator, table in zip(evaluators, tables, strict=True):
        outcomes, routes = [], []
        state, looked = initial_state_of(router.glance, table), torch.full((len(table),), glances, dtype=torch.double)

        def look(samples: Tensor, modality: Modality, level: ComputeLevel, table: OutcomeTable = table) -> Tensor:
            return table.summaries[samples, modality.column, level]

        for penalty in penalties:
            with torch.inference_mode():
                trajectory, _ = router.run(state, look, penalty=torch.full((len(table),), penalty))
            flops = evaluator.costs.of_trajectory(
                evaluator.space, trajectory, evaluator.token_counts, step=router.step_flops, glances=looked
            )
            outcome = evaluator.evaluate(trajectory.route)
            outcomes.append(replace(outcome, flops=flops.total.numpy()))
            routes.append(trajectory.route)
        sets.append(PolicySet.from_outcomes(outcomes))
    return Contender(*sets), routes


def shuffle_within(families: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """[n], an order that permutes questions among those of the same family."""
    order, rng = np.arange(len(families)), np.random.default_rng(seed)
    for family in np.unique(families):
        members = np.flatnonzero(families == family)
        order[members] = rng.permutation(members)
    return order
