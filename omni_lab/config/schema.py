"""Configuration: frozen dataclasses, and the three profiles that the notebooks run under."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omni_lab.batch import Modality
from omni_lab.utils.lookup import closest_match


@dataclass(frozen=True)
class VisionConfig:
    """A Swin transformer of timm. early_exit: can also stop after its first stage. `overrides` go to
    `timm.create_model`: any size by configuration."""

    name: str = "swin_tiny_patch4_window7_224"
    image_size: int = 64
    pretrained: bool = False
    early_exit: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextConfig:
    dim: int = 128
    depth: int = 2
    num_heads: int = 4
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
    num_heads: int = 4
    dropout: float = 0.0
    sample_rate: int = 16_000
    convolutions: tuple[tuple[int, int, int], ...] = ((48, 40, 20), (96, 8, 4), (128, 4, 4))
    seconds_per_token: float = 0.12
    early_exit: bool = False
    num_local_convs: int = 0


@dataclass(frozen=True)
class VideoConfig:
    """frame_size: in pixels. seconds: how long a clip lasts, whatever its number of frames. depth: temporal attention
    layers. grid: each frame ends as grid x grid tokens.
    """

    frame_size: int = 32
    seconds: float = 2.0
    dim: int = 128
    depth: int = 1
    num_heads: int = 4
    grid: int = 2


@dataclass(frozen=True)
class FusionConfig:
    """early: clips and sounds are joined by time in the lower layers of their encoders. paths: the directed
    (query, key) pairs that exist in each layer; None means all of them. gated: multiply each path, and in the head each
    modality's summary, by a soft gate of its own."""

    early: bool = False
    paths: tuple[tuple[Modality, Modality], ...] | None = None
    depth: int = 1
    num_heads: int = 4
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
    answer_pooling: str = "max"


@dataclass(frozen=True)
class DataConfig:
    """budget: what a batch may cost; a sample costs the sum of `costs` over the modalities it carries (the questions
    about one scene count once, as they share its media). questions_per_scene: drawn anew each epoch. balance_families:
    draw a question with a chance of one over the size of its family; as a scene has only some sixteen questions, that
    evens the families out but partly. max_scenes: use only the first that many scenes of each split. families: ask
    only questions of these. only_needed: a sample carries no more than what its family needs; each batch is then of one
    combination of modalities.
    """

    max_batch_cost: float = 32.0
    modality_costs: dict[Modality, float] = field(default_factory=lambda: {Modality.IMAGE: 1.0})
    questions_per_scene: int = 6
    balance_families: bool = True
    max_scenes: int | None = None
    families: tuple[str, ...] | None = None
    required_modalities_only: bool = False
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
    horizontal_flip: bool = True
    modality_dropout: float = 0.0
    distractor_dropout: float = 0.0
    encoder_lr_scale: float = 1.0
    frozen_encoders: tuple[Modality, ...] = ()
    early_exit_steps: int = 0
    random_route_prob: float = 0.0
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if Modality.TEXT in self.frozen_encoders:
            raise ValueError(f"only encoders of pictures, sounds and clips can be frozen: got {self.frozen_encoders}")
        if self.horizontal_flip and Modality.IMAGE in self.frozen_encoders:
            raise ValueError("augment changes pictures in every epoch, but a frozen encoder sees each one only once")


# A dozen scenes' questions of one kind of need in every batch.
ISOLATED_DATA = DataConfig(max_batch_cost=12, modality_costs={}, questions_per_scene=8, required_modalities_only=True)
# The second training on questions: the encoders of pictures, sounds and clips stay as they are.
ROUTED_TRAINING = TrainingConfig(
    epochs=5,
    learning_rate=2.5e-4,
    warmup_fraction=0.02,
    horizontal_flip=False,
    modality_dropout=0.1,
    encoder_lr_scale=0.2,
    frozen_encoders=(Modality.IMAGE, Modality.AUDIO, Modality.VIDEO),
    early_exit_steps=300,
    random_route_prob=0.8,
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
    group_size: int = 8
    penalty: float = 0.3
    anneal_fraction: float = 0.5
    entropy_coef: float = 0.003
    budget: float | None = None
    penalty_conditioned: bool = False
    questions_per_scene: int = 2
    max_batch_cost: float = 32
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
        epochs=1,
        learning_rate=5e-5,
        warmup_fraction=0.05,
        horizontal_flip=False,
        random_route_prob=0.25,
        checkpoint_every=25,
    )


@dataclass(frozen=True)
class EmojiWorldConfig:
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
    contrastive: TrainingConfig
    no_audio: TrainingConfig
    isolated: TrainingConfig
    av_matching: TrainingConfig
    with_distractors: TrainingConfig
    isolated_data: DataConfig = ISOLATED_DATA
    routed: TrainingConfig = field(default_factory=lambda: ROUTED_TRAINING)
    router: RouterConfig = RouterConfig()
    compression: CompressionConfig = CompressionConfig()
    penalties: tuple[float, ...] = (0.05, 0.2, 0.8)
    choice_penalties: tuple[float, ...] = (0.2, 0.8, 3.2)
    views: int = 6400
    views_per_batch: int = 64


@dataclass(frozen=True)
class TalkingFaceConfig:
    """TalkingFace: clips per split. model: for sound and lips; its fusion follows a plan. data, training: for each of
    the plans alike."""

    clips: dict[str, int]
    model: ModelConfig
    training: TrainingConfig
    data: DataConfig = field(
        default_factory=lambda: DataConfig(modality_costs={Modality.VIDEO: 1.0}, questions_per_scene=1)
    )


@dataclass(frozen=True)
class MultitaskConfig:
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
    batch_sizes: dict[str, int]
    temperature: float = 16.0
    uncertainty_weighting: bool = True
    dim: int = 128
    mlp_ratio: float = 1.0
    context_depth: int = 1
    text_depth: int = 2
    detection_depth: int = 2
    num_queries: int = 8
    widths: tuple[int, ...] = (64,)
    restoration_depth: int = 2
    tts_depth: int = 2
    tts_conv_layers: int = 5
    sentences: int = 1000
    max_length: int = 64


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
    emoji_world: EmojiWorldConfig
    talking_face: TalkingFaceConfig
    multitask: MultitaskConfig
    timing_rounds: int
    bootstrap_resamples: int


def with_changes(config: Any, **changes: Any) -> Any:
    """A copy of a frozen configuration with some fields replaced; a field that does not exist is named."""
    known = [f.name for f in dataclasses.fields(config)]
    for name in changes:
        if name not in known:
            raise ValueError(
                f"{type(config).__name__} has no field {name!r}; the nearest is {closest_match(name, known)!r}"
            )
    return dataclasses.replace(config, **changes)
