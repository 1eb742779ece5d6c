"""From a routed network to a trained controller."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock

from omni_lab.batch import Modality, OmniBatch
from omni_lab.config.schema import Profile, RouterConfig
from omni_lab.data.datamodule import OmniDataModule
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.lightning_modules.gates import GATE_ESTIMATORS, LitGates
from omni_lab.lightning_modules.router import ESTIMATORS, LitRouter, LitRouterBase
from omni_lab.model import OmniModel
from omni_lab.routing.baselines import modality_subsets
from omni_lab.routing.router import Router, penalty_knots
from omni_lab.training.callbacks import ProgressTable, RestoreBestWeights, ThroughputMeter
from omni_lab.training.checkpoint import (
    METADATA_FILE,
    CheckpointError,
    digest,
    is_fresh,
    load_model,
    save_model,
    weights_digest,
)
from omni_lab.training.fit import build_trainer, device_name
from omni_lab.training.latent_cache import cache_latents
from omni_lab.training.recipes import Recipe, TrainedModel, get_recipe
from omni_lab.utils.env import project_root
from omni_lab.utils.lookup import closest_match

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RouterRecipe:
    """Everything that determines a controller. network: the recipe of the model that it routes."""

    name: str
    network: Recipe
    router: RouterConfig
    seed: int = 0

    def identity(self, network: TrainedModel) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded: of the network also the very weights."""
        return {
            "space": network.model.space.to_dict(),
            "network": self.network.identity(network.data),
            "network_weights": weights_digest(network.model),
            "router": {k: v for k, v in vars(self.router).items() if k != "checkpoint_every"},
            "seed": self.seed,
        }

    @property
    def folder(self) -> Path:
        return Path(self.network.profile) / f"{self.network.name}-{self.name}-seed{self.seed}"

    def work_folder(self, network: TrainedModel) -> Path:
        """Where the training writes: one folder per configuration."""
        return project_root() / "data" / "checkpoints" / f"{self.folder}-{digest(self.identity(network))}"

    @property
    def published_folder(self) -> Path:
        return project_root() / "reports" / "published" / "checkpoints" / self.folder

    def build_router(self, model: OmniModel) -> Router:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            width = self.network.model.dim
            plans = len(modality_subsets(model.space)) if self.router.estimator == "choice" else 0
            return Router(
                model.space,
                width=width,
                hidden=self.router.hidden,
                conditioned=self.router.penalty_conditioned,
                plans=plans,
            )


def penalties_of(estimator: str, profile: Profile) -> tuple[float, ...]:
    """Under which controllers of this kind are trained."""
    world = profile.emoji_world
    return world.choice_penalties if estimator == "choice" else world.penalties


def get_router_recipe(name: str, profile: Profile, *, seed: int = 0, network: str = "emoji_routed") -> RouterRecipe:
    """The recipe of that name: an estimator and one of its `penalties_of`, such as "group_0.2", "self_critical_0.2",
    "gumbel_0.2" or "choice_0.8"; "soft", which saves nothing and pays nothing; or "conditioned", which follows a
    budget. Raises ValueError for another name. network: the recipe of what they route, always that of seed 0; the seed
    is that of the controller."""
    router = profile.emoji_world.router
    routers = {
        f"{estimator}_{penalty}": replace(router, estimator=estimator, penalty=penalty)
        for estimator in (*ESTIMATORS, *GATE_ESTIMATORS)
        if estimator != "soft"
        for penalty in penalties_of(estimator, profile)
    }
    routers["soft"] = replace(router, estimator="soft", penalty=0.0)
    # Whole penalties from the start, and so much for entropy that no decision is settled before all have been met.
    routers["conditioned"] = replace(
        router, penalty=1.0, penalty_conditioned=True, anneal_fraction=0.0, entropy_coef=0.5
    )
    if name not in routers:
        raise ValueError(
            f"unknown controller {name!r}; the nearest of {[*routers]} is {closest_match(name, routers)!r}"
        )
    return RouterRecipe(name, get_recipe(network, profile), routers[name], seed)


class TrainedRouter(NamedTuple):
    """controller: in eval mode, with the weights as saved. facts: how it was trained."""

    router: Router
    metadata: dict[str, Any]


