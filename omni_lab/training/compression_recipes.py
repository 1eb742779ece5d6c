"""Compressed models: recipes by name, and their calibration, pruning and quantization-aware training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from omni_lab.batch import OmniBatch
from omni_lab.compression import channel_pruning, fake_quant, parts, pruning
from omni_lab.compression.export import Ranges
from omni_lab.compression.parts import AssemblySpec, ModelPart
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.config.schema import CompressionConfig, Profile
from omni_lab.data.datamodule import OmniDataModule
from omni_lab.lightning_modules.qat import LitQAT
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from omni_lab.training.checkpoint import BaseRecipe, load_or_fit, weights_digest
from omni_lab.training.fit import device_name, fit
from omni_lab.training.recipes import TrainedModel
from omni_lab.utils.lookup import lookup

GRANULARITIES = ("weights", "heads", "channels")


@dataclass(frozen=True)
class PruningSpec:
    """Iterative pruning. Each round is followed by a training with the unpruned model as the teacher.

    Raises ValueError for an unknown granularity.
    """

    sparsity: float  # fraction of the weights that is pruned in the end
    granularity: str  # single "weights"; whole "heads", hidden units and paths; "channels" of heads, and hidden units
    rounds: int = 3
    scenes: int = 500  # train on questions about the first scenes
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {GRANULARITIES}: got {self.granularity!r}")

    def prune(self, model: OmniModel, done: int, losses: Iterable[Tensor]) -> dict[str, Any]:
        """Prunes after `done` rounds, and returns what `reapply` needs. losses: see `importance`."""
        target, pruned = (pruning.cubic_sparsity(self.sparsity, n, self.rounds) for n in (done + 1, done))
        if self.granularity == "weights":
            pruning.prune_weights(model, target)
            return {}
        of_remaining = (target - pruned) / (1 - pruned)
        if self.granularity == "heads":
            return pruning.prune_structures(model, of_remaining, pruning.importance(model, losses))
        return channel_pruning.prune_channels(model, of_remaining, losses)

    def reapply(self, model: OmniModel, pruned: dict[str, Any]) -> None:
        """Gives another copy of the model the shapes of a pruned one."""
        if self.granularity == "heads":
            pruning.reapply_structure_pruning(model, pruned)
        elif self.granularity == "channels":
            channel_pruning.reapply_channel_pruning(model, pruned)


@dataclass(frozen=True)
class CompressionRecipe(BaseRecipe):
    """Everything that determines a compressed model, except the network and the router that it is made from."""

    exact = True
    name: str
    policy: PrecisionPolicy
    ranges: str  # see `FakeQuantizer`
    trained: bool  # with quantization-aware training, else calibrated only
    config: CompressionConfig
    seed: int = 0
    pruning: PruningSpec | None = None
    init_from: CompressionRecipe | None = None  # start from its model, not from the network

    def identity(self, network: TrainedModel, router: Router) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded."""
        after = {} if self.init_from is None else {"after": self.init_from.identity(network, router)}
        return {
            "network_weights": weights_digest(network.model),
            "controller_weights": weights_digest(router),
            "policy": {**vars(self.policy), "encoders": {str(m): p for m, p in self.policy.encoders.items()}},
            "ranges": self.ranges,
            "config": self.config,
            "trained": self.trained,
            "pruning": self.pruning,
            "seed": self.seed,
            **after,
        }

    @property
    def folder(self) -> Path:
        return Path("compressed") / f"{self.name}-seed{self.seed}"

    @property
    def rounds(self) -> int:
        """Number of rounds of pruning, training or both; each has a checkpoint."""
        return int(self.trained) if self.pruning is None else self.pruning.rounds

    @property
    def sparse(self) -> bool:
        """Whether single weights are pruned, and must stay zero in training."""
        if self.pruning is None:
            return self.init_from is not None and self.init_from.sparse
        return self.pruning.granularity == "weights"


PREFIXES = {"pruned": "weights", "heads": "heads", "smaller": "channels"}  # of names -> granularity
PERCENTS = (30, 50, 70, 90)
# One per percentage: what is lost must be learned again, and what is not is easily damaged.
LEARNING_RATES = {"weights": (3e-5, 3e-5, 1e-4, 1e-4), "heads": (1e-4,) * 4, "channels": (3e-5, 3e-5, 3e-5, 1e-4)}


