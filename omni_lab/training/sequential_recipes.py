"""Sequential routers of a trained network: recipes by name, and their training on cached tokens and glances."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from omni_lab.batch import Modality
from omni_lab.config.schema import Profile
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.evaluation.outcome_table import build_outcome_table
from omni_lab.lightning_modules.sequential_router import LitSequentialRouter
from omni_lab.routing.sequential import SequentialRouter
from omni_lab.training.checkpoint import load_or_fit
from omni_lab.training.fit import device_name
from omni_lab.training.frozen_encoders import cache_glances
from omni_lab.training.recipes import TrainedModel, get_recipe
from omni_lab.training.router_recipes import RouterRecipe, TrainedRouter, cache_latents_for_routing, fit_router
from omni_lab.training.table_routers import BATCH_SIZE, TABLE_ESTIMATORS, train_on_table
from omni_lab.utils.lookup import lookup


class SequentialRecipe(RouterRecipe):
    """Everything that determines a sequential router."""

    @property
    def folder(self) -> Path:
        network = f"{self.network.name}-seed{self.network.seed}"
        return Path(self.network.profile) / f"{network}-{self.name}-seed{self.seed}"

    def _build(self, network: TrainedModel) -> SequentialRouter:
        answers, config = len(network.data.store.answers), self.router
        conditioned, dim = config.penalty_conditioned, self.network.model.dim
        return SequentialRouter(
            network.model.space,
            dim=dim,
            num_answers=answers,
            hidden_dim=config.hidden,
            penalty_conditioned=conditioned,
        )


def get_sequential_recipe(
    name: str, profile: Profile, *, network: str = "digits", network_seed: int = 0, seed: int = 0
) -> SequentialRecipe:
    """The recipe of that name, for a network "digits" or "adverse". Raises ValueError for another name, with the
    nearest one.

    sequential: policy gradient over all trajectories. fitted_q: regression of values. Both for all penalties at a time.
    """
    world = lookup(network, {"digits": profile.digits, "adverse": profile.adverse}, "network")
    config = lookup(name, {"sequential": world.router, "fitted_q": world.fitted_q}, "sequential router")
    return SequentialRecipe(name, get_recipe(f"{network}_distilled", profile, seed=network_seed), config, seed)


def load_or_train_sequential(
    recipe: SequentialRecipe, network: TrainedModel, *, retrain: bool = False
) -> TrainedRouter:
    """The router of a recipe, loaded or trained as by `load_or_train`."""
    return TrainedRouter(*load_or_fit(recipe, (network,), partial(_train, recipe, network), retrain=retrain)[:2])


def held_out(network: TrainedModel) -> TrainedModel:
    """The network with the training scenes that it was not trained on, if its configuration left any out."""
    config = network.data.config
    if config.max_scenes is None:
        return network
    rest = dataclasses.replace(config, max_scenes=None, first_scene=config.max_scenes)
    return network._replace(data=network.data.with_config(rest, seed=network.data.seed))


def prepare_for_routing(network: TrainedModel, *splits: str) -> None:
    """Encodes and glances at all media of these splits once."""
    glance = SequentialRouter(network.model.space, dim=1, num_answers=1).glance
    for split in splits:
        dataset = network.data.dataset(split)
        if not dataset.glances:
            cache_glances(glance, dataset)  # which needs the media themselves
    cache_latents_for_routing(network, splits=splits)


def _train(recipe: SequentialRecipe, network: TrainedModel, folder: Path) -> tuple[SequentialRouter, dict[str, Any]]:
    router, network = recipe.build_model(network), held_out(network)
    prepare_for_routing(network, "train", "validation")
    if recipe.router.estimator in TABLE_ESTIMATORS:
        return router, _train_on_table(router, recipe, network)
    _fit_glance(router, network)
    charged = glance_flops(router, network)
    costs, seed = build_cost_model(network.model), recipe.seed
    module = LitSequentialRouter(network.model, router, recipe.router, costs=costs, glance_flops=charged, seed=seed)
    return router, fit_router(module, recipe, network, folder)


def _train_on_table(router: SequentialRouter, recipe: SequentialRecipe, network: TrainedModel) -> dict[str, Any]:
    start, config = time.perf_counter(), recipe.router
    table = build_outcome_table(network.model, network.data.dataset("train"))
    step_cost = router.step_flops / float(table.dense_flops.mean())
    train_on_table(
        router,
        table,
        config.estimator,
        step_cost=step_cost,
        steps=config.epochs * -(-len(table) // BATCH_SIZE),
        learning_rate=config.learning_rate,
        entropy_coef=config.entropy_coef,
        seed=recipe.seed,
    )
    return {"history": [], "seconds": time.perf_counter() - start, "device": device_name()}


def _fit_glance(router: SequentialRouter, network: TrainedModel) -> None:
    dataset = network.data.dataset("train")
    for modality, found in dataset.glances.items():
        raw = torch.zeros(len(found), len(Modality), next(iter(found.values())).shape[0])
        raw[:, modality.column] = torch.stack([*found.values()])
        present = torch.zeros(len(found), len(Modality), dtype=torch.bool)
        present[:, modality.column] = True
        router.glance.fit(raw, present)


def glance_flops(router: SequentialRouter, network: TrainedModel) -> float:
    """Of a sample of the network's set with every modality: its first medium of each."""
    sizes: dict[Modality, torch.Tensor] = {}
    dataset = network.data.dataset("validation")
    for modality in router.glance.modalities:
        rows = dataset.used_rows(modality)
        if rows:
            dataset.store.build(modality, rows[:1])
            sizes[modality] = torch.tensor([dataset.load_media(modality, rows[0]).numel()])
    return float(router.glance.flops(sizes)[0])
