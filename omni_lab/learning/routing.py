"""RouterTraining: a controller learns by policy gradient what to run, on a network that stays as it is."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from omni_lab.config import RouterConfig
from omni_lab.learning.schedule import seed_step
from omni_lab.modalities import OmniBatch
from omni_lab.model import OmniModel
from omni_lab.routing import Route
from omni_lab.routing.controller import LEAST, MOST, Controller, question_means
from omni_lab.routing.cost import CostModel
from omni_lab.routing.policy_gradient import Penalty, group_advantages, policy_loss, self_critical_advantages

ESTIMATORS = ("group", "self_critical")


class Judged(NamedTuple):
    """Each [B]. score: the chance that the network gives the right answer under the route. correct: 1 or 0. cost: the
    route's share of what everything would cost, the controller included."""

    score: Float[Tensor, " b"]
    correct: Float[Tensor, " b"]
    cost: Float[Tensor, " b"]


def judge(network: OmniModel, batch: OmniBatch, route: Route, *, costs: CostModel) -> Judged:
    """What the network makes of a batch under a route, and at what cost."""
    space, counts = network.space, costs.tokens(batch)
    with torch.no_grad():
        answers = network(batch, heads=["answer"], route=route).heads["answer"]
    target = batch.targets["answer_scores"]
    score = (answers.float().softmax(dim=1) * target).sum(1)
    correct = target.gather(1, answers.argmax(dim=1, keepdim=True)).squeeze(1)
    dense = costs(space, space.dense(batch.present.cpu()), counts).total - costs.controller
    cost = costs(space, route.to("cpu"), counts).total / dense
    return Judged(score, correct, cost.float().to(score.device))


