"""Compressed models: trained in the precision that they will be stored in, begun from a trained model."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn

from omni_lab.batch import OmniBatch
from omni_lab.compression.channel_pruning import prune_channels, reapply_channel_pruning
from omni_lab.compression.export import Ranges
from omni_lab.compression.fake_quant import FakeQuantizer, calibrate
from omni_lab.compression.parts import (
    AssemblySpec,
    ModelPart,
    assemble_model,
    assemble_router,
    split_model,
    split_router,
)
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.compression.pruning import (
    cubic_share,
    importance,
    nonzero_masks,
    prune_structures,
    prune_weights,
    reapply_structure_pruning,
)
from omni_lab.config.schema import CompressionConfig, Profile
from omni_lab.data.datamodule import OmniDataModule
from omni_lab.lightning_modules.qat import LitQAT
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from omni_lab.training.callbacks import ProgressTable, ThroughputMeter
from omni_lab.training.checkpoint import (
    METADATA_FILE,
    CheckpointError,
    digest,
    is_fresh,
    load_model,
    read_metadata,
    save_model,
    weights_digest,
)
from omni_lab.training.fit import build_trainer, device_name
from omni_lab.training.recipes import TrainedModel
from omni_lab.utils.env import project_root
from omni_lab.utils.lookup import closest_match

log = logging.getLogger(__name__)
PRUNED = ("weights", "heads", "channels")


@dataclass(frozen=True)
class PruningSpec:
    """share: of the weights that go, after all `rounds`, each of which is followed by a training on questions about
    `scenes` scenes, at a `learning_rate` that lets what is left take over. what: single "weights" (`zero_smallest`),
    whole "heads", hidden units and paths (`take_out`), or "channels" within heads, and hidden units (`narrow`). The
    model as it was before is the teacher. Raises ValueError for something else."""

    sparsity: float
    granularity: str
    rounds: int = 3
    scenes: int = 500
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.granularity not in PRUNED:
            raise ValueError(f"what to prune must be one of {PRUNED}: got {self.granularity!r}")

    def prune(self, model: OmniModel, done: int, losses: Iterable[Tensor]) -> dict[str, Any]:
        """The round after so many; returns what `again` wants. losses: see `importance`."""
        share, gone = (cubic_share(self.sparsity, step, self.rounds) for step in (done + 1, done))
        if self.granularity == "weights":
            prune_weights(model, share)
            return {}
        more = (share - gone) / (1 - gone)
        if self.granularity == "heads":
            return prune_structures(model, more, importance(model, losses))
        return prune_channels(model, more, losses)

    def reapply(self, model: OmniModel, gone: dict[str, Any]) -> None:
        """Gives another copy the same shapes."""
        if self.granularity == "heads":
            reapply_structure_pruning(model, gone)
        elif self.granularity == "channels":
            reapply_channel_pruning(model, gone)


@dataclass(frozen=True)
class CompressionRecipe:
    """Everything that determines a compressed model, but for the model and the controller that it begins with.

    trained: whether with quantization-aware training; else only calibrated. ranges: see `FakeQuantization`. pruning: in
    rounds, each followed by a training. after: the recipe whose model it begins with, in place of the given one.
    """

    name: str
    policy: PrecisionPolicy
    ranges: str
    trained: bool
    config: CompressionConfig
    seed: int = 0
    pruning: PruningSpec | None = None
    init_from: CompressionRecipe | None = None

    def identity(self, network: TrainedModel, controller: Router) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded."""
        after = {} if self.init_from is None else {"after": self.init_from.identity(network, controller)}
        return {
            "network_weights": weights_digest(network.model),
            "controller_weights": weights_digest(controller),
            "policy": {**vars(self.policy), "encoders": {str(m): p for m, p in self.policy.encoders.items()}},
            "ranges": self.ranges,
            "config": self.config,
            "trained": self.trained,
            "pruning": self.pruning,
            "seed": self.seed,
            **after,
        }

    def work_folder(self, network: TrainedModel, controller: Router) -> Path:
        """Where the training writes: one folder per configuration."""
        name = f"{self.name}-seed{self.seed}-{digest(self.identity(network, controller))}"
        return project_root() / "data" / "checkpoints" / "compressed" / name

    @property
    def rounds(self) -> int:
        """How many rounds of pruning, training or both it takes."""
        return int(self.trained) if self.pruning is None else self.pruning.rounds

    @property
    def sparse(self) -> bool:
        """Whether single weights are zero, and to stay so."""
        if self.pruning is None:
            return self.init_from is not None and self.init_from.sparse
        return self.pruning.granularity == "weights"


