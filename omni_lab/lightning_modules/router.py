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

from omni_lab.batch import OmniBatch
from omni_lab.config.schema import RouterConfig
from omni_lab.lightning_modules.schedule import seed_step
from omni_lab.model import OmniModel
from omni_lab.routing.cost import CostModel
from omni_lab.routing.policy_gradient import CostPenalty, group_advantages, policy_loss, self_critical_advantages
from omni_lab.routing.route import Route
from omni_lab.routing.router import MAX_PENALTY, MIN_PENALTY, Router, pool_questions

ESTIMATORS = ("group", "self_critical")


class RouteOutcome(NamedTuple):
    """Each [B]. score: the chance that the network gives the right answer under the route. correct: 1 or 0. cost: the
    route's share of what everything would cost, the controller included."""

    answer_prob: Float[Tensor, " b"]
    correct: Float[Tensor, " b"]
    cost: Float[Tensor, " b"]


def evaluate_route(network: OmniModel, batch: OmniBatch, route: Route, *, costs: CostModel) -> RouteOutcome:
    """What the network makes of a batch under a route, and at what cost."""
    space, counts = network.space, costs.count_tokens(batch)
    with torch.no_grad():
        answers = network(batch, heads=["answer"], route=route).head_outputs["answer"]
    target = batch.targets["answer_scores"]
    score = (answers.float().softmax(dim=1) * target).sum(1)
    correct = target.gather(1, answers.argmax(dim=1, keepdim=True)).squeeze(1)
    dense = costs(space, space.dense(batch.present.cpu()), counts).total - costs.router_flops
    cost = costs(space, route.to("cpu"), counts).total / dense
    return RouteOutcome(score, correct, cost.float().to(score.device))


