"""Sequential routers of a trained network: recipes, and their training on cached tokens and glances."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from omni_lab.batch import Modality
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.lightning_modules.sequential_router import LitSequentialRouter
from omni_lab.routing.sequential import SequentialRouter
from omni_lab.training.checkpoint import load_or_fit
from omni_lab.training.frozen_encoders import cache_glances
from omni_lab.training.recipes import TrainedModel
from omni_lab.training.router_recipes import RouterRecipe, TrainedRouter, cache_latents_for_routing, fit_router


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


def load_or_train_sequential(
    recipe: SequentialRecipe, network: TrainedModel, *, retrain: bool = False
) -> TrainedRouter:
    """The router of a recipe, loaded or trained as by `load_or_train`."""
    return TrainedRouter(*load_or_fit(recipe, (network,), partial(_train, recipe, network), retrain=retrain)[:2])


def _train(recipe: SequentialRecipe, network: TrainedModel, folder: Path) -> tuple[SequentialRouter, dict[str, Any]]:
    router = recipe.build_model(network)
    for split in ("train", "validation"):
        dataset = network.data.dataset(split)
        if not dataset.glances:
            cache_glances(router.glance, dataset)
    _fit_glance(router, network)
    cache_latents_for_routing(network)
    charged = glance_flops(router, network)
    costs, seed = build_cost_model(network.model), recipe.seed
    module = LitSequentialRouter(network.model, router, recipe.router, costs=costs, glance_flops=charged, seed=seed)
    return router, fit_router(module, recipe, network, folder)


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
