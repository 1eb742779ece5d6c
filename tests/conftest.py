"""Tiny models and sets, so that every test runs in a moment on one core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_lab.config import DataConfig, FusionConfig, ModelConfig, Profile, TextConfig, TrainingConfig, VisionConfig
from omni_lab.data import Question
from omni_lab.learning import Recipe

torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


class ShadesOfGray:
    """A source made in memory: one gray picture per key, and four questions about each."""

    name = "shades"
    image_size = 16
    version = 1

    def fingerprint(self) -> dict[str, int]:
        return {"set_version": self.version}

    def answers(self) -> list[str]:
        return ["bright", "dark", "no", "yes"]

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

    def pictures(self) -> Iterator[tuple[int, np.ndarray]]:
        for key in range(20):
            yield key, np.full((3, 16, 16), 40 if key % 2 else 210, dtype=np.uint8)


TINY_MODEL = ModelConfig(
    dim=16,
    vision=VisionConfig(
        image_size=16,
        overrides={
            "patch_size": 4,
            "embed_dim": 8,
            "depths": (1, 1),
            "num_heads": (1, 2),
            "window_size": 2,
            "weight_init": "jax",
            "drop_path_rate": 0.0,
        },
    ),
    text=TextConfig(dim=16, depth=1, heads=2, max_length=32),
    fusion=FusionConfig(depth=2, heads=2),
)
TINY_DATA = DataConfig(images_per_batch=3, questions_per_image=2)
TINY_TRAINING = TrainingConfig(epochs=2, learning_rate=3e-3, checkpoint_every=1)


@pytest.fixture
def tiny_profile() -> Profile:
    return Profile("tiny", TINY_MODEL, TINY_DATA, TINY_TRAINING, timing_rounds=2, bootstrap=20)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose data and checkpoints live in a folder of the test's own."""
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    return Recipe("shades", "tiny", ShadesOfGray(), TINY_MODEL, TINY_DATA, TINY_TRAINING)
