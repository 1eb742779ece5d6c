"""Configuration: frozen dataclasses, and the three profiles that the notebooks run under."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_lab.modalities import Modality


@dataclass(frozen=True)
class VisionConfig:
    """A Swin transformer of timm. `overrides` go to `timm.create_model`: any size by configuration."""

    name: str = "swin_tiny_patch4_window7_224"
    image_size: int = 64
    pretrained: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


# A Swin small enough for two CPU cores: 64 px -> 16 x 16 patches -> 8 x 8 cells. The "jax" initialisation (Xavier)
# and no stochastic depth matter at this width: with timm's defaults, shapes take several times as long to be learned.
SMALL_SWIN: dict[str, Any] = {
    "embed_dim": 32,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 8,
    "weight_init": "jax",
    "drop_path_rate": 0.0,
}


@dataclass(frozen=True)
class TextConfig:
    dim: int = 128
    depth: int = 2
    heads: int = 4
    max_length: int = 64
    dropout: float = 0.0


@dataclass(frozen=True)
class FusionConfig:
    """paths: the directed (query, key) pairs that exist in each layer; None means all of them."""

    paths: tuple[tuple[Modality, Modality], ...] | None = None
    depth: int = 1
    heads: int = 4
    mlp_ratio: float = 2.0
    dropout: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """dim: the one width that all encoders return and fusion works in."""

    modalities: tuple[Modality, ...] = (Modality.TEXT, Modality.IMAGE)
    dim: int = 256
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()


@dataclass(frozen=True)
class DataConfig:
    """questions_per_image: drawn anew each epoch. balance_families: draw a question with a chance of one over the size
    of its family; as a picture has only some ten questions, that evens the families out but partly. max_images: use
    only the first that many pictures of each split.
    """

    images_per_batch: int = 32
    questions_per_image: int = 6
    balance_families: bool = True
    max_images: int | None = None
    num_workers: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """AdamW with linear warm-up and cosine decay. One epoch sees every training picture once.

    accumulate: micro-batches per update; an epoch's last update may have fewer, each of which still counts one k-th.
    precision: of Lightning, or "auto": `32-true` on CPU, `bf16-mixed` on GPU. augment: mirror pictures left to right;
    turn it off where questions speak of left and right. checkpoint_every: updates between the checkpoints that an
    interrupted training resumes from.
    """

    epochs: int = 12
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    accumulate: int = 1
    clip_norm: float = 1.0
    precision: str = "auto"
    augment: bool = True
    checkpoint_every: int = 100


@dataclass(frozen=True)
class Profile:
    """How much to compute: `smoke` proves the plumbing, `quick` suits two CPU cores, `full` one GPU.

    timing_rounds: repetitions of each measured time. bootstrap: resamples behind each interval.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    timing_rounds: int
    bootstrap: int


def nearest(name: str, known: Iterable[str]) -> str:
    """Which of the known names looks most like this one, for an error message."""
    return (difflib.get_close_matches(name, known, n=1, cutoff=0.0) or ["(there is none)"])[0]


def with_changes(config: Any, **changes: Any) -> Any:
    """A copy of a frozen configuration with some fields replaced; a field that does not exist is named."""
    known = [f.name for f in dataclasses.fields(config)]
    for name in changes:
        if name not in known:
            raise ValueError(f"{type(config).__name__} has no field {name!r}; the nearest is {nearest(name, known)!r}")
    return dataclasses.replace(config, **changes)


def get_profile(name: str) -> Profile:
    """The profile of that name. Raises ValueError naming the nearest known one."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; the nearest of {[*PROFILES]} is {nearest(name, PROFILES)!r}")
    return PROFILES[name]


RETRAIN_SINCE = "OMNI_LAB_RETRAIN_SINCE"  # checkpoints made before this moment (seconds since 1970) do not count


def project_root() -> Path:
    """The folder that holds data/ and reports/: OMNI_LAB_ROOT, else the checkout this file lies in, else here."""
    if "OMNI_LAB_ROOT" in os.environ:
        return Path(os.environ["OMNI_LAB_ROOT"])
    checkout = Path(__file__).parents[1]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            model=ModelConfig(
                dim=256,
                vision=VisionConfig(
                    overrides=SMALL_SWIN | {"patch_size": 8, "embed_dim": 16, "depths": (1, 1), "window_size": 4}
                ),
                text=TextConfig(dim=32, depth=1, heads=2),
                fusion=FusionConfig(depth=1, heads=4, mlp_ratio=1.0),
            ),
            data=DataConfig(images_per_batch=8, questions_per_image=2, max_images=32),
            training=TrainingConfig(epochs=2, checkpoint_every=2),
            timing_rounds=2,
            bootstrap=50,
        ),
        Profile(
            name="quick",
            model=ModelConfig(
                vision=VisionConfig(overrides=SMALL_SWIN),
                fusion=FusionConfig(paths=((Modality.TEXT, Modality.IMAGE),)),
            ),
            data=DataConfig(images_per_batch=32, questions_per_image=6),
            training=TrainingConfig(epochs=14),
            timing_rounds=9,
            bootstrap=2000,
        ),
        Profile(
            name="full",
            model=ModelConfig(
                vision=VisionConfig(overrides=SMALL_SWIN | {"embed_dim": 96, "num_heads": (3, 6)}),
                text=TextConfig(dim=256, depth=4),
                fusion=FusionConfig(depth=2, dropout=0.1),
            ),
            data=DataConfig(images_per_batch=128, questions_per_image=8, num_workers=8),
            training=TrainingConfig(epochs=60, learning_rate=1e-3),
            timing_rounds=30,
            bootstrap=10_000,
        ),
    )
}
