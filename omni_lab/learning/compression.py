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
from omni_lab.compression.pruning import cubic_share, keep_only, take_out, zero_again, zero_smallest
from omni_lab.config import CompressionConfig, Profile, TrainingConfig, nearest, project_root
from omni_lab.data import Family, OmniDataModule
from omni_lab.learning.checkpoints import (
    FACTS,
    CheckpointError,
    digest,
    load_model,
    read_facts,
    recent,
    save_model,
    weights_digest,
)
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
        kept: Mapping[str, Tensor] = MappingProxyType({}),
        seed: int = 0,
    ) -> None:
        """kept: which weights of `model` are not pruned, by name."""
        super().__init__(model, config, answers=answers, families=families, seed=seed)
        self.fake = fake
        self.kept = kept
        frame = Frame.of(model, controller.requires_grad_(False))
        self._carried: Any = (assemble(frame, fake.run), assemble_controller(frame, fake.run))

    def forward(self, batch: OmniBatch, route: Route | None = None) -> Tensor:
        carried, controller = self._carried
        known = None
        if route is None:
            route, known = carried.decide(controller, batch)
        return carried(batch, heads=["answer"], route=route, known=known).heads["answer"]

    def on_train_batch_end(self, *args: Any) -> None:
        zero_again(self.model, self.kept)


@dataclass(frozen=True)
class Pruning:
    """share: of the weights that go, after all `rounds`, each of which is followed by a training. structured: whole
    heads and hidden units (`take_out`), else single weights (`zero_smallest`)."""

    share: float
    structured: bool
    rounds: int = 3

    def prune(self, model: OmniModel, done: int) -> tuple[Mapping[str, Tensor], dict[str, list[int]]]:
        """The round after so many: which single weights stay, and which heads and units."""
        share = cubic_share(self.share, done + 1, self.rounds)
        if not self.structured:
            return zero_smallest(model, share), {}
        gone = cubic_share(self.share, done, self.rounds)
        return {}, take_out(model, (share - gone) / (1 - gone))


