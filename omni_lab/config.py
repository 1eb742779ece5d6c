"""Configuration: frozen dataclasses, and the three profiles that the notebooks run under."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omni_lab.modalities import Modality


@dataclass(frozen=True)
class VisionConfig:
    """A Swin transformer of timm. early_exit: can also stop after its first stage. `overrides` go to
    `timm.create_model`: any size by configuration."""

    name: str = "swin_tiny_patch4_window7_224"
    image_size: int = 64
    pretrained: bool = False
    early_exit: bool = False
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
class AudioConfig:
    """front_end: "mel" (log-mel spectrogram and a small convolution), "wav2vec2" (wav2vec 2.0 with the convolutions
    below), or the name of a bundle of torchaudio.pipelines, such as "WAV2VEC2_BASE" (downloads its weights).

    input_rate: of the waveforms handed in, in Hz; inside it is 16,000. convolutions: (channels, kernel, stride) each.
    seconds_per_token: what is pooled into one token. early_exit: can also stop before its transformer. context: of the
    mel front end, more convolutions over five of its frames each, from which it learns sooner what sounds stand side by
    side.
    """

    front_end: str = "mel"
    dim: int = 128
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0
    input_rate: int = 16_000
    convolutions: tuple[tuple[int, int, int], ...] = ((48, 40, 20), (96, 8, 4), (128, 4, 4))
    seconds_per_token: float = 0.12
    early_exit: bool = False
    context: int = 0


@dataclass(frozen=True)
class VideoConfig:
    """frame_size: in pixels. seconds: how long a clip lasts, whatever its number of frames. depth: temporal attention
    layers. grid: each frame ends as grid x grid tokens.
    """

    frame_size: int = 32
    seconds: float = 2.0
    dim: int = 128
    depth: int = 1
    heads: int = 4
    grid: int = 2


@dataclass(frozen=True)
class FusionConfig:
    """early: clips and sounds are joined by time in the lower layers of their encoders. paths: the directed
    (query, key) pairs that exist in each layer; None means all of them. gated: multiply each path, and in the head each
    modality's summary, by a soft gate of its own."""

    early: bool = False
    paths: tuple[tuple[Modality, Modality], ...] | None = None
    depth: int = 1
    heads: int = 4
    mlp_ratio: float = 2.0
    dropout: float = 0.0
    gated: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """dim: the one width that all encoders return and fusion works in. latent_bits: train on tokens as storing them in
    so many bits per value leaves them. pool: how the answer head sums a stream up, by the "mean" over its tokens or the
    "max" of each channel, with which small models learn sooner.
    """

    modalities: tuple[Modality, ...] = (Modality.TEXT, Modality.IMAGE)
    dim: int = 256
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    audio: AudioConfig = AudioConfig()
    video: VideoConfig = VideoConfig()
    fusion: FusionConfig = FusionConfig()
    latent_bits: int | None = None
    pool: str = "max"


@dataclass(frozen=True)
class DataConfig:
    """budget: what a batch may cost; a sample costs the sum of `costs` over the modalities it carries (the questions
    about one scene count once, as they share its media). questions_per_scene: drawn anew each epoch. balance_families:
    draw a question with a chance of one over the size of its family; as a scene has only some sixteen questions, that
    evens the families out but partly. max_scenes: use only the first that many scenes of each split. families: ask
    only questions of these. only_needed: a sample carries no more than what its family needs; each batch is then of one
    combination of modalities.
    """

    budget: float = 32.0
    costs: dict[Modality, float] = field(default_factory=lambda: {Modality.IMAGE: 1.0})
    questions_per_scene: int = 6
    balance_families: bool = True
    max_scenes: int | None = None
    families: tuple[str, ...] | None = None
    only_needed: bool = False
    num_workers: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """AdamW with linear warm-up and cosine decay. One epoch sees every training picture once.

    accumulate: micro-batches per update; an epoch's last update may have fewer, each of which still counts one
    k-th. modality_dropout: chance that a training batch comes without one of its modalities, so that the model
    works without any and says nothing where it cannot know. distractor_dropout: chance that a question comes
    without what its family does not need in the first epoch; it falls by equal steps, to one over `epochs` of that
    in the last, so that a question is first asked in quiet and then amid everything else. precision: of Lightning,
    or "auto": `32-true` on CPU, `bf16-mixed` on GPU. augment: mirror pictures left to right; turn it off where
    questions speak of left and right. encoder_rate: the learning rate of the encoders, as a share of
    `learning_rate`; small where they are trained already. frozen: the encoders that are not trained at all; what they
    say of each picture, sound and clip is then worked out once and kept as 8-bit latents (pictures and clips share
    weights: freeze both). exit_updates: of the early exits, before everything else. random_routes: the chance that a
    training batch runs under random routes, so that the model works under any. checkpoint_every: updates between the
    checkpoints that an interrupted training resumes from.
    """

    epochs: int = 12
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    accumulate: int = 1
    clip_norm: float = 1.0
    precision: str = "auto"
    augment: bool = True
    modality_dropout: float = 0.0
    distractor_dropout: float = 0.0
    encoder_rate: float = 1.0
    frozen: tuple[Modality, ...] = ()
    exit_updates: int = 0
    random_routes: float = 0.0
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if Modality.TEXT in self.frozen:
            raise ValueError(f"only encoders of pictures, sounds and clips can be frozen: got {self.frozen}")
        if self.augment and Modality.IMAGE in self.frozen:
            raise ValueError("augment changes pictures in every epoch, but a frozen encoder sees each one only once")


