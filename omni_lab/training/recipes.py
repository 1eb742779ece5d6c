"""Recipes: everything that determines a trained model, by name. Declarations only; `training.fit` trains them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from torch import nn

from omni_lab.batch import Modality
from omni_lab.build import add_task_heads, build_model, component_versions
from omni_lab.config.models import ModelConfig
from omni_lab.config.profiles import get_profile
from omni_lab.config.schema import DataConfig, EmojiWorldConfig, MultitaskConfig, Profile, TrainingConfig
from omni_lab.data.datamodule import OmniDataModule
from omni_lab.data.sources.base import VQASource
from omni_lab.data.sources.easy_vqa import EasyVQA
from omni_lab.data.store import source_fingerprint
from omni_lab.fusion.plan import FusionPlan, FusionStage
from omni_lab.lightning_modules.contrastive import ContrastiveModel, LitContrastive
from omni_lab.lightning_modules.multitask import LitMultitask
from omni_lab.lightning_modules.vqa import LitVQA
from omni_lab.model import OmniModel
from omni_lab.training.checkpoint import BaseRecipe
from omni_lab.utils.env import project_root
from omni_lab.utils.lookup import lookup
from omni_lab.worlds.adverse import AdverseWorld
from omni_lab.worlds.datamodules import ContrastiveDataModule, MultitaskDataModule
from omni_lab.worlds.digits import Digits
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.sentence_sampler import TTS_VOICES
from omni_lab.worlds.talking_face import TalkingFace
from omni_lab.worlds.tasks import RULES_VERSION
from omni_lab.worlds.things import thing_vocabulary
from omni_lab.worlds.wrappers import WithDistractors


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """Everything that determines a model trained on questions."""

    name: str
    profile: str  # the name of the profile that it is trained under
    source: VQASource
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    seed: int = 0
    init_from: Recipe | None = None  # start from its weights, as far as names and shapes agree
    modality_copy: tuple[Modality, Modality] | None = None  # first copy fusion and head weights: (from, to)
    eval_scenes: Mapping[str, int] = field(default_factory=dict)  # see `Profile`; training uses the whole splits
    may_train: bool = True  # else `load_or_train` only loads

    @property
    def folder(self) -> Path:
        return Path(self.profile) / f"{self.name}-seed{self.seed}"

    @property
    def command(self) -> str:
        """What trains it."""
        return f"omni-lab train {self.name} --profile {self.profile} --seed {self.seed}"

    def data_module(self) -> Any:
        return self._data_module(OmniDataModule)

    def _data_module(self, kind: Any, **options: Any) -> Any:
        options |= {"modalities": self.model.modalities, "eval_scenes": self.eval_scenes, "seed": self.seed}
        return kind(self.source, self.data, root=project_root() / "data" / "stores", **options)

    def identity(self, data: Any) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded."""
        start = {"start": self.init_from.identity(data)} if self.init_from is not None else {}
        loan = {"loan": self.modality_copy} if self.modality_copy is not None else {}
        own = {"components": versions} if (versions := component_versions(self.model)) else {}
        return {
            "source": source_fingerprint(data.source),
            "answers": list(data.source.answers()),
            **self._vocabulary(data),
            "model": self.model,
            "data": self.data,
            "training": self.training,
            "seed": self.seed,
            **start,
            **loan,
            **own,
        }

    def _vocabulary(self, data: Any) -> dict[str, str]:
        """A model that does not read has none, and its store, which holds the tokenizer, need not be there."""
        reads = Modality.TEXT in self.model.modalities
        return {"vocabulary": hashlib.sha256(data.store.tokenizer.to_str().encode()).hexdigest()} if reads else {}

    def _build(self, data: Any) -> nn.Module:
        reads, answers = Modality.TEXT in self.model.modalities, len(data.source.answers())
        words = data.store.tokenizer.get_vocab_size() if reads else 0
        return build_model(self.model, vocab_size=words, answers=answers)

    def lightning_module(self, model: Any, data: Any) -> L.LightningModule:
        answers, families = len(data.store.answers), data.store.families
        return LitVQA(model, self.training, answers=answers, families=families, seed=self.seed)


@dataclass(frozen=True)
class ContrastiveRecipe(Recipe):
    """Everything that determines contrastively pre-trained encoders."""

    views: int = 6400  # per epoch, sampled anew
    views_per_batch: int = 64
    pairs: float = 0.7  # probability of a second thing, as the two below: see `ContrastiveViews`
    sentences: float = 0.5  # of a question in place of names
    voices: float = 0.4  # of a text that says who speaks
    reconstruction_weight: float = 3.0  # of the reconstruction loss; the contrastive loss has weight 1

    def data_module(self) -> ContrastiveDataModule:
        mix = {name: getattr(self, name) for name in ("pairs", "sentences", "voices")}
        views, size = self.views, self.views_per_batch
        return self._data_module(ContrastiveDataModule, views=views, views_per_batch=size, mix=mix)

    def identity(self, data: Any) -> dict[str, Any]:
        own = ("views", "views_per_batch", "pairs", "sentences", "voices", "reconstruction_weight")
        return super().identity(data) | {name: getattr(self, name) for name in own}

    def _build(self, data: Any) -> nn.Module:
        return ContrastiveModel(self.model, vocab_size=data.store.tokenizer.get_vocab_size())

    def lightning_module(self, model: Any, data: Any) -> L.LightningModule:
        return LitContrastive(model, self.training, reconstruction_weight=self.reconstruction_weight, seed=self.seed)


