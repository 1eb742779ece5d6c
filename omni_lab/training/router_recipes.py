"""Routers of a trained network: recipes by name, and their training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from omni_lab.batch import Modality, OmniBatch
from omni_lab.config.models import Component
from omni_lab.config.schema import Profile, RouterConfig
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.lightning_modules.gates import LitGates
from omni_lab.lightning_modules.router import LitRouter, LitRouterBase, relative_costs
from omni_lab.registry import ROUTERS
from omni_lab.routing.baselines import modality_subsets
from omni_lab.routing.route import RouteSpace
from omni_lab.routing.router import Router, penalty_knots
from omni_lab.training.callbacks import RestoreBestWeights
from omni_lab.training.checkpoint import BaseRecipe, load_or_fit, weights_digest
from omni_lab.training.fit import device_name, fit
from omni_lab.training.frozen_encoders import cache_latents
from omni_lab.training.recipes import Recipe, TrainedModel, get_recipe
from omni_lab.utils.lookup import lookup


@dataclass(frozen=True)
class RouterRecipe(BaseRecipe):
    """Everything that determines a router."""

    name: str
    network: Recipe  # of the model that is routed
    router: RouterConfig
    seed: int = 0

    @property
    def may_train(self) -> bool:
        return self.network.may_train

    @property
    def folder(self) -> Path:
        return Path(self.network.profile) / f"{self.network.name}-{self.name}-seed{self.seed}"

    def identity(self, network: TrainedModel) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded, including the weights of the network."""
        own = {"policy": ROUTERS.version(self.router.policy)} if self.router.policy is not None else {}
        return {
            "space": network.model.space.to_dict(),
            "network": self.network.identity(network.data),
            "network_weights": weights_digest(network.model),
            "router": self.router,
            "seed": self.seed,
            **own,
        }

    def _build(self, network: TrainedModel) -> Any:
        return build_router(self.router, network.model.space, dim=self.network.model.dim)


def build_router(config: RouterConfig, space: RouteSpace, *, dim: int) -> Router:
    """The untrained router of a configuration. dim: width of the question's tokens."""
    arguments: dict[str, Any] = {
        "space": space,
        "dim": dim,
        "hidden_dim": config.hidden,
        "penalty_conditioned": config.penalty_conditioned,
        "num_choices": len(modality_subsets(space)) if config.estimator == "choice" else 0,
    }
    return Router(**arguments) if config.policy is None else ROUTERS.build(config.policy, **arguments)


def penalties_of(estimator: str, profile: Profile) -> tuple[float, ...]:
    """The penalties under which routers of an estimator are trained."""
    world = profile.emoji_world
    return world.choice_penalties if estimator == "choice" else world.penalties


def get_router_recipe(
    name: str,
    profile: Profile,
    *,
    seed: int = 0,
    network: str | Recipe = "emoji_routed",
    policy: Component | None = None,
) -> RouterRecipe:
    """The recipe of that name. Raises ValueError for another name, with the nearest one.

    network: the recipe of the routed model, or its name, then of seed 0.
    policy: a registered router, in place of the MLP.

    <estimator>_<penalty>: policy gradient (group, self_critical) or gates (gumbel, choice), under one of the
    estimator's `penalties_of`, such as "group_0.2" or "choice_0.8".
    soft: soft gates, without a penalty: they skip nothing.
    conditioned: policy gradient of a penalty-conditioned router, which can follow a budget.
    """
    base = profile.emoji_world.router
    known = {
        f"{estimator}_{penalty}": replace(base, estimator=estimator, penalty=penalty)
        for estimator in (*LitRouter.estimators, *LitGates.estimators)
        if estimator != "soft"
        for penalty in penalties_of(estimator, profile)
    }
    known["soft"] = replace(base, estimator="soft", penalty=0.0)
    # No annealing, and an entropy bonus large enough that no decision becomes certain before all penalties were met.
    known["conditioned"] = replace(base, penalty=1.0, penalty_conditioned=True, anneal_fraction=0.0, entropy_coef=0.5)
    config = replace(lookup(name, known, "router"), policy=policy)
    title = name if policy is None else f"{name}-{policy.name}"
    return RouterRecipe(title, network if isinstance(network, Recipe) else get_recipe(network, profile), config, seed)


