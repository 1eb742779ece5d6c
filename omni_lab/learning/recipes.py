"""From a profile to a trained model: what every notebook and the command line train by."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import resource
import shutil
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from omni_lab.config import (
    DataConfig,
    HeadsConfig,
    ModelConfig,
    Profile,
    RouterConfig,
    TrainingConfig,
    WorldConfig,
    nearest,
    project_root,
)
from omni_lab.data import Distracted, EasyVqa, EmojiWorld, OmniDataModule, TalkingFace, ViewsDataModule, VqaSource
from omni_lab.data.heads import HeadsDataModule
from omni_lab.data.worlds.sayings import SPEAKERS
from omni_lab.data.worlds.tasks import RULES, HeadBatch
from omni_lab.data.worlds.things import vocabulary
from omni_lab.fusion import FusionPlan, Stage
from omni_lab.learning.alignment import AlignmentModel, EncoderAlignment
from omni_lab.learning.checkpoints import FACTS, CheckpointError, digest, load_model, recent, save_model
from omni_lab.learning.exits import train_exits
from omni_lab.learning.heads import HeadsTraining
from omni_lab.learning.latents import EncodeFrozen
from omni_lab.learning.multitask import MultitaskTraining
from omni_lab.learning.progress import ProgressTable
from omni_lab.modalities import Modality, OmniBatch
from omni_lab.model import OmniModel, add_heads, build_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a model trained on questions. `name` and `seed` name its folder.

    start: the recipe of the model whose weights this training begins with, as far as the two have them in common.
    loan: (from, to), two modalities; what fusion and heads then do for the second begins as what they do for the first.
    """

    name: str
    profile: str
    source: VqaSource
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    seed: int = 0
    start: Recipe | None = None
    loan: tuple[Modality, Modality] | None = None

    @property
    def folder(self) -> Path:
        return Path(self.profile) / f"{self.name}-seed{self.seed}"

    def work_folder(self, data: Any) -> Path:
        """Where the training writes: one folder per configuration, so that no two ever overwrite each other."""
        return project_root() / "data" / "checkpoints" / f"{self.folder}-{digest(self.identity(data))}"

    @property
    def published_folder(self) -> Path:
        return project_root() / "reports" / "published" / "checkpoints" / self.folder

    def data_module(self) -> OmniDataModule:
        root = project_root() / "data" / "stores"
        return OmniDataModule(self.source, self.data, root=root, modalities=self.model.modalities, seed=self.seed)

    def identity(self, data: OmniDataModule) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded. How often it was saved, or loaded by how many workers, is not
        part of it."""
        training = {k: v for k, v in vars(self.training).items() if k != "checkpoint_every"}
        data_config = {k: v for k, v in vars(self.data).items() if k != "num_workers"}
        vocabulary = hashlib.sha256(data.store.tokenizer.to_str().encode()).hexdigest()
        start = {"start": self.start.identity(data)} if self.start is not None else {}
        loan = {"loan": self.loan} if self.loan is not None else {}
        return {
            "source": data.store.manifest["source"],
            "answers": data.store.answers,
            "vocabulary": vocabulary,
            "model": self.model,
            "data": data_config,
            "training": training,
            "seed": self.seed,
            **start,
            **loan,
        }

    def new_model(self, data: OmniDataModule) -> OmniModel:
        """The untrained model, its initial weights drawn from the seed (the global random state is left alone)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_model(
                self.model, vocab_size=data.store.tokenizer.get_vocab_size(), answers=len(data.store.answers)
            )

    def first_model(self, data: Any) -> Any:
        """The model that training begins with: new, but for what it has in common with a `start`."""
        model = self.new_model(data)
        if self.start is not None:
            known = model.state_dict()
            earlier = load_or_train(self.start).model.state_dict()
            fitting = {n: w for n, w in earlier.items() if n in known and w.shape == known[n].shape}
            model.load_state_dict(known | fitting)
        if self.loan is not None:
            model.lend(*self.loan)
        return model

    def module(self, model: OmniModel, data: OmniDataModule) -> L.LightningModule:
        return MultitaskTraining(
            model, self.training, answers=len(data.store.answers), families=data.store.families, seed=self.seed
        )


