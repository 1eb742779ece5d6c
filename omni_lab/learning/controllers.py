"""From a routed network to a trained controller."""

from __future__ import annotations

import copy
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from omni_lab.config import RouterConfig, project_root
from omni_lab.data import OmniDataModule
from omni_lab.evaluation.flops import cost_model
from omni_lab.learning.checkpoints import FACTS, CheckpointError, load_model, save_model
from omni_lab.learning.latents import encode_media
from omni_lab.learning.progress import ProgressTable
from omni_lab.learning.recipes import Meter, Recipe, Trained, device_name, make_trainer
from omni_lab.learning.routing import RouterTraining
from omni_lab.modalities import Modality
from omni_lab.model import OmniModel
from omni_lab.routing.controller import Controller

log = logging.getLogger(__name__)


class KeepBest(Callback):
    """Holds on to the controller of the best validation reward, counted once the penalty has reached its full weight,
    and puts it back at the end. Too long a training under the full penalty costs accuracy."""

    def __init__(self) -> None:
        self.best = -torch.inf
        self.weights: dict[str, Any] | None = None
        self.update = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, RouterTraining)
        reward = float(trainer.callback_metrics["validation/reward"])
        if not trainer.sanity_checking and pl_module.at_full_penalty and reward > self.best:
            self.best, self.update = reward, trainer.global_step
            self.weights = copy.deepcopy(pl_module.controller.state_dict())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, RouterTraining)
        if self.weights is not None:
            pl_module.controller.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "weights": self.weights, "update": self.update}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.weights, self.update = (state_dict[name] for name in ("best", "weights", "update"))


@dataclass(frozen=True)
class ControllerRecipe:
    """Everything that determines a controller. network: the recipe of the model that it routes."""

    name: str
    network: Recipe
    router: RouterConfig
    seed: int = 0

    @property
    def folder(self) -> Path:
        return Path(self.network.profile) / f"{self.network.name}-{self.name}-seed{self.seed}"

    def identity(self, network: Trained) -> dict[str, Any]:
        return {
            "space": network.model.space.identity(),
            "network": self.network.identity(network.data),
            "router": {k: v for k, v in vars(self.router).items() if k != "checkpoint_every"},
            "seed": self.seed,
        }

    def new_controller(self, model: OmniModel) -> Controller:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            width = self.network.model.dim
            return Controller(model.space, width=width, hidden=self.router.hidden, conditioned=self.router.conditioned)


def encode_for_routing(network: Trained, *, splits: tuple[str, ...] = ("train", "validation")) -> None:
    """All media of these splits through the frozen encoders, in full and to their early exits: controllers then learn
    in minutes, and all of them on the same latents."""
    media = [m for m in network.model.space.modalities if m is not Modality.TEXT]
    for split in splits:
        dataset = network.data.dataset(split)
        if not dataset.encoded:
            encode_media(network.model, dataset, media)


def train_controller(recipe: ControllerRecipe, network: Trained) -> tuple[Controller, dict[str, Any]]:
    """Trains, keeps the weights of the best validation reward, saves and returns them, and the facts."""
    encode_for_routing(network)
    controller = recipe.new_controller(network.model)
    costs = cost_model(network.model, controller=controller.flops)
    module = RouterTraining(network.model, controller, recipe.router, costs=costs, seed=recipe.seed)
    table, meter, best = ProgressTable(module.columns), Meter(), KeepBest()
    data = _drawn_for(recipe, network)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(recipe.router, Path(folder), callbacks=[meter, best, table], val_check_interval=0.25)
        trainer.fit(module, data, weights_only=False)
    facts = {
        "history": table.rows,
        "kept_update": best.update,
        "validation_reward": best.best,
        "seconds": meter.totals["seconds"],
        "device": device_name(),
    }
    save_model(work_folder(recipe), controller, identity=recipe.identity(network), facts=facts)
    return controller.eval(), facts


def load_or_train_controller(
    recipe: ControllerRecipe, network: Trained, *, retrain: bool = False
) -> tuple[Controller, dict[str, Any]]:
    """The controller trained here before, else the published one, else one trained now. A checkpoint for another space
    of routes, another network or another configuration is reported and not used."""
    published = project_root() / "reports" / "published" / "checkpoints" / recipe.folder
    for folder in [] if retrain else [work_folder(recipe), published]:
        if (folder / FACTS).exists():
            controller = recipe.new_controller(network.model)
            try:
                return controller.eval(), load_model(folder, controller, identity=recipe.identity(network))
            except CheckpointError as error:
                log.warning("not using a checkpoint: %s", error)
    return train_controller(recipe, network)


def work_folder(recipe: ControllerRecipe) -> Path:
    return project_root() / "data" / "checkpoints" / recipe.folder


def _drawn_for(recipe: ControllerRecipe, network: Trained) -> OmniDataModule:
    """The network's data, drawn by the controller's seed, with fewer questions a scene; encoded once for all."""
    data = copy.copy(network.data)
    data.config = replace(network.data.config, questions_per_scene=recipe.router.questions_per_scene)
    data.seed = recipe.seed
    return data
