"""Sound: wav2vec 2.0 (Baevski et al. 2020) or a mel spectrogram, a transformer, and pooling to few tokens in time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchaudio.functional import resample

from omni_lab.batch import SAMPLE_RATE, Tokens
from omni_lab.config.schema import AudioConfig
from omni_lab.layers.attention import TransformerBlock
from omni_lab.layers.mel import N_MELS, LogMelSpectrogram
from omni_lab.layers.positional import HIGH_AMPLITUDE, layer_norm_no_affine, sinusoidal_time_embedding

MIN_SAMPLES = 1600  # samples, a tenth of a second: the least that the convolutions can take
STEM_HOP_LENGTH = 640  # samples per frame of the mel front end, after its convolutions: 25 a second


class MelFrontEnd(nn.Module):
    """Log-mel spectrogram, normalised per sound, two convolutions to 25 frames a second, and a transformer. [U, S] to
    [U, F, dim]."""

    frame_seconds = STEM_HOP_LENGTH / SAMPLE_RATE

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.mel = LogMelSpectrogram()
        self.dim = config.dim
        self.stem = nn.ModuleList(
            nn.Conv1d(width, config.dim, kernel_size=3, stride=2) for width in (N_MELS, config.dim)
        )
        self.local_convs = nn.ModuleList(
            nn.Conv1d(config.dim, config.dim, kernel_size=5, padding=2) for _ in range(config.num_local_convs)
        )
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(dim=config.dim, num_heads=config.num_heads, mlp_ratio=2.0, dropout=config.dropout)
                for _ in range(config.depth)
            )
        )

    def frames(self, lengths: Int[Tensor, " u"]) -> Int[Tensor, " u"]:
        return (lengths + STEM_HOP_LENGTH - 1) // STEM_HOP_LENGTH

    def forward(self, waves: Float[Tensor, "u s"], lengths: Int[Tensor, " u"]) -> Float[Tensor, "u f d"]:
        return self.blocks(Tokens(*self.shallow(waves, lengths))).values

    def shallow(
        self, waves: Float[Tensor, "u s"], lengths: Int[Tensor, " u"]
    ) -> tuple[Float[Tensor, "u f d"], Bool[Tensor, "u f"]]:
        """What the convolutions make of a sound, and which frames are real."""
        x = self.mel(F.pad(waves, (0, -waves.shape[1] % STEM_HOP_LENGTH)))  # [U, 64, 10 ms]
        real = torch.arange(x.shape[2], device=x.device) * 160 < lengths[:, None]  # [U, 10 ms]
        count = real.sum(1).clamp(min=1)[:, None, None] * x.shape[1]
        mean = (x * real[:, None]).sum((1, 2), keepdim=True) / count
        spread = (((x - mean) * real[:, None]) ** 2).sum((1, 2), keepdim=True) / count
        x = (x - mean) / (spread + 1e-3).sqrt()
        for convolution in self.stem:
            # what lies behind the end adds nothing; before the beginning is silence
            x = F.gelu(convolution(F.pad(x * real[:, None], (1, 0))))
            real = real[:, ::2]
        for convolution in self.local_convs:
            x = x + F.gelu(convolution(x * real[:, None]))
        x = x.transpose(1, 2)  # [U, F, dim]
        seconds = (torch.arange(x.shape[1], device=x.device) + 0.5) * self.frame_seconds
        return x + sinusoidal_time_embedding(seconds, x.shape[2]), real


class Wav2Vec2FrontEnd(nn.Module):
    """torchaudio's wav2vec 2.0, small and untrained, or a published bundle by name. [U, S] to [U, F, dim].

    Layer norms, not group norms, in its convolutions: what stands behind the end of a sound must not change it.
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
        stride = 1
        for layer in self.model.feature_extractor.conv_layers:
            stride *= layer.stride
        self.frame_seconds = stride / SAMPLE_RATE

    def frames(self, lengths: Int[Tensor, " u"]) -> Int[Tensor, " u"]:
        for layer in self.model.feature_extractor.conv_layers:
            lengths = torch.div(lengths - layer.kernel_size, layer.stride, rounding_mode="floor") + 1
        return lengths.clamp(min=1)

    def forward(self, waves: Float[Tensor, "u s"], lengths: Int[Tensor, " u"]) -> Float[Tensor, "u f d"]:
        real = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
        count = lengths[:, None].clamp(min=1)
        mean = waves.sum(1, keepdim=True) / count
        spread = (((waves - mean) * real) ** 2).sum(1, keepdim=True) / count
        return self.model((waves - mean) * real / (spread + 1e-7).sqrt(), lengths)[0]


