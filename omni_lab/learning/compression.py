"""Compressed models: trained in the precision that they will be stored in, begun from a trained model."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from filelock import FileLock
from torch import Tensor, nn

from omni_lab.compression import (
    FakeQuantization,
    Frame,
    Part,
    Precision,
    PrecisionPolicy,
    assemble,
    assemble_controller,
    calibrate,
    controller_parts,
    parts_of,
)
from omni_lab.compression.artefact import Ranges
from omni_lab.config import CompressionConfig, Profile, TrainingConfig, nearest, project_root
from omni_lab.data import Family
from omni_lab.learning.checkpoints import FACTS, CheckpointError, digest, load_model, recent, save_model, weights_digest
from omni_lab.learning.multitask import MultitaskTraining
from omni_lab.learning.progress import ProgressTable
from omni_lab.learning.recipes import Meter, Trained, device_name, make_trainer
from omni_lab.modalities import OmniBatch
from omni_lab.model import OmniModel
from omni_lab.routing import Route
from omni_lab.routing.controller import Controller

log = logging.getLogger(__name__)


class QuantizedTraining(MultitaskTraining):
    """Trains a model as it will answer once it is exported: in the precision of `fake`, under the routes that its
    controller, in that precision too, decides on; with the chance `config.random_routes`, under random ones. The
    controller itself stays as it is."""

    def __init__(
        self,
        model: OmniModel,
        controller: Controller,
        fake: FakeQuantization,
        config: TrainingConfig,
        *,
        answers: int,
        families: Mapping[str, Family] = MappingProxyType({}),
        seed: int = 0,
    ) -> None:
        super().__init__(model, config, answers=answers, families=families, seed=seed)
        self.fake = fake
        frame = Frame.of(model, controller.requires_grad_(False))
        self._carried: Any = (assemble(frame, fake.run), assemble_controller(frame, fake.run))

    def forward(self, batch: OmniBatch, route: Route | None = None) -> Tensor:
        carried, controller = self._carried
        known = None
        if route is None:
            route, known = carried.decide(controller, batch)
        return carried(batch, heads=["answer"], route=route, known=known).heads["answer"]


@dataclass(frozen=True)
class CompressionRecipe:
    """Everything that determines a compressed model, but for the model and the controller that it begins with.

    trained: whether with quantization-aware training; else only calibrated. ranges: see `FakeQuantization`.
    """

    name: str
    policy: PrecisionPolicy
    ranges: str
    config: CompressionConfig
    trained: bool
    seed: int = 0

    def identity(self, network: Trained, controller: Controller) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded."""
        return {
            "network_weights": weights_digest(network.model),
            "controller_weights": weights_digest(controller),
            "policy": {**vars(self.policy), "encoders": {str(m): p for m, p in self.policy.encoders.items()}},
            "ranges": self.ranges,
            "config": self.config,
            "trained": self.trained,
            "seed": self.seed,
        }

    def work_folder(self, network: Trained, controller: Controller) -> Path:
        """Where the training writes: one folder per configuration."""
        name = f"{self.name}-seed{self.seed}-{digest(self.identity(network, controller))}"
        return project_root() / "data" / "checkpoints" / "compressed" / name


def get_compression(name: str, profile: Profile, *, seed: int = 0) -> CompressionRecipe:
    """The recipe of that name: "float" and "weights_int4" (nothing is calibrated or trained), "ptq_dynamic" and
    "ptq_static" (post-training int8, each input's own range or a calibrated one), "qat_int8", "qat_learned" (its
    ranges are trained too) or "qat_mixed". Raises ValueError for another name. seed: of the data that it sees."""
    config = profile.world.compression
    int8, mixed = PrecisionPolicy.everywhere(Precision.INT8), PrecisionPolicy.mixed()
    known = {
        "float": (PrecisionPolicy.everywhere(Precision.FP32), "dynamic", False),
        "weights_int4": (PrecisionPolicy.everywhere(Precision.INT4), "dynamic", False),
        "ptq_dynamic": (int8, "dynamic", False),
        "ptq_static": (int8, "average", False),
        "qat_int8": (int8, "average", True),
        "qat_learned": (int8, "learned", True),
        "qat_mixed": (mixed, "average", True),
    }
    if name not in known:
        raise ValueError(f"unknown compression {name!r}; the nearest of {[*known]} is {nearest(name, known)!r}")
    policy, ranges, trained = known[name]
    return CompressionRecipe(name, policy, ranges, config, trained, seed)