@dataclass(frozen=True)
class MultitaskRecipe(Recipe):
    """Everything that determines a model with all task heads."""

    multitask: MultitaskConfig = field(kw_only=True)
    task: str | None = None  # train on this task alone

    def data_module(self) -> MultitaskDataModule:
        root, tasks = project_root() / "data" / "stores", None if self.task is None else [self.task]
        workers = self.data.num_workers
        return MultitaskDataModule(self.multitask, root=root, seed=self.seed, tasks=tasks, workers=workers)

    def identity(self, data: Any) -> dict[str, Any]:
        examples = {"train": self.multitask.examples["train"]}  # of other splits, any number will do
        return {
            "model": self.model,
            "heads": replace(self.multitask, examples=examples),
            "vocabulary": hashlib.sha256(data.tokenizer.tokenizer.to_str().encode()).hexdigest(),
            "world": data.world.fingerprint(),
            "training": self.training,
            "seed": self.seed,
            "task": self.task,
            "rules": RULES_VERSION,
        }

    def _build(self, data: Any) -> nn.Module:
        words, answers = data.tokenizer.tokenizer.get_vocab_size(), len(data.world.answers())
        model = build_model(self.model, vocab_size=words, answers=answers)
        classes = [thing.names["en"] for thing in thing_vocabulary(data.world.things)]
        return add_task_heads(model, self.multitask, tokenizer=data.tokenizer, classes=classes, voices=len(TTS_VOICES))

    def lightning_module(self, model: OmniModel, data: Any) -> L.LightningModule:
        uncertainty = self.multitask.uncertainty_weighting and self.task is None
        return LitMultitask(model, self.training, tasks=data.names, uncertainty=uncertainty, seed=self.seed)


class TrainedModel(NamedTuple):
    """What `load_or_train` returns."""

    model: Any  # in eval mode, with the weights as saved
    data: Any  # the recipe's LightningDataModule
    metadata: dict[str, Any]  # history (a row per epoch), seconds, samples_per_second, peak_memory_mb, device, command
    origin: str  # where the weights come from, for the reader


def get_recipe(name: str, profile: Profile, *, seed: int = 0) -> Recipe:
    """The recipe of that name. Raises ValueError for another name, with the nearest one.

    easy_vqa: easy-VQA. easy_vqa_text: its questions without images, a baseline.
    emoji_alignment: contrastive pre-training of the encoders on EmojiWorld. Each of the following starts from the one
    before: emoji_reading (isolated questions that need no audio), emoji_quiet (all isolated questions), emoji_matching
    (isolated questions that match audio with video), emoji_world (all questions, with distractors), emoji_routed (the
    same, under random routes).
    emoji_world_without_<modality>: the same stages up to emoji_world, without one modality; baselines.
    front_end_mel, front_end_wav2vec2: a short contrastive training of text and audio alone, to compare front ends.
    easy_vqa_quiet: easy-VQA from emoji_routed. easy_vqa_routed: from there, under random routes, with audio and video
    as distractors.
    talking_face_early, talking_face_mid, talking_face_late: TalkingFace, by the stage at which audio and video fuse.
    digits, adverse: Digits and AdverseWorld, under random routes over all levels of their encoders.
    digits_distilled, adverse_distilled: from there, the tiny encoders alone, towards the dense answers.
    digits_layer_drop: Digits with a Swin transformer and a deeper audio transformer, trained with LayerDrop.
    heads: the multitask model. heads_fixed: without uncertainty weighting. heads_<task>: one task alone, with as many
    batches as the task has among all.
    """
    return lookup(name, _recipes(profile, seed), "recipe")


def list_recipes() -> list[str]:
    """The names of all recipes."""
    return [*_recipes(get_profile("smoke"), 0)]


