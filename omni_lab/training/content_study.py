"""Routing by content on one network: every kind of policy is run under many settings, chosen on validation, and
measured on questions of another seed.

A policy is a JSON value, so that what was chosen can be stored, and run again on other questions of the same network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from omni_lab.batch import ComputeLevel, Modality
from omni_lab.config.schema import ContentConfig, Profile
from omni_lab.data.datamodule import OmniDataModule
from omni_lab.data.sources.base import SPLITS
from omni_lab.evaluation import contenders
from omni_lab.evaluation.contenders import FittedCascade, PolicySet
from omni_lab.evaluation.outcome_table import OutcomeTable, build_outcome_table
from omni_lab.evaluation.policies import PolicyEvaluator, PolicyOutcome
from omni_lab.routing.cascade import Cascade
from omni_lab.routing.route import Route
from omni_lab.routing.sequential import SequentialRouter
from omni_lab.training.fit import load_or_train
from omni_lab.training.recipes import TrainedModel, get_recipe
from omni_lab.training.sequential_recipes import (
    get_sequential_recipe,
    glance_flops,
    held_out,
    load_or_train_sequential,
    prepare_for_routing,
)
from omni_lab.training.table_baselines import ONE_SHOT, OneShot, train_one_shot

ROUTERS = {"router": "sequential", "fitted Q": "fitted_q"}  # kinds that look again, and their recipes
CHOICE_SEED, SEALED_SEED = 2, 1  # of the worlds on which policies are chosen; that no design decision has seen


@dataclass
class ContentStudy:
    """A trained network, its routers, and the outcomes of all plans on a split.

    world: "digits" or "adverse". network_seed: of the network.
    """

    world: str
    profile: Profile
    network_seed: int = 0
    retrain: bool = False
    one_shot: dict[str, OneShot] = field(default_factory=dict)

    @property
    def config(self) -> ContentConfig:
        return getattr(self.profile, self.world)

    @property
    def media(self) -> list[Modality]:
        """What the router may look at."""
        return [m for m in self.network.model.space.modalities if m is not Modality.TEXT]

    @cached_property
    def network(self) -> TrainedModel:
        return load_or_train(
            get_recipe(f"{self.world}_distilled", self.profile, seed=self.network_seed), retrain=self.retrain
        )

    @cached_property
    def routers(self) -> dict[str, SequentialRouter]:
        found: dict[str, Any] = {}
        for kind, name in ROUTERS.items():
            recipe = get_sequential_recipe(name, self.profile, network=self.world, network_seed=self.network_seed)
            found[kind] = load_or_train_sequential(recipe, self.network, retrain=self.retrain).router
        return found

    @cached_property
    def glances(self) -> float:
        """FLOPs of all glances at a question."""
        return glance_flops(self.routers["router"], self.network)

    def source_of(self, split: str) -> Any:
        """The same world of another seed: the questions on which policies are chosen ("validation"), or measured
        ("test"), as many as the profile has."""
        count = self.config.choice_questions
        if split == "test":
            count = self.profile.scaled(self.config.examples["test"])
        seed = SEALED_SEED if split == "test" else CHOICE_SEED
        return replace(self.network.data.source, examples=dict.fromkeys(SPLITS, 20) | {split: count}, seed=seed)

    def data_of(self, split: str) -> OmniDataModule:
        """The questions of `source_of`, as new."""
        data = self.network.data
        options: dict[str, Any] = {"root": data.root, "modalities": data.modalities, "tokenizer": data.store.tokenizer}
        return OmniDataModule(self.source_of(split), replace(data.config, max_scenes=None), **options)

    def _evaluate(self, split: str) -> tuple[PolicyEvaluator, OutcomeTable]:
        network = self.network._replace(data=self.data_of(split))
        prepare_for_routing(network, split)
        evaluator = PolicyEvaluator(network.model, network.data.dataset(split))
        table = build_outcome_table(network.model, evaluator.dataset, questions=evaluator.order)
        for index, plan in enumerate(table.plans):
            evaluator.remember(plan.route(evaluator.space, evaluator.present), table.correct[:, index].numpy())
        return evaluator, table

    @cached_property
    def validation(self) -> tuple[PolicyEvaluator, OutcomeTable]:
        return self._evaluate("validation")

    @cached_property
    def test(self) -> tuple[PolicyEvaluator, OutcomeTable]:
        return self._evaluate("test")

    @cached_property
    def dense(self) -> PolicyOutcome:
        """Of the test questions."""
        table = self.test[1]
        return table.outcome(torch.full((len(table),), contenders.dense_plan(table)))

    def train_one_shot(self, steps: int) -> None:
        """Trains all routers that decide once, on questions that the network was not trained on."""
        rest = held_out(self.network)
        prepare_for_routing(rest, "train")
        table = build_outcome_table(rest.model, rest.data.dataset("train"))
        self.one_shot = {f"one shot, {name}": train_one_shot(table, name, steps=steps) for name in ONE_SHOT}

    def candidates(self, penalties: Sequence[float], *, kept: float) -> dict[str, list[Any]]:
        """The policies of each kind among which validation decides, as JSON values. A penalty stands for its router."""
        table = self.validation[1]
        actions = [(m, level) for m in self.media for level in self.network.model.space.allowed_levels(m)[1:]]
        fitted = contenders.confidence_cascades(table, actions, penalties, fraction=kept, early=self.routers["router"])
        return {
            "static": list(range(len(table.plans))),
            "table": contenders.family_choices(table, penalties),
            "random": np.linspace(0, 1, 11).tolist(),
            "cascade": [cascade_to_json(c) for c in fitted],
            **{kind: list(penalties) for kind in (*self.one_shot, *ROUTERS)},
        }

    def run(self, kind: str, policies: Sequence[Any], split: str = "test") -> tuple[PolicySet, list[Route]]:
        """Policies of one kind on a split. Routes are those of the routers that look again, else none."""
        evaluator, table = getattr(self, split)
        if kind in ROUTERS:
            outcomes, routes = contenders.sequential_outcomes(
                self.routers[kind], evaluator, table, policies, glances=self.glances
            )
            return PolicySet.from_outcomes(outcomes), routes
        return PolicySet.from_outcomes([self._outcome(kind, policy, table) for policy in policies]), []

    def _outcome(self, kind: str, policy: Any, table: OutcomeTable) -> PolicyOutcome:
        if kind == "static":
            return table.outcome(torch.full((len(table),), policy))
        if kind == "table":
            return table.outcome(torch.tensor([policy[f] for f in table.families]))
        if kind == "random":
            return table.outcome(contenders.mix_at_random(table, policy))
        if kind == "oracle":
            return table.outcome(contenders.oracle_policy(table))
        if kind == "cascade":
            return contenders.cascade_outcome(table, cascade_from_json(policy), self.routers["router"])
        single = self.one_shot[kind]
        return table.outcome(single.choose(table, policy), extra_flops=single.router.flops + self.glances)

    def choose(self, candidates: Mapping[str, Sequence[Any]], *, kept: float) -> dict[str, Any]:
        """Of each kind the cheapest policy that surely keeps a fraction of the dense accuracy on validation."""
        table = self.validation[1]
        dense = table.correct[:, contenders.dense_plan(table)].numpy()
        chosen = {}
        for kind, policies in candidates.items():
            found, _ = self.run(kind, policies, "validation")
            chosen[kind] = policies[contenders.cheapest_policy(kept, found, dense, table.scenes)]
        return chosen

    def penalty_for_budget(self, budget: float, *, penalties: Sequence[float]) -> float:
        """The penalty under which the router takes a mean fraction of the dense cost, between those of `penalties` on
        validation. Raises ValueError for a budget below what looking alone costs, or below the least cost."""
        table = self.validation[1]
        looking = self.glances / float(table.dense_flops.mean())
        if budget < looking:
            raise ValueError(f"the glances alone cost {looking:.4f} of the dense cost: got a budget of {budget:g}")
        costs = self.run("router", sorted(penalties), "validation")[0].flops.mean(axis=1)
        costs = np.minimum.accumulate(costs / float(table.dense_flops.mean()))[::-1]  # ascending
        if budget < costs[0]:
            raise ValueError(f"no penalty meets a budget of {budget:g} of the dense cost: the least is {costs[0]:.4f}")
        return float(np.exp(np.interp(budget, costs, np.log(sorted(penalties))[::-1])))

    def operating_points(self, chosen: Mapping[str, Any], *, seed: int = 0) -> dict[str, PolicySet]:
        """Each chosen policy on the test questions, with the oracle; and "shuffled": the router's routes, permuted
        among questions of the same kind."""
        evaluator, table = self.test
        points = {"oracle": self.run("oracle", [None])[0]}
        for kind, policy in chosen.items():
            points[kind], routes = self.run(kind, [policy])
            if kind == "router":
                order = torch.from_numpy(contenders.shuffle_within(table.families, seed=seed))
                shuffled = evaluator.evaluate(routes[0].select(order)).correct
                points["shuffled"] = points[kind]._replace(correct=shuffled[None])
        return points


def cascade_to_json(fitted: FittedCascade) -> dict[str, Any]:
    order = [[m.value, int(level)] for m, level in fitted.cascade.order]
    thresholds = ["stop" if t == -np.inf else t for t in fitted.cascade.thresholds]
    return {"order": order, "thresholds": thresholds, "paths": fitted.paths, "early": fitted.early}


def cascade_from_json(value: Mapping[str, Any]) -> FittedCascade:
    order = tuple((Modality(m), ComputeLevel(level)) for m, level in value["order"])
    thresholds = tuple(-np.inf if t == "stop" else t for t in value["thresholds"])
    return FittedCascade(Cascade(order, thresholds), value["paths"], value["early"])
