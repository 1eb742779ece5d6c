"""Configuration of data, training and worlds as frozen dataclasses, up to a whole `Profile`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omni_lab.batch import Modality
from omni_lab.config.models import Component, ModelConfig
from omni_lab.utils.lookup import lookup

# Of fields that do not determine the weights of a trained model, or that its identity holds elsewhere.
NOT_IDENTITY: dict[str, Any] = {"identity": False}


@dataclass(frozen=True)
class DataConfig:
    """How questions become batches."""

    max_batch_cost: float = 32.0  # in the unit of `modality_costs`; the questions about one scene share its cost
    modality_costs: dict[Modality, float] = field(default_factory=lambda: {Modality.IMAGE: 1.0})  # of one input
    questions_per_scene: int = 6  # sampled anew each epoch
    # Weigh a question by one over the size of its family. A scene has only some sixteen questions, so this evens out
    # the families only in part.
    balance_families: bool = True
    max_scenes: int | None = None  # use only the first scenes of each split
    first_scene: int = 0  # leave out so many of the first scenes of the training split
    families: tuple[str, ...] | None = None  # use only these question families
    required_modalities_only: bool = False  # drop what a family does not need; a batch then has one set of modalities
    num_workers: int = field(default=0, metadata=NOT_IDENTITY)  # processes that load batches


@dataclass(frozen=True)
class TrainingConfig:
    """AdamW with linear warm-up and cosine decay. In one epoch every training image is seen once."""

    epochs: int = 12
    learning_rate: float = 1e-3  # at its peak
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1  # of all optimizer steps
    accumulate: int = 1  # micro-batches per step; an epoch's last step may have fewer, each still weighs 1/accumulate
    clip_norm: float = 1.0  # largest norm of the gradient
    precision: str = "auto"  # Lightning's name, or "auto": 32-true on CPU, bf16-mixed on GPU
    horizontal_flip: bool = True  # flip images at random; turn it off where questions speak of left and right
    modality_dropout: float = 0.0  # probability that a batch lacks one modality, so that the model works without any
    # Probability in the first epoch that a question comes without the modalities its family does not need. It falls in
    # equal steps to 1/epochs of that in the last epoch: a curriculum from isolated questions to all distractors.
    distractor_dropout: float = 0.0
    encoder_lr_scale: float = 1.0  # encoders' learning rate over `learning_rate`; small where they are pre-trained
    # Encoders that are not trained: their outputs are computed once and cached as 8-bit latents. Image and video share
    # weights: freeze both.
    frozen_encoders: tuple[Modality, ...] = ()
    early_exit_steps: int = 0  # steps that train the early exits, before everything else
    random_route_prob: float = (
        0.0  # probability that a batch runs under random routes, so that the model works under any
    )
    # Random routes that each batch is also trained under. An encoder runs once per level: a route costs fusion alone.
    routes_per_batch: int = 0
    # With `routes_per_batch`: share of the loss under a random route that is the divergence from the dense answer, the
    # rest is cross-entropy (in-place distillation, Yu and Huang 2019, section 3.3).
    distill_weight: float = 0.0
    tiny_only: bool = False  # train the tiny encoders alone, the rest stays as it is
    # With `routes_per_batch`: weight of linear probes that answer from one encoder alone at one level. They are thrown
    # away; without them, a tiny encoder rarely has to answer by itself, and learns slowly.
    probe_weight: float = 0.0
    # Steps between the checkpoints that an interrupted training resumes from.
    checkpoint_every: int = field(default=100, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if Modality.TEXT in self.frozen_encoders:
            raise ValueError(f"frozen_encoders may hold image, audio and video: got {self.frozen_encoders}")
        if self.horizontal_flip and Modality.IMAGE in self.frozen_encoders:
            raise ValueError("horizontal_flip must be off where the image encoder is frozen: its outputs are cached")


@dataclass(frozen=True)
class RouterConfig:
    """Training of a router on a frozen model. It is validated ten times an epoch."""

    epochs: int = 1
    learning_rate: float = 2e-3  # at its peak
    hidden: int = 128  # width of the router's MLP
    policy: Component | None = None  # a registered router in place of that MLP
    # "group" (group-relative), "self_critical"; by backpropagation "gumbel", "soft", "choice". Of sequential routers:
    # "sequential" samples trajectories on the network; "expected", "fitted_q" know the outcome of all.
    estimator: str = "group"
    group_size: int = 8  # routes sampled per question
    penalty: float = 0.3  # reward lost by a route of the whole dense cost; a reward is at most 1
    anneal_fraction: float = 0.5  # of the steps over which the penalty grows from zero
    entropy_coef: float = 0.003
    budget: float | None = None  # fraction of the dense cost; the penalty is adapted to meet it
    penalty_conditioned: bool = False  # sample a penalty for every question and give it to the router as an input
    questions_per_scene: int = 2  # sampled anew each epoch
    max_batch_cost: float = 32  # see `DataConfig`
    validation_scenes: int = 150  # validate on the first scenes of the split
    clip_norm: float = 1.0  # see `TrainingConfig`, as the three below
    precision: str = "auto"
    accumulate: int = 1
    checkpoint_every: int = field(default=100, metadata=NOT_IDENTITY)


@dataclass(frozen=True)
class CompressionConfig:
    """Quantization-aware training and pruning of a trained model."""

    calibration: int = 12  # batches that set the first quantization ranges
    calibration_scenes: int = 256  # questions about the first scenes of training are in these batches
    pruning_rounds: int = 3  # rounds of pruning and training until the target sparsity is reached
    scenes: int = 2000  # train on questions about the first scenes
    validation_scenes: int = 100  # validate on questions about the first scenes
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
    """EmojiWorld and the stages of training on it, in the order of the fields from `contrastive` to `compression`."""

    things: int  # size of the vocabulary
    scenes: dict[str, int]  # per split
    model: ModelConfig
    data: DataConfig  # questions with everything their scene holds
    contrastive: TrainingConfig  # contrastive pre-training of the encoders
    no_audio: TrainingConfig  # isolated questions (without distractors) that need no audio
    isolated: TrainingConfig  # all isolated questions
    av_matching: TrainingConfig  # isolated questions that match audio with video: they are learned last
    with_distractors: TrainingConfig  # all questions, on `data`
    # Some twelve scenes a batch, all with the same required modalities.
    isolated_data: DataConfig = DataConfig(
        max_batch_cost=12, modality_costs={}, questions_per_scene=8, required_modalities_only=True
    )
    routed: TrainingConfig = TrainingConfig(  # the same questions under random routes, with frozen encoders
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
    router: RouterConfig = RouterConfig()  # routers of the `routed` model
    compression: CompressionConfig = CompressionConfig()  # of the `routed` model
    penalties: tuple[float, ...] = (0.05, 0.2, 0.8)  # one router is trained per penalty
    # For the estimator "choice", which picks one of several plans: under `penalties` it closes next to nothing.
    choice_penalties: tuple[float, ...] = (0.2, 0.8, 3.2)
    views: int = 6400  # contrastive examples per epoch, sampled anew
    views_per_batch: int = 64
    front_end_views: int = 7680  # of the one epoch that compares audio front ends


@dataclass(frozen=True)
class TalkingFaceConfig:
    """TalkingFace: does the mouth follow the speech? Each fusion plan is trained alike."""

    clips: dict[str, int]  # per split
    model: ModelConfig  # of audio and video; a fusion plan sets its fusion
    training: TrainingConfig
    data: DataConfig = DataConfig(modality_costs={Modality.VIDEO: 1.0}, questions_per_scene=1)


@dataclass(frozen=True)
class ContentConfig:
    """A world in which what is shown and said decides what to run: the network, and its sequential routers."""

    examples: dict[str, int]  # per split
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    distillation: TrainingConfig  # afterwards, of the tiny encoders
    router: RouterConfig  # by policy gradient
    fitted_q: RouterConfig  # by regression of values
    # Trained with so many seeds, a router of each kind on each.
    networks: int = field(default=3, metadata=NOT_IDENTITY)
    one_shot_steps: int = field(default=3000, metadata=NOT_IDENTITY)  # that train a router which decides once
    # Questions of another seed, about the validation split, on which policies are chosen: the more, the less must a
    # policy be better than asked for to be surely good enough.
    choice_questions: int = field(default=12_000, metadata=NOT_IDENTITY)


@dataclass(frozen=True)
class MultitaskConfig:
    """The model with all task heads, and its training data."""

    things: int  # size of the vocabulary
    model: ModelConfig = field(metadata=NOT_IDENTITY)  # encoders and fusion
    training: TrainingConfig = field(metadata=NOT_IDENTITY)
    examples: dict[str, dict[str, int]]  # examples per split and task
    batches: int  # per epoch; each holds one task
    batch_sizes: dict[str, int]  # examples per batch, by task
    # A task is sampled in proportion to (its number of examples) ** (1 / temperature) (Raffel et al. 2020, section
    # 3.5.2): 1 is proportional to the examples, a large value nearly uniform.
    temperature: float = 16.0
    uncertainty_weighting: bool = True  # weigh losses by learned uncertainties (Kendall et al. 2018), else all equally
    dim: int = 128  # width of the context and of the heads
    mlp_ratio: float = 1.0  # hidden width over `dim`, in the heads
    context_depth: int = 1  # transformer layers of the context encoder
    text_depth: int = 2  # transformer layers of the text head
    detection_depth: int = 2  # transformer layers of the detection head
    num_queries: int = 8  # most objects that are detected
    widths: tuple[int, ...] = (64,)  # channels of the restoration head, from fine to coarse
    restoration_depth: int = 2  # transformer layers of the restoration head
    tts_depth: int = 2  # transformer layers of the TTS head
    tts_conv_layers: int = 5  # convolutions over the frames of the TTS head
    sentences: int = 1000  # of each kind, to train the tokenizer
    max_length: int = 64  # tokens of prompt and output together


@dataclass(frozen=True)
class Profile:
    """How much to compute. quick measures the published models of standard on a part of the test split; standard is the
    run that is published, on two CPU cores; full suits one GPU; smoke only checks that everything runs."""

    name: str
    model: ModelConfig  # for easy-VQA, as the two below
    data: DataConfig
    training: TrainingConfig
    emoji_world: EmojiWorldConfig
    talking_face: TalkingFaceConfig
    digits: ContentConfig
    adverse: ContentConfig
    multitask: MultitaskConfig
    timing_rounds: int  # repetitions of each timed measurement
    bootstrap_resamples: int  # behind each confidence interval
    models: str = ""  # the profile whose trained models are used; empty: this one trains its own
    eval_scenes: dict[str, int] = field(default_factory=dict)  # by split, evaluate on its first scenes only
    effort: float = 1.0  # notebooks do so much of what is slow: explain this fraction of the questions, say
    latent_settings: tuple[tuple[float, float], ...] = ()  # similarity and error, tried on the validation split
    fresh_scenes: int = 600  # sampled anew, to measure what was tuned after the test split was seen
    recognized: int = 60  # spoken sentences that the independent recogniser transcribes, of each kind
    own_pictures: int = 400  # in the set of pictures that stands for one's own
    own_steps: int = 1000  # that train a model of it
    # By world, the fractions of all layers among which depth allocation is tried; it trains a network of its own.
    depth_budgets: dict[str, tuple[float, ...]] = field(default_factory=dict)
    runtimes: tuple[str, ...] = ("PyTorch", "ONNX Runtime")  # in which answers under sequential routers are timed

    @property
    def trained_as(self) -> str:
        """The profile whose trained models, and published results, belong to this one."""
        return self.models or self.name

    def scaled(self, count: int) -> int:
        """A number of repetitions times `effort`, at least one."""
        return max(1, round(count * self.effort))


def with_changes(config: Any, **changes: Any) -> Any:
    """A copy of a frozen dataclass with some fields replaced. Raises ValueError naming an unknown field."""
    fields = {f.name: f for f in dataclasses.fields(config)}
    for name in changes:
        lookup(name, fields, f"field of {type(config).__name__}")
    return dataclasses.replace(config, **changes)
