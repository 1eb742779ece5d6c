"""The audio encoder: a mel or wav2vec 2.0 front end (Baevski et al. 2020), pooled to few tokens in time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchaudio.functional import resample

from omni_lab.batch import SAMPLE_RATE, Tokens
from omni_lab.config.models import AudioConfig
from omni_lab.encoders.tiny import TinyAudio
from omni_lab.layers.attention import transformer_blocks
from omni_lab.layers.mel import HOP_LENGTH, N_MELS, LogMelSpectrogram
from omni_lab.layers.positional import HIGH_AMPLITUDE, layer_norm_no_affine, sinusoidal_time_embedding

MIN_SAMPLES = 1600  # a tenth of a second: the least that the convolutions can take
STEM_HOP_LENGTH = 4 * HOP_LENGTH  # samples per frame of the mel front end, after its two strides: 25 frames a second


class MelFrontEnd(nn.Module):
    """Log-mel spectrogram, normalised per waveform, and convolutions: 25 frames a second, ready for `blocks`.

    Waveforms [U, S] at 16 kHz to `Tokens` [U, F, dim] with times. `blocks` is the transformer over the frames.
    """

    frame_seconds = STEM_HOP_LENGTH / SAMPLE_RATE

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.mel = LogMelSpectrogram()
        self.dim = dim = config.dim
        self.stem = nn.ModuleList(nn.Conv1d(width, dim, 3, stride=2) for width in (N_MELS, dim))
        self.local_convs = nn.ModuleList(nn.Conv1d(dim, dim, 5, padding=2) for _ in range(config.num_local_convs))
        self.blocks = transformer_blocks(config.depth, dim=dim, num_heads=config.num_heads, dropout=config.dropout)

    def forward(self, waves: Float[Tensor, "u s"], lengths: Int[Tensor, " u"]) -> Tokens:
        x = self.mel(F.pad(waves, (0, -waves.shape[1] % STEM_HOP_LENGTH)))  # [U, 64, 10 ms]
        real = torch.arange(x.shape[2], device=x.device) * HOP_LENGTH < lengths[:, None]  # [U, 10 ms]
        count = real.sum(1).clamp(min=1)[:, None, None] * x.shape[1]
        mean = (x * real[:, None]).sum((1, 2), keepdim=True) / count
        variance = (((x - mean) * real[:, None]) ** 2).sum((1, 2), keepdim=True) / count
        x = (x - mean) / (variance + 1e-3).sqrt()
        for convolution in self.stem:
            # padding after the end must contribute nothing; before the start there is one frame of zeros
            x = F.gelu(convolution(F.pad(x * real[:, None], (1, 0))))
            real = real[:, ::2]
        for convolution in self.local_convs:
            x = x + F.gelu(convolution(x * real[:, None]))
        x = x.transpose(1, 2)  # [U, F, dim]
        times = (torch.arange(x.shape[1], device=x.device) + 0.5) * self.frame_seconds
        return Tokens(x + sinusoidal_time_embedding(times, x.shape[2]), real, times.expand(x.shape[0], -1))


class Wav2Vec2FrontEnd(nn.Module):
    """torchaudio's wav2vec 2.0, small and untrained, or a published bundle by name. `blocks` is the identity.

    Waveforms [U, S] at 16 kHz to `Tokens` [U, F, dim]. The small one has layer norms, not group norms, in its
    convolutions, so that padding after the end of a waveform does not change its frames.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        if config.front_end == "wav2vec2":
            self.model = torchaudio.models.wav2vec2_model(
                extractor_mode="layer_norm",
                extractor_conv_layer_config=[(c, k, s) for c, k, s in config.convolutions],
                extractor_conv_bias=False,
                encoder_embed_dim=config.dim,
                encoder_projection_dropout=config.dropout,
                encoder_pos_conv_kernel=8,
                encoder_pos_conv_groups=4,
                encoder_num_layers=config.depth,
                encoder_num_heads=config.num_heads,
                encoder_attention_dropout=config.dropout,
                encoder_ff_interm_features=2 * config.dim,
                encoder_ff_interm_dropout=config.dropout,
                encoder_dropout=config.dropout,
                encoder_layer_norm_first=True,
                encoder_layer_drop=0.0,
                aux_num_out=None,
            )
        else:
            self.model = getattr(torchaudio.pipelines, config.front_end).get_model()
        self.dim: int = self.model.encoder.feature_projection.projection.out_features
        stride = math.prod(layer.stride for layer in self.model.feature_extractor.conv_layers)
        self.frame_seconds = stride / SAMPLE_RATE
        self.blocks = nn.Identity()

    def forward(self, waves: Float[Tensor, "u s"], lengths: Int[Tensor, " u"]) -> Tokens:
        real = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
        count = lengths[:, None].clamp(min=1)
        mean = waves.sum(1, keepdim=True) / count
        variance = (((waves - mean) * real) ** 2).sum(1, keepdim=True) / count
        frames = self.model((waves - mean) * real / (variance + 1e-7).sqrt(), lengths)[0]
        for layer in self.model.feature_extractor.conv_layers:
            lengths = torch.div(lengths - layer.kernel_size, layer.stride, rounding_mode="floor") + 1
        return Tokens(frames, torch.arange(frames.shape[1], device=frames.device) < lengths.clamp(min=1)[:, None])