def _recipes(profile: Profile, seed: int) -> dict[str, Recipe]:
    world, face, multitask = profile.emoji_world, profile.talking_face, profile.multitask
    source, data, name = EmojiWorld(things=world.things, scenes=world.scenes), DataConfig(), profile.trained_as
    easy = Recipe("easy_vqa", name, EasyVQA(), profile.model, profile.data, profile.training, seed)
    recipes = [easy, replace(easy, name="easy_vqa_text", model=replace(easy.model, modalities=(Modality.TEXT,)))]
    views: dict[str, Any] = {"views": world.views, "views_per_batch": world.views_per_batch}
    contrastive = ContrastiveRecipe(
        "emoji_alignment", name, source, world.model, data, world.contrastive, seed, **views
    )
    for front_end in ("mel", "wav2vec2"):  # spoken and written names alone
        audio = replace(world.model.audio, front_end=front_end)
        model = replace(world.model, modalities=(Modality.TEXT, Modality.AUDIO), audio=audio)
        names = replace(contrastive, name=f"front_end_{front_end}", model=model, sentences=0.0, voices=0.0)
        recipes.append(replace(names, views=world.front_end_views, training=replace(world.contrastive, epochs=1)))
    stages = _question_stages(contrastive, world, world.model)
    vision, audio = replace(world.model.vision, early_exit=True), replace(world.model.audio, early_exit=True)
    routed_model = replace(world.model, vision=vision, audio=audio, fusion=replace(world.model.fusion, gated=True))
    routed = replace(stages[-1], name="emoji_routed", model=routed_model, training=world.routed, init_from=stages[-1])
    few_scenes = {split: -(-count // 10) for split, count in world.scenes.items()}
    distractors = WithDistractors(easy.source, replace(source, scenes=few_scenes))
    per_scene, max_scenes = easy.data.questions_per_scene, easy.data.max_scenes
    easy_data = replace(world.data, questions_per_scene=per_scene, max_scenes=max_scenes)
    # First isolated questions alone: under random routes it would never learn to match a question with an image.
    isolated_data = replace(easy_data, required_modalities_only=True)
    isolated = replace(
        routed, name="easy_vqa_quiet", source=distractors, data=isolated_data, training=easy.training, init_from=routed
    )
    distracted = replace(isolated, name="easy_vqa_routed", data=easy_data, training=world.routed, init_from=isolated)
    recipes += [contrastive, *stages, routed, isolated, distracted]
    for left_out in Modality:
        model = replace(world.model, modalities=tuple(m for m in Modality if m is not left_out))
        recipes.append(_question_stages(contrastive, world, model, f"_without_{left_out}")[-1])
    faces = Recipe("", name, TalkingFace(clips=face.clips), face.model, face.data, face.training, seed)
    for stage in FusionStage:
        fusion = FusionPlan({(Modality.AUDIO, Modality.VIDEO): stage}).config(face.model.fusion)
        recipes.append(replace(faces, name=f"talking_face_{stage}", model=replace(face.model, fusion=fusion)))
    for title, config, content in (
        ("digits", profile.digits, Digits(profile.digits.examples)),
        ("adverse", profile.adverse, AdverseWorld(world.things, profile.adverse.examples)),
    ):
        base = Recipe(title, name, content, config.model, config.data, config.training, seed)
        recipes += [base, replace(base, name=f"{title}_distilled", training=config.distillation, init_from=base)]
    digits = next(recipe for recipe in recipes if recipe.name == "digits")
    audio = replace(digits.model.audio, depth=4, tiny_channels=())
    deep = replace(digits.model, vision=world.model.vision, audio=audio, layer_drop=0.2)
    recipes.append(replace(digits, name="digits_layer_drop", model=deep))
    data = DataConfig(num_workers=1)
    heads = MultitaskRecipe("heads", name, source, multitask.model, data, multitask.training, seed, multitask=multitask)
    recipes += [heads, replace(heads, name="heads_fixed", multitask=replace(multitask, uncertainty_weighting=False))]
    recipes += [replace(heads, name=f"heads_{task}", task=task) for task in multitask.examples["train"]]
    options: dict[str, Any] = {"eval_scenes": profile.eval_scenes, "may_train": not profile.models}
    return {recipe.name: replace(recipe, **options) for recipe in recipes}


def _question_stages(
    contrastive: ContrastiveRecipe, world: EmojiWorldConfig, model: ModelConfig, suffix: str = ""
) -> list[Recipe]:
    """The four trainings on EmojiWorld's questions, each starting from the one before."""
    families = contrastive.source.families()
    text, audio, video = Modality.TEXT, Modality.AUDIO, Modality.VIDEO
    no_audio = tuple(name for name, family in families.items() if audio not in family.required_modalities)
    matching = tuple(name for name, f in families.items() if {text, audio, video} <= {*f.required_modalities})
    stages: list[Recipe] = [contrastive]
    for name, data, training in (
        ("emoji_reading", replace(world.isolated_data, families=no_audio), world.no_audio),
        ("emoji_quiet", world.isolated_data, world.isolated),
        ("emoji_matching", replace(world.isolated_data, families=matching), world.av_matching),
        ("emoji_world", world.data, world.with_distractors),
    ):
        stage = Recipe(
            f"{name}{suffix}", contrastive.profile, contrastive.source, model, data, training, contrastive.seed
        )
        copies = name == "emoji_quiet" and {text, audio} <= {*model.modalities}
        stages.append(replace(stage, init_from=stages[-1], modality_copy=(text, audio) if copies else None))
    return stages[1:]