@dataclass(frozen=True)
class AlignmentRecipe(Recipe):
    """Everything that determines contrastively pre-trained encoders. views: drawn afresh for each epoch. pairs,
    sentences, voices: see `ThingViews`. sketch: weight of the sketches beside the contrast."""

    views: int = 6400
    views_per_batch: int = 64
    pairs: float = 0.7
    sentences: float = 0.5
    voices: float = 0.4
    sketch: float = 3.0

    def data_module(self) -> OmniDataModule:
        root = project_root() / "data" / "stores"
        return ViewsDataModule(
            self.source,
            self.data,
            root=root,
            modalities=self.model.modalities,
            seed=self.seed,
            views=self.views,
            views_per_batch=self.views_per_batch,
            mix={name: getattr(self, name) for name in ("pairs", "sentences", "voices")},
        )

    def identity(self, data: OmniDataModule) -> dict[str, Any]:
        own = ("views", "views_per_batch", "pairs", "sentences", "voices", "sketch")
        return super().identity(data) | {name: getattr(self, name) for name in own}

    def new_model(self, data: OmniDataModule) -> AlignmentModel:  # type: ignore[override]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return AlignmentModel(self.model, vocab_size=data.store.tokenizer.get_vocab_size())

    def module(self, model: AlignmentModel, data: OmniDataModule) -> L.LightningModule:  # type: ignore[override]
        return EncoderAlignment(model, self.training, sketch=self.sketch, seed=self.seed)


@dataclass(frozen=True)
class HeadsRecipe(Recipe):
    """Everything that determines a model of many heads. task: the only one that it is trained on."""

    heads: HeadsConfig | None = None
    task: str | None = None

    @property
    def config(self) -> HeadsConfig:
        assert self.heads is not None
        return self.heads

    def data_module(self) -> HeadsDataModule:  # type: ignore[override]
        tasks = None if self.task is None else [self.task]
        root = project_root() / "data" / "stores"
        return HeadsDataModule(self.config, root=root, seed=self.seed, tasks=tasks, workers=self.data.num_workers)

    def identity(self, data: HeadsDataModule) -> dict[str, Any]:  # type: ignore[override]
        training = {k: v for k, v in vars(self.training).items() if k != "checkpoint_every"}
        heads = {k: v for k, v in vars(self.config).items() if k not in ("model", "training")}
        heads["examples"] = self.config.examples["train"]  # tested on, or validated, is any number
        vocabulary = hashlib.sha256(data.codec.tokenizer.to_str().encode()).hexdigest()
        facts = {"model": self.model, "heads": heads, "vocabulary": vocabulary, "world": data.world.fingerprint()}
        return {**facts, "training": training, "seed": self.seed, "task": self.task, "rules": RULES}

    def new_model(self, data: HeadsDataModule) -> OmniModel:  # type: ignore[override]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            words, answers = data.codec.tokenizer.get_vocab_size(), len(data.world.answers())
            model = build_model(self.model, vocab_size=words, answers=answers)
            classes = [thing.names["en"] for thing in vocabulary(data.world.things)]
            return add_heads(model, self.config, codec=data.codec, classes=classes, voices=len(SPEAKERS))

    def module(self, model: OmniModel, data: HeadsDataModule) -> L.LightningModule:  # type: ignore[override]
        uncertainty = self.config.uncertainty and self.task is None
        return HeadsTraining(model, self.training, tasks=data.names, uncertainty=uncertainty, seed=self.seed)


@dataclass(frozen=True)
class Trained:
    """facts: history (a row an epoch), samples_per_second, peak_memory_mb, seconds, device, precision, command.
    origin: where the weights came from, in words for the reader.
    """

    model: Any
    data: Any
    facts: dict[str, Any]
    origin: str


def get_recipe(name: str, profile: Profile, *, seed: int = 0) -> Recipe:
    """The recipe of that name.

    "easy_vqa", "easy_vqa_text" (the same without its eyes, a control), "emoji_alignment", "emoji_reading",
    "emoji_quiet", "emoji_matching", "emoji_world", "emoji_routed" (each starts from the one before, the last under
    random routes), and "emoji_world_without_<modality>" (controls that lack one throughout); "easy_vqa_quiet"
    (questions and pictures alone, from "emoji_routed") and from there "easy_vqa_routed" (under random routes, amid
    sounds and clips that have nothing to do with the questions); "talking_face_early", "_mid" and "_late", by where
    sound and lips meet; "heads" (all tasks together), "heads_fixed" (the same, all losses counting alike), and
    "heads_<task>" (on one task alone, with as many batches as it has among all).
    """
    recipes = _recipes(profile, seed)
    if name not in recipes:
        raise ValueError(f"unknown recipe {name!r}; the nearest of {[*recipes]} is {nearest(name, recipes)!r}")
    return recipes[name]


