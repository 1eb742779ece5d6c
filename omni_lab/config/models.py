"""The configuration of a model: encoders, fusion and the answer head, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omni_lab.batch import SAMPLE_RATE, Modality


@dataclass(frozen=True)
class Component:
    """A part that is registered by name in `omni_lab.registry`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)  # arguments of its builder


@dataclass(frozen=True)
class VisionConfig:
    """A backbone from timm: a Swin transformer, or any other that gives a map of features or a square of tokens."""

    name: str = "swin_tiny_patch4_window7_224"  # timm's name of the architecture
    image_size: int = 64  # height and width, pixels
    pretrained: bool = False  # load timm's weights (a download)
    early_exit: bool = False  # add an exit after the first stage of a Swin transformer
    tiny_channels: tuple[int, ...] = ()  # of the three convolutions of a tiny encoder beside this one; empty: none
    overrides: dict[str, Any] = field(default_factory=dict)  # more arguments of `timm.create_model`: any size


@dataclass(frozen=True)
class TextConfig:
    """A transformer over word pieces."""

    dim: int = 128  # width inside the encoder
    depth: int = 2  # transformer layers
    num_heads: int = 4
    max_length: int = 64  # tokens
    dropout: float = 0.0


@dataclass(frozen=True)
class AudioConfig:
    """A front end that turns a waveform into frames, then a transformer over pooled frames."""

    # "mel" (log-mel spectrogram and small convolutions), "wav2vec2" (wav2vec 2.0 with the `convolutions` below), or
    # a bundle of torchaudio.pipelines, such as "WAV2VEC2_BASE" (downloads its weights).
    front_end: str = "mel"
    dim: int = 128  # width inside the encoder
    depth: int = 2  # transformer layers
    num_heads: int = 4
    dropout: float = 0.0
    sample_rate: int = SAMPLE_RATE  # of the waveforms passed in, Hz; the encoder resamples to 16,000 Hz
    convolutions: tuple[tuple[int, int, int], ...] = ((48, 40, 20), (96, 8, 4), (128, 4, 4))  # channels, kernel, stride
    seconds_per_token: float = 0.12  # frames of so many seconds are pooled into one token
    early_exit: bool = False  # add an exit before the transformer
    tiny_channels: tuple[int, ...] = ()  # of the two convolutions of a tiny encoder beside this one; empty: none
    num_local_convs: int = 0  # extra mel convolutions over five frames each: neighbouring sounds are learned sooner


@dataclass(frozen=True)
class VideoConfig:
    """The vision encoder on each frame, then temporal attention."""

    frame_size: int = 32  # height and width, pixels
    seconds: float = 2.0  # duration of a video, whatever its number of frames
    dim: int = 128  # width of the temporal layers
    depth: int = 1  # temporal attention layers
    num_heads: int = 4
    grid: int = 2  # each frame becomes grid x grid tokens
    tiny_channels: tuple[int, ...] = ()  # of the three convolutions of a tiny encoder beside this one; empty: none


@dataclass(frozen=True)
class FusionConfig:
    """Cross-modal attention along directed paths between modalities."""

    early: bool = False  # also join video and audio by time, in the lower layers of their encoders
    paths: tuple[tuple[Modality, Modality], ...] | None = None  # (query, key) pairs of every layer; None: all pairs
    depth: int = 1  # fusion layers
    num_heads: int = 4
    mlp_ratio: float = 2.0  # hidden width over `dim`
    dropout: float = 0.0
    gated: bool = False  # a learned soft gate per path and, in the answer head, per modality


@dataclass(frozen=True)
class ModelConfig:
    """Encoders, fusion and the answer head."""

    modalities: tuple[Modality, ...] = (Modality.TEXT, Modality.IMAGE)
    dim: int = 256  # width of fusion and of every encoder's output
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    audio: AudioConfig = AudioConfig()
    video: VideoConfig = VideoConfig()
    fusion: FusionConfig = FusionConfig()
    latent_bits: int | None = None  # train on tokens quantized to so many bits per value; None: not quantized
    answer_pooling: str = "max"  # per channel ("max": small models learn sooner) or "mean" over a modality's tokens
    encoders: dict[Modality, Component] = field(default_factory=dict)  # in place of those configured above
    answer_head: Component | None = None  # in place of `AnswerHead`
    layer_drop: float = 0.0  # with this probability a batch skips each layer of the Swin and of the audio transformer