def deduplicate_routes(batch: OmniBatch, route: Route) -> tuple[OmniBatch, Route, Int[Tensor, " n"]]:
    """route: for several rounds over the batch. Which samples to run under which routes when what came before is not
    run again, and where the outcome of every entry of `route` is found."""
    asked = torch.arange(len(batch), device=route.encoder_levels.device).repeat(len(route) // len(batch))
    _, same = torch.cat([asked[:, None], route.signature()], dim=1).unique(dim=0, return_inverse=True)
    order = torch.arange(len(route), device=same.device)
    first = torch.full((int(same.max()) + 1,), len(route), device=same.device).scatter_reduce(0, same, order, "amin")
    return batch.select(asked[first]), route.select(first), same


class LitRouterBase(L.LightningModule):
    """What every training of a controller on a frozen network shares. The network is not a submodule: neither its
    weights nor its mode are this module's business.

    columns: heading to metric, for tables. costs: what routes of `model` cost, the controller included. penalty: known
    once the training has begun.
    """

    columns: ClassVar[dict[str, str]]

    def __init__(
        self, model: OmniModel, controller: Router, config: RouterConfig, *, costs: CostModel, seed: int = 0
    ) -> None:
        super().__init__()
        self.router = controller
        self.config = config
        self.costs = costs
        self.seed_value = seed
        self.penalty: CostPenalty | None = None
        self._resumed = config.penalty  # or, with a budget, what a checkpoint had adapted it to
        self._network = [model.eval().requires_grad_(False)]  # in a list, so that it is no submodule

    @property
    def network(self) -> OmniModel:
        return self._network[0]

    def on_fit_start(self) -> None:
        self.network.to(self.device)
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        updates = self.config.epochs * -(-batches // self.config.accumulate)
        anneal = round(self.config.anneal_fraction * updates)
        self.penalty = CostPenalty(weight=self._resumed, anneal=anneal, budget=self.config.budget)

    @property
    def at_full_penalty(self) -> bool:
        return self.penalty is not None and self.global_step + 1 >= self.penalty.anneal

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["penalty"] = self.penalty.weight if self.penalty is not None else self.config.penalty

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["penalty"]

    def question_embeddings(self, batch: OmniBatch) -> dict[Any, Tensor]:
        """What the controller may see of each question."""
        with torch.no_grad():
            return pool_questions(self.network.encode_questions(batch), self.network.space.question_mask(batch.present))

    def on_train_batch_start(self, batch: OmniBatch, batch_idx: int) -> None:
        seed_step(self, self.seed_value, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.router.parameters(), lr=self.config.learning_rate)


class LitRouter(LitRouterBase):
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
        self, model: OmniModel, controller: Router, config: RouterConfig, *, costs: CostModel, seed: int = 0
    ) -> None:
        super().__init__(model, controller, config, costs=costs, seed=seed)
        if controller.space.to_dict() != model.space.to_dict():
            raise ValueError(
                f"a controller for {controller.space.to_dict()} cannot route a model of {model.space.to_dict()}"
            )
        if controller.penalty_conditioned != config.penalty_conditioned:
            raise ValueError(
                f"conditioned is {config.penalty_conditioned}, but the controller's is {controller.penalty_conditioned}"
            )
        if config.penalty_conditioned and config.budget is not None:
            raise ValueError(f"a conditioned controller learns all budgets: got budget={config.budget} as well")
        if config.estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {ESTIMATORS}: got {config.estimator!r}")
        self._seen: dict[str, list[Any]] = defaultdict(list)

    def route(self, batch: OmniBatch) -> Route:
        """What the controller runs: the likeliest of every decision; not of one that is conditioned."""
        return self.network.select_route(self.router, batch)[0]

    def evaluate_route(self, batch: OmniBatch, route: Route) -> RouteOutcome:
        return evaluate_route(self.network, batch, route, costs=self.costs)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        assert self.penalty is not None
        present, group = batch.present, self.config.group_size
        weight: Any = self.penalty.at(self.global_step)
        told = None
        if self.config.penalty_conditioned:  # a penalty for every question; it grows like any other
            told = MIN_PENALTY * (MAX_PENALTY / MIN_PENALTY) ** torch.rand(len(batch), device=self.device)
            weight = told * (weight / self.config.penalty)
        wishes = self.router(self.question_embeddings(batch), present, told)
        tried = [self.router.sample(wishes, present) for _ in range(group)]
        route = Route.cat([t.route for t in tried])
        questions, routes, where = deduplicate_routes(batch, route)
        judged = RouteOutcome(*(values[where] for values in self.evaluate_route(questions, routes)))
        score, cost = (values.unflatten(0, (group, -1)) for values in (judged.answer_prob, judged.cost))
        rewards = score - weight * cost
        if self.config.estimator == "group":
            advantages = group_advantages(rewards)
        else:
            likeliest = self.evaluate_route(batch, self.router.greedy(wishes, present))
            advantages = self_critical_advantages(rewards, likeliest.answer_prob - weight * likeliest.cost)
        log_probability, entropy = (torch.stack([getattr(t, name) for t in tried]) for name in ("log_prob", "entropy"))
        mean_cost = cost.mean()
        self.penalty.observe(float(mean_cost))
        logged: dict[str, Any] = {"reward": rewards.mean(), "cost": mean_cost, "entropy": entropy.mean()}
        logged["penalty"] = torch.as_tensor(weight).mean()
        logged["distinct_routes"] = float(route.distinct)
        self.log_dict({f"train/{k}": v for k, v in logged.items()}, on_step=True, on_epoch=False, batch_size=len(batch))
        return policy_loss(log_probability, advantages, entropy, entropy_coef=self.config.entropy_coef)

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        present = batch.present
        told = None
        if self.config.penalty_conditioned:
            told = torch.logspace(math.log10(MIN_PENALTY), math.log10(MAX_PENALTY), len(batch), device=self.device)
        route = self.router.greedy(self.router(self.question_embeddings(batch), present, told), present)
        judged = self.evaluate_route(batch, route)
        self._seen["reward"].append(judged.answer_prob - (self.config.penalty if told is None else told) * judged.cost)
        self._seen["accuracy"].append(judged.correct)
        self._seen["cost"].append(judged.cost)
        self._seen["signature"].append(route.signature())
        self._seen["path_mask"].append(self.network.space.path_mask(route).float())
        self._seen["families"].extend(batch.families)

    def on_validation_epoch_end(self) -> None:
        for name in ("reward", "accuracy", "cost"):
            self.log(f"validation/{name}", torch.cat(self._seen[name]).mean())
        self.log("validation/distinct_routes", float(len(torch.cat(self._seen["signature"]).unique(dim=0))))
        opened, families = torch.cat(self._seen["path_mask"]), self._seen["families"]
        for family in sorted(set(families)):
            of_family = torch.tensor([f == family for f in families], device=opened.device)
            rates = opened[of_family].mean(0)
            for layer, row in enumerate(rates):
                for path, rate in zip(self.network.space.paths, row, strict=True):
                    self.log(f"open/{family}/{layer}/{path}", rate)
        self._seen.clear()
