"""From a routed network to a trained controller."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback

from omni_lab.config import Profile, RouterConfig, nearest, project_root
from omni_lab.data import OmniDataModule
from omni_lab.evaluation.flops import cost_model
from omni_lab.learning.checkpoints import FACTS, CheckpointError, digest, load_model, save_model
from omni_lab.learning.gates import GATES, GateTraining
from omni_lab.learning.latents import encode_media
from omni_lab.learning.progress import ProgressTable
from omni_lab.learning.recipes import Meter, Recipe, Trained, device_name, get_recipe, make_trainer
from omni_lab.learning.routing import ESTIMATORS, RouterTraining
from omni_lab.modalities import Modality
from omni_lab.model import OmniModel
from omni_lab.routing.controller import Controller
from omni_lab.routing.controls import subsets

log = logging.getLogger(__name__)


class KeepBest(Callback):
    """Holds on to the weights of the best validation reward, and puts them back at the end: too long a training under
    the full penalty costs accuracy. What is validated before `module` is ready does not count."""

    def __init__(self, module: RouterTraining | GateTraining) -> None:
        self.module = module
        self.best = -torch.inf
        self.weights: dict[str, Any] | None = None
        self.update = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        reward = float(trainer.callback_metrics["validation/reward"])
        ready = not isinstance(self.module, RouterTraining) or self.module.at_full_penalty
        if not trainer.sanity_checking and ready and reward > self.best:
            self.best, self.update = reward, trainer.global_step
            self.weights = copy.deepcopy(self.module.controller.state_dict())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.weights is not None:
            self.module.controller.load_state_dict(self.weights)

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

    def identity(self, network: Trained) -> dict[str, Any]:
        return {
            "space": network.model.space.identity(),
            "network": self.network.identity(network.data),
            "router": {k: v for k, v in vars(self.router).items() if k != "checkpoint_every"},
            "seed": self.seed,
        }

    @property
    def folder(self) -> Path:
        return Path(self.network.profile) / f"{self.network.name}-{self.name}-seed{self.seed}"

    def work_folder(self, network: Trained) -> Path:
        """Where the training writes: one folder per configuration."""
        return project_root() / "data" / "checkpoints" / f"{self.folder}-{digest(self.identity(network))}"

    @property
    def published_folder(self) -> Path:
        return project_root() / "reports" / "published" / "checkpoints" / self.folder

    def new_controller(self, model: OmniModel) -> Controller:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            width = self.network.model.dim
            plans = len(subsets(model.space)) if self.router.estimator == "choice" else 0
            return Controller(
                model.space, width=width, hidden=self.router.hidden, conditioned=self.router.conditioned, plans=plans
            )


def get_controller(name: str, profile: Profile, *, seed: int = 0, network: str = "emoji_routed") -> ControllerRecipe:
    """The recipe of that name: an estimator and one of the profile's penalties, such as "group_0.1",
    "self_critical_0.1", "gumbel_0.1", "soft_0.1" or "choice_0.1"; or "conditioned", which follows a budget. network:
    the recipe of what they route, always that of seed 0; the seed is that of the controller."""
    router, penalties = profile.world.router, profile.world.penalties
    routers = {
        f"{estimator}_{penalty}": replace(router, estimator=estimator, penalty=penalty)
        for estimator in (*ESTIMATORS, *GATES)
        for penalty in penalties
    }
    routers["conditioned"] = replace(router, penalty=penalties[len(penalties) // 2], conditioned=True)
    if name not in routers:
        raise ValueError(f"unknown controller {name!r}; the nearest of {[*routers]} is {nearest(name, routers)!r}")
    return ControllerRecipe(name, get_recipe(network, profile), routers[name], seed)


class TrainedController(NamedTuple):
    """controller: in eval mode, with the weights as saved. facts: how it was trained."""

    controller: Controller
    facts: dict[str, Any]


def encode_for_routing(network: Trained, *, splits: Sequence[str] = ("train", "validation")) -> None:
    """All media of these splits through the frozen encoders, in full and to their early exits: controllers then learn
    in minutes, and all of them on the same latents."""
    media = [m for m in network.model.space.modalities if m is not Modality.TEXT]
    for split in splits:
        dataset = network.data.dataset(split)
        if not dataset.encoded:
            encode_media(network.model, dataset, media)


def train_controller(recipe: ControllerRecipe, network: Trained, *, afresh: bool = False) -> TrainedController:
    """Trains, saves the weights of the best validation reward, and returns them. An interrupted training continues from
    its last checkpoint; afresh=True begins again."""
    folder = recipe.work_folder(network)
    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    encode_for_routing(network)
    module = new_training(recipe, network, recipe.new_controller(network.model))
    table, meter, best = ProgressTable(module.columns), Meter(), KeepBest(module)
    trainer = make_trainer(recipe.router, folder, callbacks=[meter, best, table], val_check_interval=0.5)
    last = folder / "last.ckpt"
    data = _drawn_for(recipe, network)
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
    facts = {
        "history": table.rows,
        "kept_update": best.update,
        "validation_reward": best.best,
        "seconds": meter.totals["seconds"],
        "device": device_name(),
    }
    save_model(folder, module.controller, identity=recipe.identity(network), facts=facts)
    last.unlink(missing_ok=True)
    return _load(recipe, network, folder)


def new_training(recipe: ControllerRecipe, network: Trained, controller: Controller) -> RouterTraining | GateTraining:
    """The module that trains a controller; of gates, also what carries their decisions out."""
    costs, seed = cost_model(network.model, controller=controller.flops), recipe.seed
    if recipe.router.estimator not in GATES:
        return RouterTraining(network.model, controller, recipe.router, costs=costs, seed=seed)
    plans = subsets(network.model.space) if recipe.router.estimator == "choice" else []
    return GateTraining(network.model, controller, recipe.router, costs=costs, plans=plans, seed=seed)


def load_or_train_controller(recipe: ControllerRecipe, network: Trained, *, retrain: bool = False) -> TrainedController:
    """The controller trained here before, else the published one, else one trained now. A checkpoint for another space
    of routes, another network or another configuration is reported and not used."""
    work = recipe.work_folder(network)
    work.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{work}.lock"):
        for folder in [] if retrain else [work, recipe.published_folder]:
            if (folder / FACTS).exists():
                try:
                    return _load(recipe, network, folder)
                except CheckpointError as error:
                    log.warning("not using a checkpoint: %s", error)
        return train_controller(recipe, network, afresh=retrain)


def _load(recipe: ControllerRecipe, network: Trained, folder: Path) -> TrainedController:
    controller = recipe.new_controller(network.model)
    return TrainedController(controller.eval(), load_model(folder, controller, identity=recipe.identity(network)))


def _drawn_for(recipe: ControllerRecipe, network: Trained) -> OmniDataModule:
    """The network's data, drawn by the controller's seed, with fewer questions a scene; encoded once for all."""
    data = copy.copy(network.data)
    router = recipe.router
    data.config = replace(network.data.config, questions_per_scene=router.questions_per_scene, budget=router.media)
    data.seed = recipe.seed
    return data