def get_compression_recipe(name: str, profile: Profile, *, seed: int = 0) -> CompressionRecipe:
    """The recipe of that name. Raises ValueError for another name, with the nearest one. seed: of the training data.

    float, weights_int4: neither calibrated nor trained. float_tuned: trained as long as the "qat" recipes.
    ptq_dynamic, ptq_static: int8 post-training quantization, with each input's own range or a calibrated one.
    qat_int8, qat_learned, qat_mixed: quantization-aware training; with learned ranges; in mixed precision.
    pruned_<percent>, heads_<percent>, smaller_<percent>: 30, 50, 70 or 90 percent of the weights are pruned, as single
    weights, as whole heads, hidden units and paths, or as channels of heads and hidden units.
    <pruned>_int8: such a model after "qat_int8". <pruned>_once: pruned in one round, not trained.
    <pruned>_once_int8: that one after "ptq_dynamic".
    """
    config = profile.emoji_world.compression
    fp32, int8, int4 = (PrecisionPolicy.uniform(p) for p in (Precision.FP32, Precision.INT8, Precision.INT4))
    quantized: dict[str, tuple[PrecisionPolicy, str, bool]] = {
        "float": (fp32, "dynamic", False),
        "weights_int4": (int4, "dynamic", False),
        "ptq_dynamic": (int8, "dynamic", False),
        "ptq_static": (int8, "average", False),
        "float_tuned": (fp32, "dynamic", True),
        "qat_int8": (int8, "average", True),
        "qat_learned": (int8, "learned", True),
        "qat_mixed": (PrecisionPolicy.mixed(), "average", True),
    }
    recipes = {n: CompressionRecipe(n, *arguments, config=config, seed=seed) for n, arguments in quantized.items()}
    for (i, percent), (prefix, granularity) in product(enumerate(PERCENTS), PREFIXES.items()):
        n, scenes, rate = f"{prefix}_{percent}", config.scenes // 4, LEARNING_RATES[granularity][i]
        spec = PruningSpec(percent / 100, granularity, config.pruning_rounds, scenes, rate)
        rounds = CompressionRecipe(n, fp32, "dynamic", True, config, seed, spec)
        once = replace(rounds, name=f"{n}_once", trained=False, pruning=replace(spec, rounds=1))
        recipes |= {n: rounds, once.name: once}
        for start, then in ((rounds, "qat_int8"), (once, "ptq_dynamic")):
            recipes[f"{start.name}_int8"] = replace(recipes[then], name=f"{start.name}_int8", init_from=start)
    return lookup(name, recipes, "compression")


class CompressedModel(NamedTuple):
    """What `Exporter.write` needs, and the model itself."""

    parts: list[ModelPart]
    spec: AssemblySpec
    policy: PrecisionPolicy
    ranges: Ranges | None
    metadata: list[dict[str, Any]]  # one per round
    model: OmniModel  # in PyTorch and float32, as the router
    router: Router


def compress(
    recipe: CompressionRecipe, network: TrainedModel, router: Router, example: OmniBatch, *, retrain: bool = False
) -> CompressedModel:
    """Calibrates, prunes and trains a copy of the network; each round is loaded or trained as by `load_or_fit`.

    example: a batch with raw inputs of every modality, see `split_model`.
    """
    inputs, metadata = (network, router), []
    if recipe.init_from is None:
        model, router = copy.deepcopy(network.model).eval(), copy.deepcopy(router).eval()
    else:
        start = compress(recipe.init_from, network, router, example, retrain=retrain)
        model, router, metadata = start.model, start.router, start.metadata
    compressor = _Compressor(recipe, network.data, router, example, teacher=model)
    if not recipe.rounds:
        assembly = _Assembly(compressor, model, calibrated=True)
    for done in range(recipe.rounds):
        train, build = partial(compressor.train, model, done), partial(compressor.build, model)
        part = f"round{done + 1}"
        assembly, round_metadata, _ = load_or_fit(recipe, inputs, train, build=build, part=part, retrain=retrain)
        assembly.fake.remove()  # the next round copies the model, and would copy its hooks
        model = assembly.model
        metadata.append(round_metadata)
    ranges = assembly.fake.quant_ranges()
    return CompressedModel(assembly.parts, assembly.spec, recipe.policy, ranges, metadata, assembly.model, router)


