"""Sound: wav2vec 2.0 (Baevski et al. 2020) or a mel spectrogram, a transformer, and pooling to few tokens in time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchaudio.functional import resample

from omni_lab.attention import TransformerBlock
from omni_lab.config import AudioConfig
from omni_lab.encoders.clock import LOUD, time_features, unit_scale
from omni_lab.modalities import Tokens

RATE = 16_000  # Hz, inside
BANDS = 64
SHORTEST = 1600  # samples, a tenth of a second: the least that the convolutions can take
HOP = 640  # samples per frame of the mel front end, after its convolutions: 25 a second


class LogMel(nn.Module):
    """Log energies in `BANDS` mel bands every 10 ms. [U, S], S a multiple of 160, to [U, BANDS, S / 160]. Beyond its
    ends a sound is silent, whether or not it was padded. Has no weights, and nothing in the state dict."""

    bank: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        bank = torchaudio.functional.melscale_fbanks(257, 20.0, RATE / 2, BANDS, RATE)  # [257, BANDS]
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(400), persistent=False)

    def forward(self, waves: Float[Tensor, "u s"]) -> Float[Tensor, "u m t"]:
        with torch.autocast(waves.device.type, enabled=False):
            if torch.compiler.is_exporting():
                power = power_by_products(waves.float(), self.window)
            else:
                power = torchaudio.functional.spectrogram(
                    waves.float(), 0, self.window, 512, 160, 400, 2.0, False, pad_mode="constant"
                )[..., :-1]
            return (self.bank.T @ power + 1e-6).log()


def power_by_products(waves: Float[Tensor, "u s"], window: Float[Tensor, " w"]) -> Float[Tensor, "u k t"]:
    """The power spectrogram, 257 bins every 160 samples, by two matrix products: a Fourier transform of 512 = 16 x 32
    samples in two steps (Cooley and Tukey 1965). For exported models: ONNX Runtime's own transform is several times as
    slow as theirs. waves: [U, S], S a multiple of 160. window: 400 long."""
    hops = F.pad(waves, (256, 224)).unflatten(1, (-1, 160))  # a frame is 3.2 hops
    frames = torch.cat([hops[:, :-3], hops[:, 1:-2], hops[:, 2:-1], hops[:, 3:, :32]], dim=2)  # [U, F, 512]
    x = (frames * F.pad(window, (56, 56))).unflatten(2, (16, 32)).transpose(2, 3)  # [U, F, 32, 16]

    def wave(rows: Tensor, columns: Tensor, period: int) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * rows[:, None] * columns / period
        return angle.cos(), angle.sin()

    short, long = torch.arange(16.0), torch.arange(32.0)
    cos, sin = wave(short, short, 16)
    real, imaginary = x @ cos, -(x @ sin)  # [U, F, 32, 16]
    cos, sin = wave(long, short, 512)
    real, imaginary = real * cos + imaginary * sin, imaginary * cos - real * sin
    cos, sin = wave(long, torch.arange(17.0), 32)
    both = torch.cat([real, imaginary], dim=2).transpose(2, 3)  # [U, F, 16, 64]
    spectrum = both @ torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])  # [U, F, 16, 17 + 17]
    power = spectrum[..., :17].square() + spectrum[..., 17:].square()
    return power.transpose(2, 3).flatten(2)[..., :257].transpose(1, 2)


class MelFrontEnd(nn.Module):
    """Log-mel spectrogram, normalised per sound, two convolutions to 25 frames a second, and a transformer. [U, S] to
    [U, F, dim]."""

    frame_seconds = HOP / RATE

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.mel = LogMel()
        self.dim = config.dim
        self.stem = nn.ModuleList(
            nn.Conv1d(width, config.dim, kernel_size=3, stride=2) for width in (BANDS, config.dim)
        )
        self.context = nn.ModuleList(
            nn.Conv1d(config.dim, config.dim, kernel_size=5, padding=2) for _ in range(config.context)
        )
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(dim=config.dim, heads=config.heads, mlp_ratio=2.0, dropout=config.dropout)
                for _ in range(config.depth)
            )
        )

    def frames(self, lengths: Int[Tensor, " u"]) -> Int[Tensor, " u"]:
        return (lengths + HOP - 1) // HOP

    def forward(self, waves: Float[Tensor, "u s"], lengths: Int[Tensor, " u"]) -> Float[Tensor, "u f d"]:
        return self.blocks(Tokens(*self.shallow(waves, lengths))).values

    def shallow(
        self, waves: Float[Tensor, "u s"], lengths: Int[Tensor, " u"]
    ) -> tuple[Float[Tensor, "u f d"], Bool[Tensor, "u f"]]:
        """What the convolutions make of a sound, and which frames are real."""
        x = self.mel(F.pad(waves, (0, -waves.shape[1] % HOP)))  # [U, 64, 10 ms]
        real = torch.arange(x.shape[2], device=x.device) * 160 < lengths[:, None]  # [U, 10 ms]
        count = real.sum(1).clamp(min=1)[:, None, None] * x.shape[1]
        mean = (x * real[:, None]).sum((1, 2), keepdim=True) / count
        spread = (((x - mean) * real[:, None]) ** 2).sum((1, 2), keepdim=True) / count
        x = (x - mean) / (spread + 1e-3).sqrt()
        for convolution in self.stem:
            # what lies behind the end adds nothing; before the beginning is silence
            x = F.gelu(convolution(F.pad(x * real[:, None], (1, 0))))
            real = real[:, ::2]
        for convolution in self.context:
            x = x + F.gelu(convolution(x * real[:, None]))
        x = x.transpose(1, 2)  # [U, F, dim]
        seconds = (torch.arange(x.shape[1], device=x.device) + 0.5) * self.frame_seconds
        return x + time_features(seconds, x.shape[2]), real


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
                encoder_num_heads=config.heads,
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
        self.frame_seconds = stride / RATE

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
        self.input_rate = config.input_rate
        self.front = MelFrontEnd(config) if config.front_end == "mel" else Wav2Vec2FrontEnd(config)
        self.pool = max(1, round(config.seconds_per_token / self.front.frame_seconds))
        self.norm = nn.LayerNorm(self.front.dim)
        self.project = nn.Linear(self.front.dim, out_dim)
        if config.early_exit and config.front_end != "mel":
            raise ValueError(f"only the mel front end has an early exit: got front_end {config.front_end!r}")
        self.exit = nn.Linear(self.front.dim, out_dim) if config.early_exit else None

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

    def light(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Tokens:
        """The same tokens from the mel spectrogram and its convolutions alone, without the transformer."""
        assert self.exit is not None
        lower = self.lower(waves, mask)
        pooled, real = self._pooled(lower.values, lower.mask)
        return self._tokens(self.exit(F.layer_norm(pooled, pooled.shape[-1:])), real)

    def _said(self, frames: Float[Tensor, "u f d"], real: Bool[Tensor, "u f"]) -> Tokens:
        pooled, real = self._pooled(frames, real)
        return self._tokens(self.project(self.norm(pooled)), real)

    def _heard(self, waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> tuple[Tensor, Int[Tensor, " u"]]:
        """The waveforms at the inner rate, silent behind their ends, and their lengths."""
        if self.input_rate != RATE:
            waves = resample(waves, self.input_rate, RATE)
        lengths = torch.div(mask.sum(1) * RATE, self.input_rate, rounding_mode="floor")
        waves = waves * (torch.arange(waves.shape[1], device=waves.device) < lengths[:, None])
        if waves.shape[1] < SHORTEST:
            waves = F.pad(waves, (0, SHORTEST - waves.shape[1]))
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
        values = unit_scale(said) + time_features(times, said.shape[2], amplitude=LOUD)
        return Tokens(values, real, times.expand(values.shape[0], -1))