KINDS = {"pruned": "weights", "heads": "heads", "smaller": "channels"}
PRUNING_PERCENTS = (30, 50, 70, 90)  # per cent of the weights
# of each share: what is lost has to be learned again, and what is not is easily spoiled
PRUNING_LEARNING_RATES = {
    "weights": (3e-5, 3e-5, 1e-4, 1e-4),
    "heads": (1e-4,) * 4,
    "channels": (3e-5, 3e-5, 3e-5, 1e-4),
}


def get_compression_recipe(name: str, profile: Profile, *, seed: int = 0) -> CompressionRecipe:
    """The recipe of that name. Raises ValueError for another one. seed: of the data that it sees.

    "float" and "weights_int4": nothing is calibrated or trained. "float_tuned": only trained, as long as those that
    follow. "ptq_dynamic" and "ptq_static": post-training int8, each input's own range or a calibrated one. "qat_int8",
    "qat_learned" (its ranges are trained too) and "qat_mixed". "pruned_30" to "pruned_90": so many per cent of the
    single weights are zero. "heads_30" to "heads_90": of the weights are taken out, as whole paths, heads and hidden
    units. "smaller_30" to "smaller_90": as channels of heads, and hidden units. With "_int8", quantization-aware
    training after that. With "_once", all goes in one round, without training; with "_once_int8", as "ptq_dynamic".
    """
    config = profile.emoji_world.compression
    exact, int8 = (PrecisionPolicy.uniform(p) for p in (Precision.FP32, Precision.INT8))
    int4, mixed = PrecisionPolicy.uniform(Precision.INT4), PrecisionPolicy.mixed()
    known: dict[str, tuple[PrecisionPolicy, str, bool]] = {
        "float": (exact, "dynamic", False),
        "weights_int4": (int4, "dynamic", False),
        "ptq_dynamic": (int8, "dynamic", False),
        "ptq_static": (int8, "average", False),
        "float_tuned": (exact, "dynamic", True),
        "qat_int8": (int8, "average", True),
        "qat_learned": (int8, "learned", True),
        "qat_mixed": (mixed, "average", True),
    }
    recipes = {n: CompressionRecipe(n, *known[n], config=config, seed=seed) for n in known}
    for (place, share), (kind, what) in product(enumerate(PRUNING_PERCENTS), KINDS.items()):
        n, scenes, rate = f"{kind}_{share}", config.scenes // 4, PRUNING_LEARNING_RATES[what][place]
        pruning = PruningSpec(share / 100, what, config.pruning_rounds, scenes, rate)
        rounds = CompressionRecipe(n, exact, "dynamic", True, config, seed, pruning)
        once = replace(rounds, name=f"{n}_once", trained=False, pruning=replace(pruning, rounds=1))
        recipes |= {n: rounds, once.name: once}
        for start, then in ((rounds, "qat_int8"), (once, "ptq_dynamic")):
            recipes[f"{start.name}_int8"] = replace(recipes[then], name=f"{start.name}_int8", init_from=start)
    if name not in recipes:
        raise ValueError(
            f"unknown compression {name!r}; the nearest of {[*recipes]} is {closest_match(name, recipes)!r}"
        )
    return recipes[name]


class CompressedModel(NamedTuple):
    """What `Exporter.write` wants, and the model and the controller in PyTorch, in float32. facts: how it was made, a
    dict per training."""

    parts: list[ModelPart]
    frame: AssemblySpec
    policy: PrecisionPolicy
    ranges: Ranges | None
    metadata: list[dict[str, Any]]
    model: OmniModel
    router: Router


def compress(
    recipe: CompressionRecipe, network: TrainedModel, controller: Router, example: OmniBatch, *, afresh: bool = False
) -> CompressedModel:
    """Calibrates, prunes and trains a copy of the model, which stays as it is. A training that was stopped continues
    from its last checkpoint; what was finished is loaded, unless `afresh`. example: see `parts_of`."""
    if recipe.init_from is None:
        model, decides, facts = copy.deepcopy(network.model).eval(), copy.deepcopy(controller).eval(), []
    else:
        start = compress(recipe.init_from, network, controller, example, afresh=afresh)
        model, decides, facts = start.model, start.router, start.metadata
    config = recipe.config
    scenes = config.scenes if recipe.pruning is None else recipe.pruning.scenes
    data = network.data.with_config(
        network.data.config, seed=recipe.seed, raw=True, train=scenes, validation=config.validation_scenes
    )
    folder, identity = recipe.work_folder(network, controller), recipe.identity(network, controller)
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = _CompressionRun(recipe, data, model, decides, example)
    with FileLock(f"{folder}.lock"):
        if afresh:
            shutil.rmtree(folder, ignore_errors=True)
        for done in range(recipe.rounds):
            place = folder / f"round{done + 1}"
            facts.append(making.found(place, identity) or making.round(done, place, identity))
    if not recipe.rounds:
        making.prepare()
    return CompressedModel(
        making.parts, making.frame, recipe.policy, making.fake.known_ranges(), facts, making.model, decides
    )