class _Assembly(nn.Module):
    """A model, its parts, and the fake quantizer that runs them. A round saves its state dict: weights and ranges."""

    def __init__(self, compressor: _Compressor, model: OmniModel, *, calibrated: bool) -> None:
        super().__init__()
        recipe, router = compressor.recipe, compressor.router
        router.space = model.space
        self.model = model
        self.parts = [*parts.split_model(model, compressor.example), *parts.split_router(router)]
        self.spec = AssemblySpec.from_model(model, router)
        self.fake = fake_quant.FakeQuantizer(self.parts, recipe.policy, ranges=recipe.ranges).eval()
        if calibrated and recipe.ranges != "dynamic":
            assembled, run = parts.assemble_model(self.spec, self.fake.run), self.fake.run
            router, batches = parts.assemble_router(self.spec, run), compressor.batches()
            fake_quant.calibrate(self.fake, assembled, batches, router=router, seed=recipe.seed)


@dataclass
class _Compressor:
    """Runs the rounds of a recipe, each on a copy of the model that the round before left."""

    recipe: CompressionRecipe
    source_data: OmniDataModule  # of the network
    router: Router
    example: OmniBatch
    teacher: OmniModel

    def build(self, model: OmniModel, metadata: dict[str, Any]) -> _Assembly:
        """A copy of `model` with the shapes that a round with this metadata left."""
        model = copy.deepcopy(model)
        if self.recipe.pruning is not None:
            self.recipe.pruning.reapply(model, metadata["gone"])
        return _Assembly(self, model, calibrated=False)

    def train(self, model: OmniModel, done: int, folder: Path) -> tuple[_Assembly, dict[str, Any]]:
        """Prunes and trains a copy of `model`, as far as the recipe says so."""
        recipe, training, model, pruned = self.recipe, self.recipe.config.training, copy.deepcopy(model), {}
        if recipe.pruning is not None:
            pruned = recipe.pruning.prune(model, done, self._losses(model))
            training = replace(training, learning_rate=recipe.pruning.learning_rate)
        assembly, metadata = _Assembly(self, model, calibrated=True), {"gone": pruned, "device": device_name()}
        if not recipe.trained:
            return assembly, metadata
        module = LitQAT(
            model,
            self.router,
            assembly.fake,
            training,
            answers=len(self.data.store.answers),
            families=self.data.store.families,
            masks=pruning.nonzero_masks(model) if recipe.sparse else {},
            teacher=None if recipe.pruning is None else self.teacher,
            seed=recipe.seed,
        )
        _, table = fit(module.train(), self.data, training, folder)
        return assembly, metadata | {"history": table.rows, "seconds": table.totals["seconds"]}

    @cached_property
    def data(self) -> OmniDataModule:
        """Raw media of the scenes to train on."""
        scenes, validation = (self.recipe.pruning or self.recipe.config).scenes, self.recipe.config.validation_scenes
        return self._subset(train=scenes, validation=validation)

    def _subset(self, **scenes: int) -> OmniDataModule:
        return self.source_data.with_config(self.source_data.config, seed=self.recipe.seed, raw=True, **scenes)

    def batches(self) -> Iterator[OmniBatch]:
        """Batches to calibrate on."""
        config = self.recipe.config
        return islice(self._subset(train=config.calibration_scenes).loader("train"), config.calibration)

    def _losses(self, model: OmniModel) -> Iterator[Tensor]:
        """Answer losses on the calibration batches, each under the dense route and under the router's."""
        self.router.space = model.space  # `build` may have left that of a checkpoint which could not be loaded
        for batch in self.batches():
            with torch.no_grad():
                routed = model.select_route(self.router, batch)[0]
            for route in (None, routed):
                logits = model(batch, heads=["answer"], route=route).head_outputs["answer"]
                yield answer_loss(logits, batch.targets["answer_scores"])
