"""From a routed network to a trained controller."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterable, Sequence
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
from omni_lab.learning.checkpoints import FACTS, CheckpointError, digest, load_model, recent, save_model, weights_digest
from omni_lab.learning.gates import GATES, GateTraining
from omni_lab.learning.latents import encode_media
from omni_lab.learning.progress import ProgressTable
from omni_lab.learning.recipes import Meter, Recipe, Trained, device_name, get_recipe, make_trainer
from omni_lab.learning.routing import ESTIMATORS, ControllerTraining, RouterTraining
from omni_lab.modalities import Modality, OmniBatch
from omni_lab.model import OmniModel
from omni_lab.routing.controller import Controller, penalties
from omni_lab.routing.controls import subsets

log = logging.getLogger(__name__)


class KeepBest(Callback):
    """Holds on to the weights of the best validation reward, and puts them back at the end: too long a training under
    the full penalty costs accuracy. What is validated before the penalty is whole does not count. history: a dict per
    validation, "update" and the columns of `module` that validation fills."""

    def __init__(self, module: ControllerTraining) -> None:
        self.module = module
        self.best = -torch.inf
        self.weights: dict[str, Any] | None = None
        self.update = 0
        self.history: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        shown = {c: n for c, n in self.module.columns.items() if n.startswith("validation/")}
        measured = {column: float(trainer.callback_metrics[name]) for column, name in shown.items()}
        self.history.append({"update": trainer.global_step, **measured})
        reward = float(trainer.callback_metrics["validation/reward"])
        if self.module.at_full_penalty and reward > self.best:
            self.best, self.update = reward, trainer.global_step
            self.weights = copy.deepcopy(self.module.controller.state_dict())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.weights is not None:
            self.module.controller.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "weights": self.weights, "update": self.update, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.weights, self.update = (state_dict[name] for name in ("best", "weights", "update"))
        self.history = list(state_dict["history"])


@dataclass(frozen=True)
class ControllerRecipe:
    """Everything that determines a controller. network: the recipe of the model that it routes."""

    name: str
    network: Recipe
    router: RouterConfig
    seed: int = 0

    def identity(self, network: Trained) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded: of the network also the very weights."""
        return {
            "space": network.model.space.identity(),
            "network": self.network.identity(network.data),
            "network_weights": weights_digest(network.model),
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


def penalties_of(estimator: str, profile: Profile) -> tuple[float, ...]:
    """Under which controllers of this kind are trained."""
    world = profile.world
    return world.choice_penalties if estimator == "choice" else world.penalties


def get_controller(name: str, profile: Profile, *, seed: int = 0, network: str = "emoji_routed") -> ControllerRecipe:
    """The recipe of that name: an estimator and one of its `penalties_of`, such as "group_0.2", "self_critical_0.2",
    "gumbel_0.2" or "choice_0.8"; "soft", which saves nothing and pays nothing; or "conditioned", which follows a
    budget. Raises ValueError for another name. network: the recipe of what they route, always that of seed 0; the seed
    is that of the controller."""
    router = profile.world.router
    routers = {
        f"{estimator}_{penalty}": replace(router, estimator=estimator, penalty=penalty)
        for estimator in (*ESTIMATORS, *GATES)
        if estimator != "soft"
        for penalty in penalties_of(estimator, profile)
    }
    routers["soft"] = replace(router, estimator="soft", penalty=0.0)
    # Whole penalties from the start, and so much for entropy that no decision is settled before all have been met.
    routers["conditioned"] = replace(router, penalty=1.0, conditioned=True, anneal=0.0, entropy_bonus=0.5)
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
    trainer = make_trainer(recipe.router, folder, callbacks=[meter, best, table], val_check_interval=0.1)
    last = folder / "last.ckpt"
    data, device = _drawn_for(recipe, network), next(network.model.parameters()).device
    try:
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
        if recipe.router.conditioned:
            measure_costs(module, data.loader("validation"))
    finally:
        network.model.to(device)
    facts = {
        "history": best.history,
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


def measure_costs(module: ControllerTraining, batches: Iterable[OmniBatch]) -> None:
    """What a conditioned controller spends under each of its penalties: kept with it, for `Controller.penalty_for`."""
    controller, space, spent = module.controller.eval(), module.network.space, []
    for batch in batches:
        counts = module.costs.tokens(batch)
        dense = module.costs(space, space.dense(batch.present), counts)
        question, present = module.question(batch.to(module.device)), batch.present.to(module.device)
        shares = []
        for penalty in penalties():
            told = penalty.to(present.device).expand(len(batch))
            with torch.no_grad():
                route = controller.greedy(controller(question, present, told), present).to("cpu")
            shares.append(module.costs(space, route, counts).total / (dense.total - dense.controller))
        spent.append(torch.stack(shares))
    controller.costs.copy_(torch.cat(spent, dim=1).mean(1))


def load_or_train_controller(recipe: ControllerRecipe, network: Trained, *, retrain: bool = False) -> TrainedController:
    """The controller trained here before, else the published one, else one trained now. A checkpoint for another space
    of routes, another network or another configuration is reported and not used."""
    work = recipe.work_folder(network)
    work.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{work}.lock"):
        for folder in [] if retrain else [work, recipe.published_folder]:
            if recent(folder / FACTS):
                try:
                    return _load(recipe, network, folder)
                except CheckpointError as error:
                    log.warning("not using a checkpoint: %s", error)
        last = work / "last.ckpt"
        return train_controller(recipe, network, afresh=retrain or (last.exists() and not recent(last)))


def _load(recipe: ControllerRecipe, network: Trained, folder: Path) -> TrainedController:
    controller = recipe.new_controller(network.model)
    return TrainedController(controller.eval(), load_model(folder, controller, identity=recipe.identity(network)))


def _drawn_for(recipe: ControllerRecipe, network: Trained) -> OmniDataModule:
    """The network's data, drawn by the controller's seed, with fewer questions a scene; encoded once for all."""
    router = recipe.router
    config = replace(network.data.config, questions_per_scene=router.questions_per_scene, budget=router.media)
    return network.data.redrawn(config, seed=recipe.seed, validation=router.validation_scenes)