class TrainedRouter(NamedTuple):
    """What `load_or_train_router` returns."""

    router: Router  # in eval mode, with the weights as saved
    metadata: dict[str, Any]  # history (a row per validation), kept_update, validation_reward, seconds, device


def load_or_train_router(recipe: RouterRecipe, network: TrainedModel, *, retrain: bool = False) -> TrainedRouter:
    """The router of a recipe, loaded or trained as by `load_or_train`, on the latents of the network's encoders."""
    return TrainedRouter(*load_or_fit(recipe, (network,), partial(_train, recipe, network), retrain=retrain)[:2])


def _train(recipe: RouterRecipe, network: TrainedModel, folder: Path) -> tuple[Router, dict[str, Any]]:
    cache_latents_for_routing(network)
    module = build_router_module(recipe, network, recipe.build_model(network))

    def measure(data: Any) -> None:
        if recipe.router.penalty_conditioned:
            measure_knot_costs(module, data.loader("validation"))

    return module.router, fit_router(module, recipe, network, folder, after=measure)


def fit_router(
    module: LitRouterBase,
    recipe: RouterRecipe,
    network: TrainedModel,
    folder: Path,
    *,
    after: Callable[[Any], None] = lambda data: None,
) -> dict[str, Any]:
    """Trains a router, gives it its best weights, and returns the metadata. after: called with the data at the end."""
    best, config = RestoreBestWeights(module), recipe.router
    questions, cost = config.questions_per_scene, config.max_batch_cost
    data_config = replace(network.data.config, questions_per_scene=questions, max_batch_cost=cost)
    data = network.data.with_config(data_config, seed=recipe.seed, validation=config.validation_scenes)
    device = next(network.model.parameters()).device
    often: dict[str, Any] = {"val_check_interval": 0.1}
    if config.epochs >= 10:
        often = {"check_val_every_n_epoch": config.epochs // 10}
    try:
        _, table = fit(module, data, config, folder, best, **often)
        after(data)
    finally:
        network.model.to(device)
    return {
        "history": best.history,
        "kept_update": best.step,
        "validation_reward": best.reward,
        "seconds": table.totals["seconds"],
        "device": device_name(),
    }


def cache_latents_for_routing(network: TrainedModel, *, splits: Sequence[str] = ("train", "validation")) -> None:
    """Encodes all media of these splits once, in full and to the early exits: routers then train in minutes."""
    modalities = [m for m in network.model.space.modalities if m is not Modality.TEXT]
    for split in splits:
        dataset = network.data.dataset(split)
        if not dataset.latents:
            cache_latents(network.model, dataset, modalities)


def build_router_module(recipe: RouterRecipe, network: TrainedModel, router: Router) -> LitRouter | LitGates:
    """The LightningModule that trains a router, and whose `route` gives its routes."""
    config, costs = recipe.router, build_cost_model(network.model, router_flops=router.flops)
    if config.estimator not in LitGates.estimators:
        return LitRouter(network.model, router, config, costs=costs, seed=recipe.seed)
    routes = modality_subsets(network.model.space) if config.estimator == "choice" else []
    return LitGates(network.model, router, config, costs=costs, static_routes=routes, seed=recipe.seed)


def measure_knot_costs(module: LitRouterBase, batches: Iterable[OmniBatch]) -> None:
    """Stores the mean relative cost under each penalty in a conditioned router, for `Router.penalty_for_budget`."""
    router, space, costs = module.router.eval(), module.network.space, []
    for batch in batches:
        embeddings, present = module.question_embeddings(batch.to(module.device)), batch.present.to(module.device)
        with torch.no_grad():
            conditions = [penalty.to(present.device).expand(len(batch)) for penalty in penalty_knots()]
            routes = [router.greedy(router(embeddings, present, penalty), present) for penalty in conditions]
        costs.append(relative_costs(module.costs, space, batch, routes).T)
    router.costs.copy_(torch.cat(costs, dim=1).mean(1))