@dataclass(frozen=True)
class CompressionRecipe:
    """Everything that determines a compressed model, but for the model and the controller that it begins with.

    trained: whether with quantization-aware training; else only calibrated. ranges: see `FakeQuantization`. pruning: in
    rounds, each followed by a training.
    """

    name: str
    policy: PrecisionPolicy
    ranges: str
    config: CompressionConfig
    trained: bool
    seed: int = 0
    pruning: Pruning | None = None

    def identity(self, network: Trained, controller: Controller) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded."""
        return {
            "network_weights": weights_digest(network.model),
            "controller_weights": weights_digest(controller),
            "policy": {**vars(self.policy), "encoders": {str(m): p for m, p in self.policy.encoders.items()}},
            "ranges": self.ranges,
            "config": self.config,
            "trained": self.trained,
            "pruning": self.pruning,
            "seed": self.seed,
        }

    def work_folder(self, network: Trained, controller: Controller) -> Path:
        """Where the training writes: one folder per configuration."""
        name = f"{self.name}-seed{self.seed}-{digest(self.identity(network, controller))}"
        return project_root() / "data" / "checkpoints" / "compressed" / name

    @property
    def rounds(self) -> int:
        """How many trainings it takes."""
        return int(self.trained) if self.pruning is None else self.pruning.rounds


SHARES = (30, 50, 70, 90)  # per cent of the weights


def get_compression(name: str, profile: Profile, *, seed: int = 0) -> CompressionRecipe:
    """The recipe of that name. Raises ValueError for another one. seed: of the data that it sees.

    "float" and "weights_int4": nothing is calibrated or trained. "ptq_dynamic" and "ptq_static": post-training int8,
    each input's own range or a calibrated one. "qat_int8", "qat_learned" (its ranges are trained too) and "qat_mixed".
    "pruned_30" to "pruned_90": so many per cent of the single weights are zero; "smaller_30" to "smaller_90": of the
    weights in heads and hidden units are taken out, whole ones; with "_int8", quantization-aware at that.
    """
    config = profile.world.compression
    exact, int8 = (PrecisionPolicy.everywhere(p) for p in (Precision.FP32, Precision.INT8))
    int4, mixed = PrecisionPolicy.everywhere(Precision.INT4), PrecisionPolicy.mixed()
    known: dict[str, tuple[PrecisionPolicy, str, bool, Pruning | None]] = {
        "float": (exact, "dynamic", False, None),
        "weights_int4": (int4, "dynamic", False, None),
        "ptq_dynamic": (int8, "dynamic", False, None),
        "ptq_static": (int8, "average", False, None),
        "qat_int8": (int8, "average", True, None),
        "qat_learned": (int8, "learned", True, None),
        "qat_mixed": (mixed, "average", True, None),
    }
    for share in SHARES:
        for kind, structured in (("pruned", False), ("smaller", True)):
            pruning = Pruning(share / 100, structured, config.pruning_rounds)
            known[f"{kind}_{share}"] = (exact, "dynamic", True, pruning)
            known[f"{kind}_{share}_int8"] = (int8, "average", True, pruning)
    if name not in known:
        raise ValueError(f"unknown compression {name!r}; the nearest of {[*known]} is {nearest(name, known)!r}")
    policy, ranges, trained, chosen = known[name]
    return CompressionRecipe(name, policy, ranges, config, trained, seed, chosen)


class Compressed(NamedTuple):
    """What `Exporter.write` wants. facts: how it was made, a dict per training."""

    parts: list[Part]
    frame: Frame
    policy: PrecisionPolicy
    ranges: Ranges | None
    facts: list[dict[str, Any]]


def compress(
    recipe: CompressionRecipe, network: Trained, controller: Controller, example: OmniBatch, *, afresh: bool = False
) -> Compressed:
    """Calibrates, prunes and trains a copy of the model, which stays as it is. A training that was stopped continues
    from its last checkpoint; what was finished is loaded, unless `afresh`. example: see `parts_of`."""
    model, decides = copy.deepcopy(network.model), copy.deepcopy(controller)
    parts = [*parts_of(model, example), *controller_parts(decides)]
    frame = Frame.of(model, decides)
    fake = FakeQuantization(parts, recipe.policy, ranges=recipe.ranges).eval()
    config = recipe.config
    scenes = {"train": config.scenes, "validation": config.validation_scenes}
    data = network.data.redrawn(network.data.config, seed=recipe.seed, raw=True, **scenes)
    if recipe.ranges != "dynamic":
        carried, deciding = assemble(frame, fake.run), assemble_controller(frame, fake.run)
        batches = islice(data.loader("train"), config.calibration)
        calibrate(fake, carried, batches, controller=deciding, seed=recipe.seed)
    folder, identity = recipe.work_folder(network, controller), recipe.identity(network, controller)
    folder.parent.mkdir(parents=True, exist_ok=True)
    facts = []
    with FileLock(f"{folder}.lock"):
        if afresh:
            shutil.rmtree(folder, ignore_errors=True)
        for done in range(recipe.rounds):
            held, place = _Held(model, fake), folder / f"round{done + 1}"
            found = _found(place, held, identity)
            facts.append(found or _round(recipe, done, data, held, decides, place, identity))
    return Compressed(parts, frame, recipe.policy, fake.known_ranges(), facts)


class _Held(nn.Module):
    """What is saved: the weights and the ranges."""

    def __init__(self, model: OmniModel, fake: FakeQuantization) -> None:
        super().__init__()
        self.model = model
        self.fake = fake


def _found(folder: Path, held: _Held, identity: dict[str, Any]) -> dict[str, Any] | None:
    """A round that was finished before, with its heads and units."""
    if not recent(folder / FACTS):
        return None
    try:
        facts = read_facts(folder, identity=identity)
        if facts["units"]:
            keep_only(held.model, facts["units"])
        return load_model(folder, held, identity=identity)
    except CheckpointError as error:
        log.warning("not using a checkpoint: %s", error)
        return None


def _round(
    recipe: CompressionRecipe,
    done: int,
    data: OmniDataModule,
    held: _Held,
    decides: Controller,
    folder: Path,
    identity: dict[str, Any],
) -> dict[str, Any]:
    """Prunes once, if at all, and trains."""
    last = folder / "last.ckpt"
    if not recent(last):
        shutil.rmtree(folder, ignore_errors=True)
    kept, units = ({}, {}) if recipe.pruning is None else recipe.pruning.prune(held.model, done)
    module = QuantizedTraining(
        held.model,
        decides,
        held.fake,
        recipe.config.training,
        answers=len(data.store.answers),
        families=data.store.families,
        kept=kept,
        seed=recipe.seed,
    )
    table, meter = ProgressTable(module.columns), Meter()
    trainer = make_trainer(recipe.config.training, folder, callbacks=[meter, table])
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
    held.eval()
    facts = {
        "history": table.rows,
        "units": units,
        "seconds": meter.totals["seconds"],
        "device": device_name(),
    }
    save_model(folder, held, identity=identity, facts=facts, exact=True)
    last.unlink(missing_ok=True)
    return facts