def cache_latents_for_routing(network: TrainedModel, *, splits: Sequence[str] = ("train", "validation")) -> None:
    """All media of these splits through the frozen encoders, in full and to their early exits: controllers then learn
    in minutes, and all of them on the same latents."""
    media = [m for m in network.model.space.modalities if m is not Modality.TEXT]
    for split in splits:
        dataset = network.data.dataset(split)
        if not dataset.latents:
            cache_latents(network.model, dataset, media)


def train_router(recipe: RouterRecipe, network: TrainedModel, *, afresh: bool = False) -> TrainedRouter:
    """Trains, saves the weights of the best validation reward, and returns them. An interrupted training continues from
    its last checkpoint; afresh=True begins again."""
    folder = recipe.work_folder(network)
    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    cache_latents_for_routing(network)
    module = build_router_module(recipe, network, recipe.build_router(network.model))
    table, meter, best = ProgressTable(module.columns), ThroughputMeter(), RestoreBestWeights(module)
    trainer = build_trainer(recipe.router, folder, callbacks=[meter, best, table], val_check_interval=0.1)
    last = folder / "last.ckpt"
    data, device = _drawn_for(recipe, network), next(network.model.parameters()).device
    try:
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
        if recipe.router.penalty_conditioned:
            measure_knot_costs(module, data.loader("validation"))
    finally:
        network.model.to(device)
    facts = {
        "history": best.history,
        "kept_update": best.update,
        "validation_reward": best.best,
        "seconds": meter.totals["seconds"],
        "device": device_name(),
    }
    save_model(folder, module.router, identity=recipe.identity(network), metadata=facts)
    last.unlink(missing_ok=True)
    return _load(recipe, network, folder)


def build_router_module(recipe: RouterRecipe, network: TrainedModel, controller: Router) -> LitRouter | LitGates:
    """The module that trains a controller; of gates, also what carries their decisions out."""
    costs, seed = build_cost_model(network.model, router_flops=controller.flops), recipe.seed
    if recipe.router.estimator not in GATE_ESTIMATORS:
        return LitRouter(network.model, controller, recipe.router, costs=costs, seed=seed)
    plans = modality_subsets(network.model.space) if recipe.router.estimator == "choice" else []
    return LitGates(network.model, controller, recipe.router, costs=costs, plans=plans, seed=seed)


def measure_knot_costs(module: LitRouterBase, batches: Iterable[OmniBatch]) -> None:
    """What a conditioned controller spends under each of its penalties: kept with it, for `Controller.penalty_for`."""
    controller, space, spent = module.router.eval(), module.network.space, []
    for batch in batches:
        counts = module.costs.count_tokens(batch)
        dense = module.costs(space, space.dense(batch.present), counts)
        question, present = module.question_embeddings(batch.to(module.device)), batch.present.to(module.device)
        shares = []
        for penalty in penalty_knots():
            told = penalty.to(present.device).expand(len(batch))
            with torch.no_grad():
                route = controller.greedy(controller(question, present, told), present).to("cpu")
            shares.append(module.costs(space, route, counts).total / (dense.total - dense.router))
        spent.append(torch.stack(shares))
    controller.costs.copy_(torch.cat(spent, dim=1).mean(1))


def load_or_train_router(recipe: RouterRecipe, network: TrainedModel, *, retrain: bool = False) -> TrainedRouter:
    """The controller trained here before, else the published one, else one trained now. A checkpoint for another space
    of routes, another network or another configuration is reported and not used."""
    work = recipe.work_folder(network)
    work.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{work}.lock"):
        for folder in [] if retrain else [work, recipe.published_folder]:
            if is_fresh(folder / METADATA_FILE):
                try:
                    return _load(recipe, network, folder)
                except CheckpointError as error:
                    log.warning("not using a checkpoint: %s", error)
        last = work / "last.ckpt"
        return train_router(recipe, network, afresh=retrain or (last.exists() and not is_fresh(last)))


def _load(recipe: RouterRecipe, network: TrainedModel, folder: Path) -> TrainedRouter:
    controller = recipe.build_router(network.model)
    return TrainedRouter(controller.eval(), load_model(folder, controller, identity=recipe.identity(network)))


def _drawn_for(recipe: RouterRecipe, network: TrainedModel) -> OmniDataModule:
    """The network's data, drawn by the controller's seed, with fewer questions a scene; encoded once for all."""
    router = recipe.router
    config = replace(
        network.data.config, questions_per_scene=router.questions_per_scene, max_batch_cost=router.max_batch_cost
    )
    return network.data.with_config(config, seed=recipe.seed, validation=router.validation_scenes)
