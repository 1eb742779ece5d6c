"""LitRouter: policy-gradient training of a router on a frozen network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from omni_lab.batch import Modality, OmniBatch
from omni_lab.config.schema import RouterConfig
from omni_lab.lightning_modules.base import SeededModule
from omni_lab.model import OmniModel
from omni_lab.routing.cost import CostModel
from omni_lab.routing.policy_gradient import CostPenalty, group_advantages, policy_loss, self_critical_advantages
from omni_lab.routing.route import Route, RouteSpace
from omni_lab.routing.router import MAX_PENALTY, MIN_PENALTY, Router, pool_questions


class RouteOutcome(NamedTuple):
    """Answers under a route, and its cost."""

    answer_prob: Float[Tensor, " b"]  # probability that the network gives to the right answer
    correct: Float[Tensor, " b"]  # score of the most probable answer, mostly 1 or 0
    cost: Float[Tensor, " b"]  # see `relative_costs`

    @classmethod
    def from_logits(cls, logits: Tensor, scores: Tensor, cost: Tensor) -> RouteOutcome:
        """logits, scores: [B, A], of every answer, by the network and by the labels. cost: [B]."""
        correct = scores.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
        return cls((logits.float().softmax(dim=1) * scores).sum(1), correct, cost.float().to(correct.device))


def relative_costs(
    costs: CostModel, space: RouteSpace, batch: OmniBatch, routes: Sequence[Route]
) -> Float[Tensor, "b r"]:
    """FLOPs under each route, the router's included, as a fraction of those of the dense route without a router."""
    tokens = costs.count_tokens(batch)
    dense = costs(space, space.dense(batch.present.cpu()), tokens)
    totals = torch.stack([costs(space, route.to("cpu"), tokens).total for route in routes], dim=1)
    return totals / (dense.total - dense.router)[:, None]


def evaluate_route(network: OmniModel, batch: OmniBatch, route: Route, *, costs: CostModel) -> RouteOutcome:
    """Runs the network on a batch under a route."""
    with torch.no_grad():
        logits = network(batch, heads=["answer"], route=route).head_outputs["answer"]
    cost = relative_costs(costs, network.space, batch, [route])[:, 0]
    return RouteOutcome.from_logits(logits, batch.targets["answer_scores"], cost)


