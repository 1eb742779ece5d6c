"""From a profile to a trained model: what every notebook and the command line train by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from omni_lab.batch import Modality
from omni_lab.build import add_task_heads, build_model
from omni_lab.config.schema import DataConfig, EmojiWorldConfig, ModelConfig, MultitaskConfig, Profile, TrainingConfig
from omni_lab.data.datamodule import OmniDataModule
from omni_lab.data.sources.base import VQASource
from omni_lab.data.sources.easy_vqa import EasyVQA
from omni_lab.fusion.plan import FusionPlan, FusionStage
from omni_lab.lightning_modules.contrastive import ContrastiveModel, LitContrastive
from omni_lab.lightning_modules.multitask import LitMultitask
from omni_lab.lightning_modules.vqa import LitVQA
from omni_lab.model import OmniModel
from omni_lab.training.checkpoint import digest
from omni_lab.utils.env import project_root
from omni_lab.utils.lookup import closest_match
from omni_lab.worlds.datamodules import ContrastiveDataModule, MultitaskDataModule
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.sentence_sampler import TTS_VOICES
from omni_lab.worlds.talking_face import TalkingFace
from omni_lab.worlds.tasks import RULES_VERSION
from omni_lab.worlds.things import thing_vocabulary
from omni_lab.worlds.wrappers import WithDistractors


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a model trained on questions. `name` and `seed` name its folder.

    start: the recipe of the model whose weights this training begins with, as far as the two have them in common.
    loan: (from, to), two modalities; what fusion and heads then do for the second begins as what they do for the first.
    """

    name: str
    profile: str
    source: VQASource
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    seed: int = 0
    init_from: Recipe | None = None
    modality_copy: tuple[Modality, Modality] | None = None

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
        start = {"start": self.init_from.identity(data)} if self.init_from is not None else {}
        loan = {"loan": self.modality_copy} if self.modality_copy is not None else {}
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

    def build_model(self, data: OmniDataModule) -> OmniModel:
        """The untrained model, its initial weights drawn from the seed (the global random state is left alone)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_model(
                self.model, vocab_size=data.store.tokenizer.get_vocab_size(), answers=len(data.store.answers)
            )

    def lightning_module(self, model: OmniModel, data: OmniDataModule) -> L.LightningModule:
        return LitVQA(
            model, self.training, answers=len(data.store.answers), families=data.store.families, seed=self.seed
        )


@dataclass(frozen=True)
class ContrastiveRecipe(Recipe):
    """Everything that determines contrastively pre-trained encoders. views: drawn afresh for each epoch. pairs,
    sentences, voices: see `ThingViews`. sketch: weight of the sketches beside the contrast."""

    views: int = 6400
    views_per_batch: int = 64
    pairs: float = 0.7
    sentences: float = 0.5
    voices: float = 0.4
    reconstruction_weight: float = 3.0

    def data_module(self) -> OmniDataModule:
        root = project_root() / "data" / "stores"
        return ContrastiveDataModule(
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
        own = ("views", "views_per_batch", "pairs", "sentences", "voices", "reconstruction_weight")
        return super().identity(data) | {name: getattr(self, name) for name in own}

    def build_model(self, data: OmniDataModule) -> ContrastiveModel:  # type: ignore[override]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return ContrastiveModel(self.model, vocab_size=data.store.tokenizer.get_vocab_size())

    def lightning_module(self, model: ContrastiveModel, data: OmniDataModule) -> L.LightningModule:  # type: ignore[override]
        return LitContrastive(model, self.training, reconstruction_weight=self.reconstruction_weight, seed=self.seed)


@dataclass(frozen=True)
class MultitaskRecipe(Recipe):
    """Everything that determines a model of many heads. task: the only one that it is trained on."""

    multitask: MultitaskConfig | None = None
    task: str | None = None

    @property
    def config(self) -> MultitaskConfig:
        assert self.multitask is not None
        return self.multitask

    def data_module(self) -> MultitaskDataModule:  # type: ignore[override]
        tasks = None if self.task is None else [self.task]
        root = project_root() / "data" / "stores"
        return MultitaskDataModule(self.config, root=root, seed=self.seed, tasks=tasks, workers=self.data.num_workers)

    def identity(self, data: MultitaskDataModule) -> dict[str, Any]:  # type: ignore[override]
        training = {k: v for k, v in vars(self.training).items() if k != "checkpoint_every"}
        heads = {k: v for k, v in vars(self.config).items() if k not in ("model", "training")}
        heads["examples"] = self.config.examples["train"]  # tested on, or validated, is any number
        vocabulary = hashlib.sha256(data.tokenizer.tokenizer.to_str().encode()).hexdigest()
        facts = {"model": self.model, "heads": heads, "vocabulary": vocabulary, "world": data.world.fingerprint()}
        return {**facts, "training": training, "seed": self.seed, "task": self.task, "rules": RULES_VERSION}

    def build_model(self, data: MultitaskDataModule) -> OmniModel:  # type: ignore[override]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            words, answers = data.tokenizer.tokenizer.get_vocab_size(), len(data.world.answers())
            model = build_model(self.model, vocab_size=words, answers=answers)
            classes = [thing.names["en"] for thing in thing_vocabulary(data.world.things)]
            return add_task_heads(model, self.config, codec=data.tokenizer, classes=classes, voices=len(TTS_VOICES))

    def lightning_module(self, model: OmniModel, data: MultitaskDataModule) -> L.LightningModule:  # type: ignore[override]
        uncertainty = self.config.uncertainty_weighting and self.task is None
        return LitMultitask(model, self.training, tasks=data.names, uncertainty=uncertainty, seed=self.seed)


@dataclass(frozen=True)
class TrainedModel:
    """facts: history (a row an epoch), samples_per_second, peak_memory_mb, seconds, device, precision, command.
    origin: where the weights came from, in words for the reader.
    """

    model: Any
    data: Any
    metadata: dict[str, Any]
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
        raise ValueError(f"unknown recipe {name!r}; the nearest of {[*recipes]} is {closest_match(name, recipes)!r}")
    return recipes[name]


def _recipes(profile: Profile, seed: int) -> dict[str, Recipe]:
    world = profile.emoji_world
    source = EmojiWorld(things=world.things, scenes=world.scenes)
    easy = Recipe("easy_vqa", profile.name, EasyVQA(), profile.model, profile.data, profile.training, seed)
    alignment = ContrastiveRecipe(
        "emoji_alignment",
        profile.name,
        source,
        world.model,
        DataConfig(),  # views are drawn, not sampled
        world.contrastive,
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
    routed = replace(series[-1], name="emoji_routed", model=routed_model, training=world.routed, init_from=series[-1])
    amid = WithDistractors(easy.source, replace(source, scenes={s: -(-n // 10) for s, n in world.scenes.items()}))
    easy_data = profile.data
    amid_data = replace(world.data, questions_per_scene=easy_data.questions_per_scene, max_scenes=easy_data.max_scenes)
    # First in quiet, all of it: under random routes it would never learn to match a question with a picture.
    quiet = replace(
        routed,
        name="easy_vqa_quiet",
        source=amid,
        data=replace(amid_data, required_modalities_only=True),
        training=easy.training,
        init_from=routed,
    )
    distracted = replace(quiet, name="easy_vqa_routed", data=amid_data, training=world.routed, init_from=quiet)
    recipes += [alignment, *series, routed, quiet, distracted]
    for lost in Modality:
        kept = tuple(m for m in Modality if m is not lost)
        without = _question_recipes(alignment, world, replace(world.model, modalities=kept), f"_without_{lost}")
        recipes.append(without[-1])
    face = profile.talking_face
    faces = Recipe("", profile.name, TalkingFace(clips=face.clips), face.model, face.data, face.training, seed)
    for stage in FusionStage:
        fusion = FusionPlan({(Modality.AUDIO, Modality.VIDEO): stage}).config(face.model.fusion)
        recipes.append(replace(faces, name=f"talking_face_{stage}", model=replace(face.model, fusion=fusion)))
    heads = profile.multitask
    whole = MultitaskRecipe(
        "heads", profile.name, source, heads.model, DataConfig(num_workers=1), heads.training, seed, multitask=heads
    )
    recipes += [whole, replace(whole, name="heads_fixed", multitask=replace(heads, uncertainty_weighting=False))]
    recipes += [replace(whole, name=f"heads_{task}", task=task) for task in heads.examples["train"]]
    return {recipe.name: recipe for recipe in recipes}


def _question_recipes(
    alignment: ContrastiveRecipe, world: EmojiWorldConfig, model: ModelConfig, suffix: str = ""
) -> list[Recipe]:
    """EmojiWorld's trainings on questions, each starting from the one before: reading, quiet, matching, world."""
    families, loan = alignment.source.families(), (Modality.TEXT, Modality.AUDIO)
    read = tuple(name for name, family in families.items() if Modality.AUDIO not in family.required_modalities)
    matched = tuple(
        n for n, f in families.items() if {Modality.TEXT, Modality.AUDIO, Modality.VIDEO} <= {*f.required_modalities}
    )
    recipes: list[Recipe] = [alignment]
    for name, data, training in (
        ("emoji_reading", replace(world.isolated_data, families=read), world.no_audio),
        ("emoji_quiet", world.isolated_data, world.isolated),
        ("emoji_matching", replace(world.isolated_data, families=matched), world.av_matching),
        ("emoji_world", world.data, world.with_distractors),
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
                init_from=recipes[-1],
                modality_copy=loan if name == "emoji_quiet" and {*loan} <= {*model.modalities} else None,
            )
        )
    return recipes[1:]
