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
from omni_lab.learning.latents import encode_media
from omni_lab.learning.progress import ProgressTable
from omni_lab.learning.recipes import Meter, Recipe, Trained, device_name, get_recipe, make_trainer
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
            return Controller(model.space, width=width, hidden=self.router.hidden, conditioned=self.router.conditioned)


def get_controller(name: str, profile: Profile, *, seed: int = 0) -> ControllerRecipe:
    """The recipe of that name: "penalty_0.1" and so on, one for each of the profile's penalties; "self_critical", the
    same with another estimator at the middle penalty; "conditioned", which follows a budget. All route the network
    "emoji_routed" of seed 0; the seed is that of the controller."""
    router, penalties = profile.world.router, profile.world.penalties
    middle = penalties[len(penalties) // 2]
    routers = {f"penalty_{p}": replace(router, penalty=p) for p in penalties} | {
        "self_critical": replace(router, penalty=middle, estimator="self_critical"),
        "conditioned": replace(router, penalty=middle, conditioned=True),
    }
    if name not in routers:
        raise ValueError(f"unknown controller {name!r}; the nearest of {[*routers]} is {nearest(name, routers)!r}")
    return ControllerRecipe(name, get_recipe("emoji_routed", profile), routers[name], seed)


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
    controller = recipe.new_controller(network.model)
    costs = cost_model(network.model, controller=controller.flops)
    module = RouterTraining(network.model, controller, recipe.router, costs=costs, seed=recipe.seed)
    table, meter, best = ProgressTable(module.columns), Meter(), KeepBest()
    trainer = make_trainer(recipe.router, folder, callbacks=[meter, best, table], val_check_interval=0.25)
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
    save_model(folder, controller, identity=recipe.identity(network), facts=facts)
    last.unlink(missing_ok=True)
    return _load(recipe, network, folder)


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
    data.config = replace(network.data.config, questions_per_scene=recipe.router.questions_per_scene)
    data.seed = recipe.seed
    return data
