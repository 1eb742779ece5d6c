"""Tiny models and sets, so that every test runs in a moment on one core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.config.models import AudioConfig, FusionConfig, ModelConfig, TextConfig, VideoConfig, VisionConfig
from omni_lab.config.profiles import get_profile
from omni_lab.config.schema import DataConfig, EmojiWorldConfig, Profile, TalkingFaceConfig, TrainingConfig
from omni_lab.data.sources.base import MediaItem, Question, QuestionFamily
from omni_lab.training.checkpoint import from_blocks, to_blocks
from omni_lab.training.recipes import Recipe, get_recipe
from omni_lab.utils.env import keep_freed_memory

torch.set_num_threads(1)
keep_freed_memory()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


class ShadesOfGray:
    """A source made in memory: one gray picture per key, and four questions about each."""

    name = "shades"
    shapes: Mapping[Modality, tuple[int, ...]] = MappingProxyType({Modality.IMAGE: (3, 16, 16)})
    version = 1

    def fingerprint(self) -> dict[str, int]:
        return {"set_version": self.version}

    def answers(self) -> list[str]:
        return ["bright", "dark", "no", "yes"]

    def families(self) -> dict[str, QuestionFamily]:
        both = (Modality.TEXT, Modality.IMAGE)
        return {"shade": QuestionFamily(both, (both,), 0.5)}

    def corpus(self) -> list[str]:
        return ["a bright picture", "a dark picture"]

    def questions(self) -> dict[str, list[Question]]:
        splits: dict[str, list[Question]] = {}
        for split, keys in (("train", range(12)), ("validation", range(12, 16)), ("test", range(16, 20))):
            made = []
            for key in keys:
                shade = "dark" if key % 2 else "bright"
                opposite = {"dark": "no", "bright": "yes"}[shade]
                pairs = [
                    ("how is it?", "shade", shade),
                    ("how does the picture look?", "shade", shade),
                    ("is it dark?", "yes/no", "yes" if shade == "dark" else "no"),
                    ("is the picture not dark?", "yes/no", opposite),
                ]
                made += [Question(f"{key}-{i}", t, f, key, {a: 1.0}) for i, (t, f, a) in enumerate(pairs)]
            splits[split] = made
        return splits

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        for key in keys:
            shade = 40 if key % 2 else 210
            yield MediaItem(key, np.full((3, 16, 16), shade, dtype=np.uint8), {"shade": shade})


TINY_SWIN = {
    "patch_size": 4,
    "embed_dim": 8,
    "depths": (1, 1),
    "num_heads": (1, 2),
    "window_size": 2,
    "weight_init": "jax",
    "drop_path_rate": 0.0,
}
TINY_MODEL = ModelConfig(
    dim=16,
    vision=VisionConfig(image_size=16, overrides=TINY_SWIN),
    text=TextConfig(dim=16, depth=1, num_heads=2, max_length=32),
    fusion=FusionConfig(depth=2, num_heads=2),
)
TINY_DATA = DataConfig(max_batch_cost=3, questions_per_scene=2)
TINY_TRAINING = TrainingConfig(epochs=2, learning_rate=3e-3, checkpoint_every=1)

QUICK_WORLD = get_profile("quick").emoji_world
TINY_WORLD = EmojiWorldConfig(
    things=8,
    scenes={"train": 12, "validation": 4, "test": 4},
    model=ModelConfig(
        modalities=tuple(Modality),
        dim=16,
        vision=VisionConfig(image_size=64, overrides=TINY_SWIN | {"patch_size": 8, "strict_img_size": False}),
        text=TextConfig(dim=16, depth=1, num_heads=2),
        audio=AudioConfig(dim=16, depth=1, num_heads=2),
        video=VideoConfig(dim=16, num_heads=2),
        fusion=FusionConfig(paths=QUICK_WORLD.model.fusion.paths, num_heads=2, mlp_ratio=1.0),
        latent_bits=8,
    ),
    data=DataConfig(max_batch_cost=3, modality_costs=QUICK_WORLD.data.modality_costs, questions_per_scene=2),
    contrastive=TrainingConfig(epochs=2, learning_rate=3e-3, horizontal_flip=False, checkpoint_every=1),
    no_audio=replace(QUICK_WORLD.isolated, epochs=1, checkpoint_every=1),
    isolated=replace(QUICK_WORLD.isolated, epochs=1, checkpoint_every=1),
    av_matching=replace(QUICK_WORLD.isolated, epochs=1, checkpoint_every=1),
    with_distractors=replace(QUICK_WORLD.with_distractors, epochs=1, modality_dropout=0.25, checkpoint_every=1),
    views=16,
    views_per_batch=8,
)


TINY_FACE = TalkingFaceConfig(
    clips={"train": 12, "validation": 4, "test": 4},
    model=replace(TINY_WORLD.model, modalities=(Modality.AUDIO, Modality.VIDEO), latent_bits=None),
    training=TrainingConfig(epochs=1, horizontal_flip=False, checkpoint_every=1),
)
TINY_PROFILE = Profile(
    "tiny",
    TINY_MODEL,
    TINY_DATA,
    TINY_TRAINING,
    TINY_WORLD,
    TINY_FACE,
    get_profile("smoke").digits,
    get_profile("smoke").adverse,
    get_profile("smoke").multitask,
    timing_rounds=2,
    bootstrap_resamples=20,
)


def as_saved(weights: torch.Tensor) -> torch.Tensor:
    """What saving and loading leaves of them."""
    return from_blocks(*to_blocks(weights)) if weights.ndim > 1 else weights.half().float()


@pytest.fixture
def tiny_profile() -> Profile:
    return TINY_PROFILE


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose data and checkpoints live in a folder of the test's own."""
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    return Recipe("shades", "tiny", ShadesOfGray(), TINY_MODEL, TINY_DATA, TINY_TRAINING)


@pytest.fixture
def world_recipe(tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe of a small EmojiWorld, all four modalities, without its contrastive pre-training."""
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    return replace(get_recipe("emoji_world", tiny_profile), init_from=None)