class _ModelAndRanges(nn.Module):
    """What is saved: the weights and the ranges."""

    def __init__(self, model: OmniModel, fake: FakeQuantizer) -> None:
        super().__init__()
        self.model = model
        self.fake = fake


class _CompressionRun:
    """A model while it is compressed; its parts are those of the last round."""

    parts: list[ModelPart]
    frame: AssemblySpec
    fake: FakeQuantizer

    def __init__(
        self,
        recipe: CompressionRecipe,
        data: OmniDataModule,
        model: OmniModel,
        controller: Router,
        example: OmniBatch,
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.model = model
        self.whole = copy.deepcopy(model)  # as it is now
        self.controller = controller
        self.example = example

    def prepare(self, *, calibrated: bool = True) -> None:
        """Takes the model apart as it is now."""
        if hasattr(self, "fake"):
            self.fake.remove()
        self.controller.space = self.model.space
        self.parts = [*split_model(self.model, self.example), *split_router(self.controller)]
        self.frame = AssemblySpec.from_model(self.model, self.controller)
        self.fake = FakeQuantizer(self.parts, self.recipe.policy, ranges=self.recipe.ranges).eval()
        if calibrated and self.recipe.ranges != "dynamic":
            carried, deciding = assemble_model(self.frame, self.fake.run), assemble_router(self.frame, self.fake.run)
            calibrate(self.fake, carried, self._batches(), controller=deciding, seed=self.recipe.seed)

    def found(self, folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
        """A round that was finished before."""
        if not is_fresh(folder / METADATA_FILE):
            return None
        if hasattr(self, "fake"):
            self.fake.remove()
        before = copy.deepcopy(self.model)
        try:
            gone = read_metadata(folder, identity=identity)["gone"]
            if self.recipe.pruning is not None:
                self.recipe.pruning.reapply(self.model, gone)
            self.prepare(calibrated=False)
            return load_model(folder, _ModelAndRanges(self.model, self.fake), identity=identity)
        except CheckpointError as error:
            log.warning("not using a checkpoint: %s", error)
            self.model = before
            return None

    def round(self, done: int, folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """Prunes and trains once, as far as the recipe wants either."""
        if not is_fresh(folder / "last.ckpt"):
            shutil.rmtree(folder, ignore_errors=True)
        pruning = self.recipe.pruning
        gone = {} if pruning is None else pruning.prune(self.model, done, self._losses())
        self.prepare()
        facts = {"gone": gone, "device": device_name(), **(self._train(folder) if self.recipe.trained else {})}
        save_model(folder, _ModelAndRanges(self.model, self.fake).eval(), identity=identity, metadata=facts, exact=True)
        (folder / "last.ckpt").unlink(missing_ok=True)
        return facts

    def _train(self, folder: Path) -> dict[str, Any]:
        last, recipe, training = folder / "last.ckpt", self.recipe, self.recipe.config.training
        if recipe.pruning is not None:
            training = replace(training, learning_rate=recipe.pruning.learning_rate)
        module = LitQAT(
            self.model,
            self.controller,
            self.fake,
            training,
            answers=len(self.data.store.answers),
            families=self.data.store.families,
            kept=nonzero_masks(self.model) if recipe.sparse else {},
            teacher=None if recipe.pruning is None else self.whole,
            seed=recipe.seed,
        )
        table, meter = ProgressTable(module.columns), ThroughputMeter()
        trainer = build_trainer(training, folder, callbacks=[meter, table])
        trainer.fit(module.train(), self.data, ckpt_path=last if last.exists() else None, weights_only=False)
        return {"history": table.rows, "seconds": meter.totals["seconds"]}

    def _batches(self) -> Iterator[OmniBatch]:
        return islice(self.data.loader("train"), self.recipe.config.calibration)

    def _losses(self) -> Iterator[Tensor]:
        """Of answers to the same questions in full, and under the routes that the controller decides on."""
        for batch in self._batches():
            with torch.no_grad():
                decided = self.model.select_route(self.controller, batch)[0]
            for route in (None, decided):
                said = self.model(batch, heads=["answer"], route=route).head_outputs["answer"]
                yield answer_loss(said, batch.targets["answer_scores"])