class Compressed(NamedTuple):
    """What `Exporter.write` wants. facts: how it was made."""

    parts: list[Part]
    frame: Frame
    policy: PrecisionPolicy
    ranges: Ranges | None
    facts: dict[str, Any]


def compress(
    recipe: CompressionRecipe, network: Trained, controller: Controller, example: OmniBatch, *, afresh: bool = False
) -> Compressed:
    """Calibrates and trains a copy of the model, which stays as it is. A training that was stopped continues from its
    last checkpoint; one that was finished is loaded, unless `afresh`. example: see `parts_of`."""
    model, decides = copy.deepcopy(network.model), copy.deepcopy(controller)
    parts = [*parts_of(model, example), *controller_parts(decides)]
    frame = Frame.of(model, decides)
    fake = FakeQuantization(parts, recipe.policy, ranges=recipe.ranges)
    if recipe.ranges == "dynamic" and not recipe.trained:
        return Compressed(parts, frame, recipe.policy, None, {})
    folder = recipe.work_folder(network, controller)
    folder.parent.mkdir(parents=True, exist_ok=True)
    held = _Held(model, fake)
    with FileLock(f"{folder}.lock"):
        facts = None if afresh else _found(recipe, folder, held, network, controller)
        if facts is None:
            facts = _make(recipe, network, controller, held, decides, folder, afresh=afresh)
    return Compressed(parts, frame, recipe.policy, fake.known_ranges(), facts)


class _Held(nn.Module):
    """What is saved: the weights and the ranges."""

    def __init__(self, model: OmniModel, fake: FakeQuantization) -> None:
        super().__init__()
        self.model = model
        self.fake = fake


def _found(
    recipe: CompressionRecipe, folder: Path, held: _Held, network: Trained, controller: Controller
) -> dict[str, Any] | None:
    if not recent(folder / FACTS):
        return None
    try:
        return load_model(folder, held, identity=recipe.identity(network, controller))
    except CheckpointError as error:
        log.warning("not using a checkpoint: %s", error)
        return None


def _make(
    recipe: CompressionRecipe,
    network: Trained,
    controller: Controller,
    held: _Held,
    decides: Controller,
    folder: Path,
    *,
    afresh: bool,
) -> dict[str, Any]:
    last = folder / "last.ckpt"
    if afresh or not recent(last):
        shutil.rmtree(folder, ignore_errors=True)
    config, model, fake = recipe.config, held.model, held.fake
    scenes = {"train": config.scenes, "validation": config.validation_scenes}
    data = network.data.redrawn(network.data.config, seed=recipe.seed, **scenes)
    frame = Frame.of(model, decides)
    carried, deciding = assemble(frame, fake.eval().run), assemble_controller(frame, fake.run)
    batches = islice(data.loader("train"), config.calibration)
    calibrate(fake, carried, batches, controller=deciding, seed=recipe.seed)
    facts: dict[str, Any] = {"device": device_name(), "seconds": 0.0}
    if recipe.trained:
        module = QuantizedTraining(
            model,
            decides,
            fake,
            config.training,
            answers=len(data.store.answers),
            families=data.store.families,
            seed=recipe.seed,
        )
        table, meter = ProgressTable(module.columns), Meter()
        trainer = make_trainer(config.training, folder, callbacks=[meter, table])
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
        facts |= {"history": table.rows, "seconds": meter.totals["seconds"]}
        held.eval()
    save_model(folder, held, identity=recipe.identity(network, controller), facts=facts, exact=True)
    last.unlink(missing_ok=True)
    return facts