class AudioEncoder(nn.Module):
    """Waveforms [U, S] float32 at `config.sample_rate` to `Tokens` [U, N, out_dim], N = ceil(S / samples_per_token).

    The time of a token is the middle of the samples that it covers.
    """

    def __init__(self, config: AudioConfig, *, out_dim: int) -> None:
        super().__init__()
        if config.front_end not in ("mel", "wav2vec2") and not hasattr(torchaudio.pipelines, config.front_end):
            raise ValueError(
                "audio front_end must be 'mel', 'wav2vec2' or the name of a wav2vec 2.0 bundle of "
                f"torchaudio.pipelines: got {config.front_end!r}"
            )
        self.sample_rate = config.sample_rate
        self.front = MelFrontEnd(config) if config.front_end == "mel" else Wav2Vec2FrontEnd(config)
        self.pool = max(1, round(config.seconds_per_token / self.front.frame_seconds))
        self.norm = nn.LayerNorm(self.front.dim)
        self.project = nn.Linear(self.front.dim, out_dim)
        if config.early_exit and config.front_end != "mel":
            raise ValueError(f"only the mel front end has an early exit: got front_end {config.front_end!r}")
        self.early_exit = nn.Linear(self.front.dim, out_dim) if config.early_exit else None
        channels, covered = config.tiny_channels, round(self.seconds_per_token * SAMPLE_RATE)
        self.tiny = TinyAudio(channels, samples_per_token=covered, out_dim=out_dim) if channels else None

    @property
    def seconds_per_token(self) -> float:
        return self.pool * self.front.frame_seconds

    @property
    def samples_per_token(self) -> int:
        """Samples at `sample_rate` that one token covers: S samples give ceil(S / samples_per_token) tokens. Exact with
        the mel front end at rates that 25 divides; the convolutions of wav2vec 2.0 can give one token less."""
        return round(self.seconds_per_token * self.sample_rate)

    def forward(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Tokens:
        return self.upper(self.lower(waves, mask))

    def lower(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Tokens:
        """The frames of the front end, before its transformer in the case of the mel front end."""
        return self.front(*self._prepare(waves, mask))

    def _prepare(
        self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]
    ) -> tuple[Float[Tensor, "u t"], Int[Tensor, " u"]]:
        """At 16 kHz, silent beyond the end, and as long as the convolutions need; with the lengths in samples."""
        lengths = mask.sum(1)
        if self.sample_rate != SAMPLE_RATE:
            waves = resample(waves, self.sample_rate, SAMPLE_RATE)
            lengths = (lengths * SAMPLE_RATE + self.sample_rate - 1) // self.sample_rate  # rounded up, as by `resample`
        waves = waves * (torch.arange(waves.shape[1], device=waves.device) < lengths[:, None])
        if waves.shape[1] < MIN_SAMPLES:
            waves = F.pad(waves, (0, MIN_SAMPLES - waves.shape[1]))
        return waves, lengths

    def upper(self, frames: Tokens) -> Tokens:
        """The transformer and the output; `upper` of `lower` is `forward`."""
        return self._to_tokens(self.front.blocks(frames), self.norm, self.project)

    def forward_early_exit(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Tokens:
        """The same tokens from the mel spectrogram and its convolutions alone, without the transformer."""
        assert self.early_exit is not None
        return self._to_tokens(self.lower(waves, mask), layer_norm_no_affine, self.early_exit)

    def forward_tiny(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Tokens:
        """The same tokens from the tiny encoder alone."""
        assert self.tiny is not None
        samples, lengths = self._prepare(waves, mask)
        features = self.tiny(samples)
        starts = torch.arange(features.shape[1], device=samples.device) * self.tiny.samples_per_token
        return self._with_times(features, starts < lengths[:, None])

    def _to_tokens(self, frames: Tokens, norm: Callable[[Tensor], Tensor], project: nn.Linear) -> Tokens:
        """Averages the real frames of each token, projects the means, and adds their times."""
        padding = -frames.values.shape[1] % self.pool
        x = F.pad(frames.values, (0, 0, 0, padding)).unflatten(1, (-1, self.pool))  # [U, N, pool, dim]
        weight = F.pad(frames.mask, (0, padding)).unflatten(1, (-1, self.pool))[..., None].to(x.dtype)
        pooled = (x * weight).sum(2) / weight.sum(2).clamp(min=1)  # [U, N, dim]
        return self._with_times(project(norm(pooled)), weight.squeeze(-1).any(dim=2))

    def _with_times(self, features: Float[Tensor, "u n d"], mask: Bool[Tensor, "u n"]) -> Tokens:
        times = (torch.arange(features.shape[1], device=features.device) + 0.5) * self.seconds_per_token
        values = layer_norm_no_affine(features)
        values = values + sinusoidal_time_embedding(times, values.shape[2], amplitude=HIGH_AMPLITUDE)
        return Tokens(values, mask, times.expand(values.shape[0], -1))