# A dozen scenes' questions of one kind of need in every batch.
IN_QUIET = DataConfig(budget=12, costs={}, questions_per_scene=8, only_needed=True)


# The second training on questions: the encoders of pictures, sounds and clips stay as they are.
UNDER_ROUTES = TrainingConfig(
    epochs=5,
    learning_rate=2.5e-4,
    warmup_fraction=0.02,
    augment=False,
    modality_dropout=0.1,
    encoder_rate=0.2,
    frozen=(Modality.IMAGE, Modality.AUDIO, Modality.VIDEO),
    exit_updates=300,
    random_routes=0.8,
)


@dataclass(frozen=True)
class RouterConfig:
    """The controller's training on a frozen model. An epoch draws `questions_per_scene` questions of every scene, in
    batches of `media` (a `DataConfig.budget`); ten times it is validated on the first `validation_scenes`.

    estimator: "group" (group-relative) or "self_critical"; or, by backpropagation, "gumbel", "soft" or "choice".
    group: routes tried per question. penalty: what the whole dense cost takes off the reward, which is at most one;
    `anneal` is the share of the updates over which it grows from nothing. budget: a share of the dense cost that the
    penalty is adapted to meet. conditioned: draw a penalty for every question, and tell the controller.
    """

    epochs: int = 1
    learning_rate: float = 2e-3
    hidden: int = 128
    estimator: str = "group"
    group: int = 8
    penalty: float = 0.3
    anneal: float = 0.5
    entropy_bonus: float = 0.003
    budget: float | None = None
    conditioned: bool = False
    questions_per_scene: int = 2
    media: float = 32
    validation_scenes: int = 150
    clip_norm: float = 1.0
    precision: str = "auto"
    accumulate: int = 1
    checkpoint_every: int = 100


@dataclass(frozen=True)
class CompressionConfig:
    """Quantization-aware training, from a trained model, on questions about the first `scenes`, `validation_scenes` of
    the splits. calibration: batches from which ranges are first taken. pruning_rounds: how often is pruned, and
    trained after it, until all is gone that is to go."""

    calibration: int = 12
    pruning_rounds: int = 3
    scenes: int = 2000
    validation_scenes: int = 100
    training: TrainingConfig = TrainingConfig(
        epochs=1, learning_rate=5e-5, warmup_fraction=0.05, augment=False, random_routes=0.25, checkpoint_every=25
    )