def _recipes(profile: Profile, seed: int) -> dict[str, Recipe]:
    world = profile.world
    source = EmojiWorld(things=world.things, scenes=world.scenes)
    easy = Recipe("easy_vqa", profile.name, EasyVqa(), profile.model, profile.data, profile.training, seed)
    alignment = AlignmentRecipe(
        "emoji_alignment",
        profile.name,
        source,
        world.model,
        DataConfig(),  # views are drawn, not sampled
        world.alignment,
        seed,
        views=world.views,
        views_per_batch=world.views_per_batch,
    )
    recipes = [easy, replace(easy, name="easy_vqa_text", model=replace(easy.model, modalities=(Modality.TEXT,)))]
    series = _question_recipes(alignment, world, world.model)
    routed_model = replace(
        world.model,
        vision=replace(world.model.vision, early_exit=True),
        audio=replace(world.model.audio, early_exit=True),
        fusion=replace(world.model.fusion, gated=True),
    )
    routed = replace(series[-1], name="emoji_routed", model=routed_model, training=world.routed, start=series[-1])
    amid = Distracted(easy.source, replace(source, scenes={s: -(-n // 10) for s, n in world.scenes.items()}))
    easy_data = profile.data
    amid_data = replace(world.data, questions_per_scene=easy_data.questions_per_scene, max_scenes=easy_data.max_scenes)
    # First in quiet, all of it: under random routes it would never learn to match a question with a picture.
    quiet = replace(
        routed,
        name="easy_vqa_quiet",
        source=amid,
        data=replace(amid_data, only_needed=True),
        training=easy.training,
        start=routed,
    )
    distracted = replace(quiet, name="easy_vqa_routed", data=amid_data, training=world.routed, start=quiet)
    recipes += [alignment, *series, routed, quiet, distracted]
    for lost in Modality:
        kept = tuple(m for m in Modality if m is not lost)
        without = _question_recipes(alignment, world, replace(world.model, modalities=kept), f"_without_{lost}")
        recipes.append(without[-1])
    face = profile.face
    faces = Recipe("", profile.name, TalkingFace(clips=face.clips), face.model, face.data, face.training, seed)
    for stage in Stage:
        fusion = FusionPlan({(Modality.AUDIO, Modality.VIDEO): stage}).config(face.model.fusion)
        recipes.append(replace(faces, name=f"talking_face_{stage}", model=replace(face.model, fusion=fusion)))
    heads = profile.heads
    whole = HeadsRecipe(
        "heads", profile.name, source, heads.model, DataConfig(num_workers=1), heads.training, seed, heads=heads
    )
    recipes += [whole, replace(whole, name="heads_fixed", heads=replace(heads, uncertainty=False))]
    recipes += [replace(whole, name=f"heads_{task}", task=task) for task in heads.examples["train"]]
    return {recipe.name: recipe for recipe in recipes}


def _question_recipes(
    alignment: AlignmentRecipe, world: WorldConfig, model: ModelConfig, suffix: str = ""
) -> list[Recipe]:
    """EmojiWorld's trainings on questions, each starting from the one before: reading, quiet, matching, world."""
    families, loan = alignment.source.families(), (Modality.TEXT, Modality.AUDIO)
    read = tuple(name for name, family in families.items() if Modality.AUDIO not in family.needs)
    matched = tuple(n for n, f in families.items() if {Modality.TEXT, Modality.AUDIO, Modality.VIDEO} <= {*f.needs})
    recipes: list[Recipe] = [alignment]
    for name, data, training in (
        ("emoji_reading", replace(world.quiet_data, families=read), world.reading),
        ("emoji_quiet", world.quiet_data, world.quiet),
        ("emoji_matching", replace(world.quiet_data, families=matched), world.matching),
        ("emoji_world", world.data, world.training),
    ):
        recipes.append(
            Recipe(
                f"{name}{suffix}",
                alignment.profile,
                alignment.source,
                model,
                data,
                training,
                alignment.seed,
                start=recipes[-1],
                loan=loan if name == "emoji_quiet" and {*loan} <= {*model.modalities} else None,
            )
        )
    return recipes[1:]


class Meter(Callback):
    """Measures the training loop, loading included and validation left out: questions and pictures per second."""

    def __init__(self) -> None:
        self.totals = {"questions": 0, "pictures": 0, "seconds": 0.0}
        self._mark = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(self.totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.totals = dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()  # an epoch resumed in the middle has no start of its own

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: OmniBatch | HeadBatch,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        self.totals["seconds"] += now - self._mark
        self.totals["questions"] += len(batch)
        self.totals["pictures"] += len(batch.inputs[Modality.IMAGE].values) if Modality.IMAGE in batch.inputs else 0
        self._mark = now


def resolve_precision(precision: str) -> str:
    """ "auto" is bfloat16 autocast on a GPU, and on a CPU float32, in which resuming is exact."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if torch.cuda.is_available() else "32-true"


def reset_peak_memory() -> None:
    """Peaks count from here on. Without a GPU that takes Linux; elsewhere they count from the start of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """Peak allocated memory of the GPU, else peak resident memory of this process, in MB (1e6 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def make_trainer(
    config: TrainingConfig | RouterConfig, folder: Path, *, callbacks: list[Callback], **overrides: Any
) -> L.Trainer:
    """A Lightning Trainer that logs to `folder` and keeps `folder/last.ckpt`, taken at an update, never between two."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in ("does not have many workers", "exists and is not empty", "treespec", "logging interval"):
        warnings.filterwarnings("ignore", message=f".*{harmless}.*")
    keep_last = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=config.checkpoint_every, enable_version_counter=False
    )
    settings: dict[str, Any] = {
        "max_epochs": config.epochs,
        "accelerator": "gpu" if torch.cuda.is_available() else "cpu",
        "devices": 1,
        "precision": resolve_precision(config.precision),
        "accumulate_grad_batches": config.accumulate,
        "gradient_clip_val": config.clip_norm,
        "logger": [CSVLogger(folder / "logs", name="csv"), TensorBoardLogger(folder / "logs", name="tensorboard")],
        "callbacks": [*callbacks, keep_last],
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 20,
    }
    return L.Trainer(**(settings | overrides))


def train(recipe: Recipe, *, afresh: bool = False) -> Trained:
    """Trains from the recipe, shows progress, saves the model, and returns it as saved (8-bit weights).

    An interrupted training continues from its last checkpoint; afresh=True begins again.
    """
    data = recipe.data_module()
    folder = recipe.work_folder(data)
    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    model = recipe.first_model(data)
    last = folder / "last.ckpt"
    if recipe.training.exit_updates and not last.exists():
        train_exits(model, data.dataset("train"), updates=recipe.training.exit_updates, seed=recipe.seed)
    module: Any = recipe.module(model, data)
    table, meter, encoding = ProgressTable(module.columns), Meter(), EncodeFrozen()
    trainer = make_trainer(recipe.training, folder, callbacks=[encoding, meter, table])
    reset_peak_memory()
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
    facts = {
        "history": table.rows,
        "samples_per_second": meter.totals["questions"] / meter.totals["seconds"],
        "pictures_per_second": meter.totals["pictures"] / meter.totals["seconds"],
        "seconds": meter.totals["seconds"],
        "encoding_seconds": encoding.seconds,
        "peak_memory_mb": peak_memory_mb(),
        "device": device_name(),
        "precision": str(trainer.precision),
        "command": f"omni-lab train {recipe.name} --profile {recipe.profile} --seed {recipe.seed}",
    }
    save_model(folder, model, identity=recipe.identity(data), facts=facts)
    last.unlink(missing_ok=True)
    return _load(recipe, recipe.data_module(), folder, "trained just now")


def load_or_train(recipe: Recipe, *, retrain: bool = False, use_published: bool = True) -> Trained:
    """The model of a recipe: the one trained here before, else the published one, else trained now.

    retrain: ignore both and train afresh; the command line's --retrain ignores what is older than the command itself,
    so that a whole series trains each model once. A checkpoint that does not fit the recipe is reported and not used.
    """
    data = recipe.data_module()
    work = recipe.work_folder(data)
    places = [(work, "trained here earlier")]
    if use_published:
        places.append((recipe.published_folder, "published with the project"))
    work.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{work}.lock"):  # notebooks that run side by side want the same model: one trains, the others wait
        for folder, origin in [] if retrain else places:
            if recent(folder / FACTS):
                try:
                    return _load(recipe, data, folder, origin)
                except CheckpointError as error:
                    log.warning("not using a checkpoint: %s", error)
        last = work / "last.ckpt"
        return train(recipe, afresh=retrain or (last.exists() and not recent(last)))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _load(recipe: Recipe, data: Any, folder: Path, origin: str) -> Trained:
    model = recipe.new_model(data)
    facts = load_model(folder, model, identity=recipe.identity(data))
    return Trained(model.eval(), data, facts, f"{origin} ({facts['device']}, {facts['seconds']:.0f} s)")