def each_once(batch: OmniBatch, route: Route) -> tuple[OmniBatch, Route, Int[Tensor, " n"]]:
    """route: for several rounds over the batch. Which samples to run under which routes when what came before is not
    run again, and where the outcome of every entry of `route` is found."""
    asked = torch.arange(len(batch), device=route.encoders.device).repeat(len(route) // len(batch))
    _, same = torch.cat([asked[:, None], route.signature()], dim=1).unique(dim=0, return_inverse=True)
    order = torch.arange(len(route), device=same.device)
    first = torch.full((int(same.max()) + 1,), len(route), device=same.device).scatter_reduce(0, same, order, "amin")
    return batch.of(asked[first]), route.of(first), same


class ControllerTraining(L.LightningModule):
    """What every training of a controller on a frozen network shares. The network is not a submodule: neither its
    weights nor its mode are this module's business.

    columns: heading to metric, for tables. costs: what routes of `model` cost, the controller included. penalty: known
    once the training has begun.
    """

    columns: ClassVar[dict[str, str]]

    def __init__(
        self, model: OmniModel, controller: Controller, config: RouterConfig, *, costs: CostModel, seed: int = 0
    ) -> None:
        super().__init__()
        self.controller = controller
        self.config = config
        self.costs = costs
        self.seed_value = seed
        self.penalty: Penalty | None = None
        self._resumed = config.penalty  # or, with a budget, what a checkpoint had adapted it to
        self._network = [model.eval().requires_grad_(False)]  # in a list, so that it is no submodule

    @property
    def network(self) -> OmniModel:
        return self._network[0]

    def on_fit_start(self) -> None:
        self.network.to(self.device)
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        updates = self.config.epochs * -(-batches // self.config.accumulate)
        anneal = round(self.config.anneal * updates)
        self.penalty = Penalty(weight=self._resumed, anneal=anneal, budget=self.config.budget)

    @property
    def at_full_penalty(self) -> bool:
        return self.penalty is not None and self.global_step + 1 >= self.penalty.anneal

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["penalty"] = self.penalty.weight if self.penalty is not None else self.config.penalty

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["penalty"]

    def question(self, batch: OmniBatch) -> dict[Any, Tensor]:
        """What the controller may see of each question."""
        with torch.no_grad():
            return question_means(self.network.questions(batch), self.network.space.carriers(batch.present))

    def on_train_batch_start(self, batch: OmniBatch, batch_idx: int) -> None:
        seed_step(self, self.seed_value, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.controller.parameters(), lr=self.config.learning_rate)


class RouterTraining(ControllerTraining):
    """For every question, `config.group` routes are drawn and tried; what is likelier than before are those that were
    worth more, reward = score - penalty x cost, than the others of their group.

    model: its space must be the controller's. Raises ValueError otherwise.
    """

    columns: ClassVar[dict[str, str]] = {
        "reward": "train/reward",
        "cost": "train/cost",
        "validation reward": "validation/reward",
        "accuracy": "validation/accuracy",
        "validation cost": "validation/cost",
        "routes": "validation/distinct_routes",
    }

    def __init__(
        self, model: OmniModel, controller: Controller, config: RouterConfig, *, costs: CostModel, seed: int = 0
    ) -> None:
        super().__init__(model, controller, config, costs=costs, seed=seed)
        if controller.space.identity() != model.space.identity():
            raise ValueError(
                f"a controller for {controller.space.identity()} cannot route a model of {model.space.identity()}"
            )
        if controller.conditioned != config.conditioned:
            raise ValueError(f"conditioned is {config.conditioned}, but the controller's is {controller.conditioned}")
        if config.conditioned and config.budget is not None:
            raise ValueError(f"a conditioned controller learns all budgets: got budget={config.budget} as well")
        if config.estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {ESTIMATORS}: got {config.estimator!r}")
        self._seen: dict[str, list[Any]] = defaultdict(list)

    def route(self, batch: OmniBatch) -> Route:
        """What the controller runs: the likeliest of every decision; not of one that is conditioned."""
        return self.network.decide(self.controller, batch)[0]

    def judge(self, batch: OmniBatch, route: Route) -> Judged:
        return judge(self.network, batch, route, costs=self.costs)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        assert self.penalty is not None
        present, group = batch.present, self.config.group
        weight: Any = self.penalty.at(self.global_step)
        told = None
        if self.config.conditioned:  # a penalty for every question; it grows like any other
            told = LEAST * (MOST / LEAST) ** torch.rand(len(batch), device=self.device)
            weight = told * (weight / self.config.penalty)
        wishes = self.controller(self.question(batch), present, told)
        tried = [self.controller.decide(wishes, present) for _ in range(group)]
        route = Route.cat([t.route for t in tried])
        questions, routes, where = each_once(batch, route)
        judged = Judged(*(values[where] for values in self.judge(questions, routes)))
        score, cost = (values.unflatten(0, (group, -1)) for values in (judged.score, judged.cost))
        rewards = score - weight * cost
        if self.config.estimator == "group":
            advantages = group_advantages(rewards)
        else:
            likeliest = self.judge(batch, self.controller.greedy(wishes, present))
            advantages = self_critical_advantages(rewards, likeliest.score - weight * likeliest.cost)
        log_probability, entropy = (
            torch.stack([getattr(t, name) for t in tried]) for name in ("log_probability", "entropy")
        )
        mean_cost = cost.mean()
        self.penalty.observe(float(mean_cost))
        logged: dict[str, Any] = {"reward": rewards.mean(), "cost": mean_cost, "entropy": entropy.mean()}
        logged["penalty"] = torch.as_tensor(weight).mean()
        logged["distinct_routes"] = float(route.distinct)
        self.log_dict({f"train/{k}": v for k, v in logged.items()}, on_step=True, on_epoch=False, batch_size=len(batch))
        return policy_loss(log_probability, advantages, entropy, entropy_bonus=self.config.entropy_bonus)

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        present = batch.present
        told = None
        if self.config.conditioned:
            told = torch.logspace(math.log10(LEAST), math.log10(MOST), len(batch), device=self.device)
        route = self.controller.greedy(self.controller(self.question(batch), present, told), present)
        judged = self.judge(batch, route)
        self._seen["reward"].append(judged.score - (self.config.penalty if told is None else told) * judged.cost)
        self._seen["accuracy"].append(judged.correct)
        self._seen["cost"].append(judged.cost)
        self._seen["signature"].append(route.signature())
        self._seen["opened"].append(self.network.space.opened(route).float())
        self._seen["families"].extend(batch.families)

    def on_validation_epoch_end(self) -> None:
        for name in ("reward", "accuracy", "cost"):
            self.log(f"validation/{name}", torch.cat(self._seen[name]).mean())
        self.log("validation/distinct_routes", float(len(torch.cat(self._seen["signature"]).unique(dim=0))))
        opened, families = torch.cat(self._seen["opened"]), self._seen["families"]
        for family in sorted(set(families)):
            of_family = torch.tensor([f == family for f in families], device=opened.device)
            rates = opened[of_family].mean(0)
            for layer, row in enumerate(rates):
                for path, rate in zip(self.network.space.paths, row, strict=True):
                    self.log(f"open/{family}/{layer}/{path}", rate)
        self._seen.clear()