@dataclass(frozen=True)
class WorldConfig:
    """EmojiWorld: things: size of its vocabulary. scenes: per split. alignment: the contrastive pre-training; an epoch
    of it is so many `views`, drawn afresh, in batches of `views_per_batch`. quiet_data: questions each with what it
    needs alone; reading: on those of them that need no ears, from the aligned encoders; quiet: on all of them;
    matching: on those that match a sound with a clip, which are learned last. data, training: on questions amid
    everything else, from there. routed: goes on from there under random routes. router, penalties: the controllers of
    that network. compression: of that network, too. choice_penalties: of those that choose among plans, which are
    slower to give one up: under `penalties` they close next to nothing.
    """

    things: int
    scenes: dict[str, int]
    model: ModelConfig
    data: DataConfig
    alignment: TrainingConfig
    reading: TrainingConfig
    quiet: TrainingConfig
    matching: TrainingConfig
    training: TrainingConfig
    quiet_data: DataConfig = IN_QUIET
    routed: TrainingConfig = field(default_factory=lambda: UNDER_ROUTES)
    router: RouterConfig = RouterConfig()
    compression: CompressionConfig = CompressionConfig()
    penalties: tuple[float, ...] = (0.05, 0.2, 0.8)
    choice_penalties: tuple[float, ...] = (0.2, 0.8, 3.2)
    views: int = 6400
    views_per_batch: int = 64


@dataclass(frozen=True)
class FaceConfig:
    """TalkingFace: clips per split. model: for sound and lips; its fusion follows a plan. data, training: for each of
    the plans alike."""

    clips: dict[str, int]
    model: ModelConfig
    training: TrainingConfig
    data: DataConfig = field(default_factory=lambda: DataConfig(costs={Modality.VIDEO: 1.0}, questions_per_scene=1))


@dataclass(frozen=True)
class HeadsConfig:
    """The model of many heads, and what it is trained on. model: its encoders and fusion. dim: of the memory and of the
    heads that read it. mlp_ratio: of the heads' hidden layers to `dim`. memory_depth, text_depth, boxes_depth,
    pixels_depth, speech_depth: transformer layers of the memory and of each head. queries: things found at most.
    widths: channels of the pixels head, from fine to coarse. speech_layers: convolutions over frames. sentences: of
    each kind, that the tokenizer is made from. longest: tokens of prompt and text together.

    examples: of each task, by split; a training batch is of a task drawn with a chance that goes with its number of
    examples to the power of one over `temperature` (Raffel et al. 2020, section 3.5.2): 1 for as often as there are
    examples, far above for equally often. sizes: examples in a batch. batches: in an epoch. uncertainty: weigh losses
    by learned uncertainties (Kendall et al. 2018), else all alike.
    """

    things: int
    model: ModelConfig
    training: TrainingConfig
    examples: dict[str, dict[str, int]]
    batches: int
    sizes: dict[str, int]
    temperature: float = 16.0
    uncertainty: bool = True
    dim: int = 128
    mlp_ratio: float = 1.0
    memory_depth: int = 1
    text_depth: int = 2
    boxes_depth: int = 2
    queries: int = 8
    widths: tuple[int, ...] = (64,)
    pixels_depth: int = 2
    speech_depth: int = 2
    speech_layers: int = 5
    sentences: int = 1000
    longest: int = 64