def deduplicate_routes(batch: OmniBatch, routes: Route) -> tuple[OmniBatch, Route, Int[Tensor, " n"]]:
    """Several routes for each sample of a batch, without those that a sample has twice.

    routes: [G * B], G routes for every sample, group by group.
    Returns the samples to run, their routes, and for each of the [G * B] its index among them.
    """
    sample = torch.arange(len(batch), device=routes.encoder_levels.device).repeat(len(routes) // len(batch))
    _, index = torch.cat([sample[:, None], routes.signature()], dim=1).unique(dim=0, return_inverse=True)
    order = torch.arange(len(routes), device=index.device)
    first = torch.full((int(index.max()) + 1,), len(routes), device=index.device)
    first = first.scatter_reduce(0, index, order, "amin")
    return batch.select(sample[first]), routes.select(first), index


class LitRouterBase(SeededModule):
    """Base class of all trainings of a router on a frozen network.

    The network is not a submodule: it is neither saved nor set to training mode.
    """

    columns: ClassVar[dict[str, str]]  # heading of a table's column -> name of the logged metric
    estimators: ClassVar[tuple[str, ...]]  # what `RouterConfig.estimator` may be
    least_penalty: ClassVar[float] = MIN_PENALTY  # where the range starts of penalty-conditioned routers

    def __init__(
        self, model: OmniModel, router: nn.Module, config: RouterConfig, *, costs: CostModel, seed: int = 0
    ) -> None:
        """model: the network. costs: with the router's FLOPs. Raises ValueError for an estimator of another class."""
        if config.estimator not in self.estimators:
            raise ValueError(f"estimator must be one of {self.estimators}: got {config.estimator!r}")
        super().__init__(config, seed)
        self.router: Any = router
        self.costs = costs
        self.penalty = CostPenalty(weight=config.penalty, anneal=0, budget=config.budget)
        self.steps = 1  # of the whole training
        self._network = [model.eval().requires_grad_(False)]  # in a list, so that it is no submodule

    @property
    def network(self) -> OmniModel:
        return self._network[0]

    def on_fit_start(self) -> None:
        self.network.to(self.device)
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        self.steps = self.config.epochs * -(-batches // self.config.accumulate)
        self.penalty.anneal = round(self.config.anneal_fraction * self.steps)

    @property
    def at_full_penalty(self) -> bool:
        return self.global_step + 1 >= self.penalty.anneal

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["penalty"] = self.penalty.weight  # a budget has adapted it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.penalty.weight = checkpoint["penalty"]

    def check_conditioning(self) -> None:
        """Raises ValueError if the router's conditioning is not the configuration's."""
        if self.router.penalty_conditioned != self.config.penalty_conditioned:
            raise ValueError(f"penalty_conditioned is {self.config.penalty_conditioned}: the router's must be the same")
        if self.config.penalty_conditioned and self.config.budget is not None:
            raise ValueError(
                f"a penalty-conditioned router learns all budgets: got budget={self.config.budget} as well"
            )

    def training_penalty(self, size: int) -> tuple[Any, Tensor | None]:
        """The annealed penalty, and what a conditioned router reads: a random penalty per question, annealed alike."""
        penalty: Any = self.penalty.at(self.global_step)
        if not self.config.penalty_conditioned:
            return penalty, None
        condition = self.least_penalty * (MAX_PENALTY / self.least_penalty) ** torch.rand(size, device=self.device)
        return condition * (penalty / self.config.penalty), condition

    def validation_penalty(self, size: int) -> tuple[Any, Tensor | None]:
        """The penalty, and what a conditioned router reads: penalties spread over the range of training."""
        if not self.config.penalty_conditioned:
            return self.config.penalty, None
        spread = torch.logspace(math.log10(self.least_penalty), math.log10(MAX_PENALTY), size, device=self.device)
        return spread, spread

    def question_embeddings(self, batch: OmniBatch) -> dict[Modality, Tensor]:
        """The router's input: the pooled tokens of the questions, by modality."""
        with torch.no_grad():
            return pool_questions(self.network.encode_questions(batch), self.network.space.question_mask(batch.present))

    def evaluate_route(self, batch: OmniBatch, route: Route) -> RouteOutcome:
        return evaluate_route(self.network, batch, route, costs=self.costs)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.router.parameters(), lr=self.config.learning_rate)


class LitRouter(LitRouterBase):
    """REINFORCE. For every question `config.group_size` routes are sampled and run; reward = answer_prob - penalty x
    cost. The baseline is the group's mean reward ("group") or the reward of the greedy route ("self_critical").

    Raises ValueError if the router's route space is not the model's, or its conditioning not the configuration's.
    """

    estimators = ("group", "self_critical")
    columns: ClassVar[dict[str, str]] = {
        "reward": "train/reward",
        "cost": "train/cost",
        "validation reward": "validation/reward",
        "accuracy": "validation/accuracy",
        "validation cost": "validation/cost",
        "routes": "validation/distinct_routes",
    }

    def __init__(
        self, model: OmniModel, router: Router, config: RouterConfig, *, costs: CostModel, seed: int = 0
    ) -> None:
        super().__init__(model, router, config, costs=costs, seed=seed)
        if router.space.to_dict() != model.space.to_dict():
            raise ValueError(f"a router for {router.space.to_dict()} cannot route a model of {model.space.to_dict()}")
        self.check_conditioning()
        self._validation: list[tuple[Tensor, RouteOutcome, Route, Sequence[str]]] = []

    def route(self, batch: OmniBatch) -> Route:
        """The greedy route, of a router that is not penalty-conditioned."""
        return self.network.select_route(self.router, batch)[0]

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        present, group = batch.present, self.config.group_size
        penalty, condition = self.training_penalty(len(batch))
        logits = self.router(self.question_embeddings(batch), present, condition)
        samples = [self.router.sample(logits, present) for _ in range(group)]
        routes = Route.cat([sample.route for sample in samples])
        unique_samples, unique_routes, index = deduplicate_routes(batch, routes)
        outcome = RouteOutcome(*(values[index] for values in self.evaluate_route(unique_samples, unique_routes)))
        answer_prob, cost = (values.unflatten(0, (group, -1)) for values in (outcome.answer_prob, outcome.cost))
        rewards = answer_prob - penalty * cost
        if self.config.estimator == "group":
            advantages = group_advantages(rewards)
        else:
            greedy = self.evaluate_route(batch, self.router.greedy(logits, present))
            advantages = self_critical_advantages(rewards, greedy.answer_prob - penalty * greedy.cost)
        log_prob = torch.stack([sample.log_prob for sample in samples])
        entropy = torch.stack([sample.entropy for sample in samples])
        self.penalty.observe(float(cost.mean()))
        metrics: dict[str, Any] = {
            "train/reward": rewards.mean(),
            "train/cost": cost.mean(),
            "train/entropy": entropy.mean(),
            "train/penalty": torch.as_tensor(penalty).mean(),
            "train/distinct_routes": float(routes.num_distinct),
        }
        self.log_dict(metrics, on_step=True, on_epoch=False, batch_size=len(batch))
        return policy_loss(log_prob, advantages, entropy, entropy_coef=self.config.entropy_coef)

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        present, (penalty, condition) = batch.present, self.validation_penalty(len(batch))
        route = self.router.greedy(self.router(self.question_embeddings(batch), present, condition), present)
        outcome = self.evaluate_route(batch, route)
        rewards = outcome.answer_prob - penalty * outcome.cost
        self._validation.append((rewards, outcome, route, batch.families))

    def on_validation_epoch_end(self) -> None:
        """Logs means over all questions, and how often each path is open, by question family."""
        rewards, outcomes, routes, families_by_batch = zip(*self._validation, strict=True)
        families = [family for families in families_by_batch for family in families]
        self.log("validation/reward", torch.cat(rewards).mean())
        self.log("validation/accuracy", torch.cat([outcome.correct for outcome in outcomes]).mean())
        self.log("validation/cost", torch.cat([outcome.cost for outcome in outcomes]).mean())
        self.log("validation/distinct_routes", float(Route.cat(routes).num_distinct))
        path_mask = self.network.space.path_mask(Route.cat(routes)).float()
        for family in sorted(set(families)):
            in_family = torch.tensor([f == family for f in families], device=path_mask.device)
            for layer, open_rates in enumerate(path_mask[in_family].mean(0)):
                for path, rate in zip(self.network.space.paths, open_rates, strict=True):
                    self.log(f"open/{family}/{layer}/{path}", rate)
        self._validation.clear()