class AudioEncoder(nn.Module):
    """Waveforms [U, S] float32 at `config.input_rate` to `Tokens` [U, N, out_dim], N = ceil(seconds /
    seconds_per_token), with their times: the middle of what each token covers, in seconds."""

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

    @property
    def seconds_per_token(self) -> float:
        return self.pool * self.front.frame_seconds

    def forward(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Tokens:
        waves, lengths = self._heard(waves, mask)
        frames = self.front(waves, lengths)
        real = torch.arange(frames.shape[1], device=frames.device) < self.front.frames(lengths)[:, None]
        return self._said(frames, real)

    def lower(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Tokens:
        """What the mel front end's convolutions make of each sound, 25 frames a second with their times."""
        assert isinstance(self.front, MelFrontEnd)
        frames, real = self.front.shallow(*self._heard(waves, mask))
        times = (torch.arange(frames.shape[1], device=frames.device) + 0.5) * self.front.frame_seconds
        return Tokens(frames, real, times.expand(frames.shape[0], -1))

    def upper(self, lower: Tokens) -> Tokens:
        """What the whole encoder makes of it: `upper` of `lower` is `forward`."""
        assert isinstance(self.front, MelFrontEnd)
        return self._said(self.front.blocks(lower).values, lower.mask)

    def forward_early_exit(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Tokens:
        """The same tokens from the mel spectrogram and its convolutions alone, without the transformer."""
        assert self.early_exit is not None
        lower = self.lower(waves, mask)
        pooled, real = self._pooled(lower.values, lower.mask)
        return self._tokens(self.early_exit(F.layer_norm(pooled, pooled.shape[-1:])), real)

    def _said(self, frames: Float[Tensor, "u f d"], real: Bool[Tensor, "u f"]) -> Tokens:
        pooled, real = self._pooled(frames, real)
        return self._tokens(self.project(self.norm(pooled)), real)

    def _heard(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> tuple[Tensor, Int[Tensor, " u"]]:
        """The waveforms at the inner rate, silent behind their ends, and their lengths."""
        if self.sample_rate != SAMPLE_RATE:
            waves = resample(waves, self.sample_rate, SAMPLE_RATE)
        lengths = torch.div(mask.sum(1) * SAMPLE_RATE, self.sample_rate, rounding_mode="floor")
        waves = waves * (torch.arange(waves.shape[1], device=waves.device) < lengths[:, None])
        if waves.shape[1] < MIN_SAMPLES:
            waves = F.pad(waves, (0, MIN_SAMPLES - waves.shape[1]))
        return waves, lengths

    def _pooled(
        self, frames: Float[Tensor, "u f d"], real: Bool[Tensor, "u f"]
    ) -> tuple[Float[Tensor, "u n d"], Bool[Tensor, "u n"]]:
        """Means over the real frames of each token, and which tokens have any."""
        lacking = -frames.shape[1] % self.pool
        frames = F.pad(frames, (0, 0, 0, lacking)).unflatten(1, (-1, self.pool))  # [U, N, pool, dim]
        weight = F.pad(real, (0, lacking)).unflatten(1, (-1, self.pool))[..., None].to(frames.dtype)
        return (frames * weight).sum(2) / weight.sum(2).clamp(min=1), weight.squeeze(-1).any(dim=2)

    def _tokens(self, said: Float[Tensor, "u n d"], real: Bool[Tensor, "u n"]) -> Tokens:
        times = (torch.arange(said.shape[1], device=said.device) + 0.5) * self.seconds_per_token
        values = layer_norm_no_affine(said) + sinusoidal_time_embedding(times, said.shape[2], amplitude=HIGH_AMPLITUDE)
        return Tokens(values, real, times.expand(values.shape[0], -1))