@dataclass(frozen=True)
class Profile:
    """How much to compute: `smoke` proves the plumbing, `quick` suits two CPU cores, `full` one GPU.

    model, data, training: for easy-VQA. world: for EmojiWorld. face: for TalkingFace. heads: for many heads.
    timing_rounds: repetitions of each measured time. bootstrap: resamples behind each interval.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    world: WorldConfig
    face: FaceConfig
    heads: HeadsConfig
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


ALL = tuple(Modality)
# Swin windows of 4 x 4 fit the 64 px pictures and the 32 px frames alike, so both share their weights.
SHARED_SWIN = SMALL_SWIN | {"window_size": 4, "strict_img_size": False}
_LISTENING = {
    Modality.TEXT: (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO),
    Modality.AUDIO: (Modality.IMAGE, Modality.VIDEO),
}
# The question listens to all else; the sound, which may be the question, to pictures and clips.
QUESTION_PATHS = tuple((query, key) for query, keys in _LISTENING.items() for key in keys)
COSTS = {Modality.TEXT: 0.02, Modality.IMAGE: 0.25, Modality.AUDIO: 0.25, Modality.VIDEO: 0.48}
SEEN = (Modality.IMAGE, Modality.VIDEO)
# The encoders are aligned already: only that of text learns on. Questions about a scene speak of left and right.
ON_SCENES = TrainingConfig(
    learning_rate=5e-4,
    warmup_fraction=0.02,
    augment=False,
    encoder_rate=0.2,
    frozen=(*SEEN, Modality.AUDIO),
)
AMID_ALL = replace(ON_SCENES, learning_rate=3e-4, modality_dropout=0.1, distractor_dropout=0.5)

LIPS = ModelConfig(
    modalities=(Modality.AUDIO, Modality.VIDEO),
    dim=96,
    vision=VisionConfig(overrides=SHARED_SWIN | {"embed_dim": 16, "depths": (1, 1)}),
    audio=AudioConfig(dim=64),
    video=VideoConfig(dim=64, depth=2, grid=1),
    fusion=FusionConfig(mlp_ratio=1.0, gated=True),
)

SAID_AND_SEEN = ((Modality.TEXT, Modality.IMAGE), (Modality.IMAGE, Modality.TEXT), (Modality.IMAGE, Modality.AUDIO))
# What is heard is written down from 25 tokens a second; at the eight of other models, letters would be lost.
OF_MANY_HEADS = ModelConfig(
    modalities=(Modality.TEXT, Modality.IMAGE, Modality.AUDIO),
    dim=128,
    vision=VisionConfig(overrides=SHARED_SWIN),
    audio=AudioConfig(context=3, seconds_per_token=0.04),
    fusion=FusionConfig(paths=SAID_AND_SEEN, mlp_ratio=1.0),
)
TOGETHER = {"describe": 32, "find": 32, "answer": 32, "restore": 24, "translate": 32, "transcribe": 30, "speak": 24}
_DRAWN = {"describe": 60_000, "find": 20_000, "answer": 20_000, "restore": 60_000, "translate": 60_000}

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
            data=DataConfig(budget=8, questions_per_scene=2, max_scenes=32),
            training=TrainingConfig(epochs=2, checkpoint_every=2),
            world=WorldConfig(
                things=8,
                scenes={"train": 24, "validation": 8, "test": 8},
                model=ModelConfig(
                    modalities=ALL,
                    vision=VisionConfig(overrides=SHARED_SWIN | {"embed_dim": 16, "depths": (1, 1)}),
                    text=TextConfig(dim=32, depth=1, heads=2),
                    audio=AudioConfig(dim=32, depth=1, heads=2),
                    video=VideoConfig(dim=32, heads=2),
                    fusion=FusionConfig(paths=QUESTION_PATHS, mlp_ratio=1.0),
                    latent_bits=8,
                ),
                data=DataConfig(budget=8, costs=COSTS, questions_per_scene=2),
                alignment=TrainingConfig(epochs=1, learning_rate=2e-3, augment=False),
                reading=replace(ON_SCENES, epochs=1, frozen=SEEN),
                quiet=replace(ON_SCENES, epochs=1),
                matching=replace(ON_SCENES, epochs=1),
                training=replace(AMID_ALL, epochs=1),
                views=32,
                views_per_batch=16,
            ),
            face=FaceConfig(
                clips={"train": 24, "validation": 8, "test": 8},
                model=replace(
                    LIPS,
                    dim=32,
                    audio=AudioConfig(dim=16, depth=1, heads=2),
                    video=replace(LIPS.video, dim=16, heads=2),
                ),
                training=TrainingConfig(epochs=1, augment=False),
            ),
            heads=HeadsConfig(
                things=8,
                model=replace(
                    OF_MANY_HEADS,
                    dim=32,
                    vision=VisionConfig(overrides=SHARED_SWIN | {"embed_dim": 16, "depths": (1, 1)}),
                    text=TextConfig(dim=32, depth=1, heads=2),
                    audio=AudioConfig(dim=32, depth=1, heads=2, context=1, seconds_per_token=0.04),
                ),
                training=TrainingConfig(epochs=1, augment=False),
                examples=dict.fromkeys(("train", "validation", "test"), dict.fromkeys(TOGETHER, 8)),
                batches=14,
                sizes=dict.fromkeys(TOGETHER, 4),
                dim=32,
                widths=(16,),
                speech_layers=2,
                sentences=50,
            ),
            timing_rounds=2,
            bootstrap=50,
        ),
        Profile(
            name="quick",
            model=ModelConfig(
                vision=VisionConfig(overrides=SMALL_SWIN),
                fusion=FusionConfig(paths=((Modality.TEXT, Modality.IMAGE),)),
            ),
            data=DataConfig(budget=32, questions_per_scene=6),
            training=TrainingConfig(epochs=14),
            world=WorldConfig(
                things=32,
                scenes={"train": 10_000, "validation": 1_000, "test": 1_500},
                model=ModelConfig(
                    modalities=ALL,
                    vision=VisionConfig(overrides=SHARED_SWIN),
                    fusion=FusionConfig(paths=QUESTION_PATHS, depth=2, mlp_ratio=1.0),
                    latent_bits=8,
                ),
                data=DataConfig(budget=8, costs=COSTS, questions_per_scene=8),
                alignment=TrainingConfig(epochs=10, learning_rate=2e-3, augment=False),
                reading=replace(ON_SCENES, epochs=3, frozen=SEEN),
                quiet=replace(ON_SCENES, epochs=4),
                matching=replace(ON_SCENES, epochs=5),
                training=replace(AMID_ALL, epochs=3),
            ),
            face=FaceConfig(
                clips={"train": 3_000, "validation": 300, "test": 1_000},
                model=LIPS,
                training=TrainingConfig(epochs=12, augment=False),
            ),
            heads=HeadsConfig(
                things=32,
                model=OF_MANY_HEADS,
                training=TrainingConfig(epochs=22, augment=False, warmup_fraction=0.02),
                examples={
                    "train": _DRAWN | {"transcribe": 12_000, "speak": 4_000},
                    "validation": dict.fromkeys(TOGETHER, 96),
                    "test": dict.fromkeys(TOGETHER, 600) | {"transcribe": 1_000, "speak": 120},
                },
                batches=700,
                sizes=TOGETHER,
            ),
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
            data=DataConfig(budget=128, questions_per_scene=8, num_workers=8),
            training=TrainingConfig(epochs=60, learning_rate=1e-3),
            world=WorldConfig(
                things=40,
                scenes={"train": 100_000, "validation": 2_000, "test": 4_000},
                model=ModelConfig(
                    modalities=ALL,
                    vision=VisionConfig(overrides=SHARED_SWIN | {"embed_dim": 96, "num_heads": (3, 6)}),
                    text=TextConfig(dim=256, depth=4),
                    audio=AudioConfig(dim=256, depth=4),
                    video=VideoConfig(dim=256, depth=2),
                    fusion=FusionConfig(paths=QUESTION_PATHS, depth=3),
                    latent_bits=8,
                ),
                data=DataConfig(budget=128, costs=COSTS, num_workers=8),
                alignment=TrainingConfig(epochs=20, learning_rate=2e-3, augment=False),
                reading=replace(ON_SCENES, epochs=5, frozen=SEEN),
                quiet=replace(ON_SCENES, epochs=10),
                matching=replace(ON_SCENES, epochs=6),
                training=replace(AMID_ALL, epochs=10),
                quiet_data=replace(IN_QUIET, budget=96, num_workers=8),
                views=40_000,
                views_per_batch=256,
            ),
            face=FaceConfig(
                clips={"train": 20_000, "validation": 1_000, "test": 4_000},
                model=replace(LIPS, dim=256, audio=AudioConfig(depth=4), video=replace(LIPS.video, dim=128, depth=4)),
                training=TrainingConfig(epochs=20, augment=False),
            ),
            heads=HeadsConfig(
                things=40,
                model=replace(
                    OF_MANY_HEADS,
                    dim=256,
                    vision=VisionConfig(overrides=SHARED_SWIN | {"embed_dim": 96, "num_heads": (3, 6)}),
                    text=TextConfig(dim=256, depth=4),
                    audio=AudioConfig(dim=256, depth=4, context=3, seconds_per_token=0.04),
                ),
                training=TrainingConfig(epochs=40, augment=False, warmup_fraction=0.02),
                examples={
                    "train": {task: 4 * n for task, n in _DRAWN.items()} | {"transcribe": 30_000, "speak": 10_000},
                    "validation": dict.fromkeys(TOGETHER, 192),
                    "test": dict.fromkeys(TOGETHER, 1_200) | {"speak": 240},
                },
                batches=1_000,
                sizes={task: 4 * n for task, n in TOGETHER.items()},
                dim=256,
                memory_depth=2,
                text_depth=4,
                boxes_depth=3,
                speech_depth=3,
                speech_layers=6,
            ),
            timing_rounds=30,
            bootstrap=10_000,
        ),
    )
}
