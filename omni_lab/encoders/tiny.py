"""Tiny encoders: under two percent of the FLOPs of the encoders beside which they are trained, and the same tokens.

They look at a coarse copy of the input. Routers use them to decide whether the full encoder is worth its cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from omni_lab.layers.mel import power_spectrogram_matmul

BANDS = 32  # of the tiny spectrogram
POOLED_RATE = 8000  # Hz: waveforms are averaged down to it, two samples each
WINDOW, HOP = 512, 160  # samples at that rate: frames of 64 ms, every 20 ms


class TinyVision(nn.Module):
    """Images [U, 3, H, W] uint8 to features [U, rows * columns, out_dim], one per cell of a grid.

    Images are averaged to four by four pixels a cell, and normalised per image; three convolutions follow, two of them
    of stride 2. To each cell a summary of all is added.
    """

    def __init__(self, channels: Sequence[int], *, grid: tuple[int, int], out_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.convolutions = _convolutions(channels, strides=(1, 2, 2))
        self.project = nn.Linear(channels[-1], out_dim)
        self.summary = nn.Linear(grid[0] * grid[1] * channels[-1], out_dim)

    def forward(self, images: UInt8[Tensor, "u 3 h w"]) -> Float[Tensor, "u n d"]:
        x = F.adaptive_avg_pool2d(images / 127.5 - 1, (4 * self.grid[0], 4 * self.grid[1]))
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 0.05)
        for convolution in self.convolutions:
            x = F.gelu(convolution(x))
        x = x.flatten(2).transpose(1, 2)  # [U, N, C]
        return self.project(x) + self.summary(x.flatten(1))[:, None]


class TinyVideo(nn.Module):
    """Video [U, F, 3, h, w] uint8 to features [U, F, grid * grid, out_dim].

    Every second frame is looked at, and stands for the next one too: averaged to eight by eight pixels a cell,
    normalised per video, through three convolutions, two of them of stride 2, and averaged per cell; then each cell
    through one convolution over three such frames, which sees motion.
    """

    def __init__(self, channels: Sequence[int], *, grid: int, out_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.convolutions = _convolutions(channels, strides=(2, 2, 1))
        self.over_time = nn.Conv1d(channels[-1], channels[-1], 3, padding=1)
        self.project = nn.Linear(channels[-1], out_dim)
        self.summary = nn.Linear(grid * grid * channels[-1], out_dim)

    def forward(self, video: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Float[Tensor, "u f c d"]:
        """mask: True for every real frame; the others count as the mean of the video."""
        size, (frames, real) = 8 * self.grid, (video[:, ::2], mask[:, ::2, None, None, None])
        x = F.adaptive_avg_pool2d(frames.flatten(0, 1) / 127.5 - 1, (size, size)).unflatten(0, frames.shape[:2])
        count = real.sum((1, 2, 3, 4), keepdim=True).clamp(min=1) * 3 * size**2
        x = (x - (x * real).sum((1, 2, 3, 4), keepdim=True) / count) * real
        x = (x / (x.square().sum((1, 2, 3, 4), keepdim=True) / count + 0.0025).sqrt()).flatten(0, 1)
        for convolution in self.convolutions:
            x = F.gelu(convolution(x))
        cells = F.adaptive_avg_pool2d(x, self.grid).flatten(2).unflatten(0, frames.shape[:2])  # [U, F / 2, C, c]
        tracks = cells.permute(0, 3, 2, 1).flatten(0, 1)  # [U * c, C, F / 2]
        tracks = tracks + F.gelu(self.over_time(tracks))
        x = tracks.unflatten(0, (video.shape[0], -1)).permute(0, 3, 1, 2)  # [U, F / 2, c, C]
        x = self.project(x) + self.summary(x.flatten(2))[:, :, None]
        return torch.stack([x, x], dim=2).flatten(1, 2)[:, : video.shape[1]]


class TinyAudio(nn.Module):
    """Waveforms [U, S] at 16 kHz to features [U, N, out_dim], one per `samples_per_token`.

    Log energies in 32 bands up to 4 kHz every 20 ms, normalised per waveform; two convolutions of stride 2 follow, and
    one over five of their frames.
    """

    window: Tensor

    def __init__(self, channels: Sequence[int], *, samples_per_token: int, out_dim: int) -> None:
        super().__init__()
        self.samples_per_token = samples_per_token
        self.first = nn.Conv1d(BANDS, channels[0], 5, stride=2, padding=2)
        self.second = nn.Conv1d(channels[0], channels[1], 5, stride=2, padding=2)
        self.context = nn.Conv1d(channels[1], channels[1], 5, padding=2)
        self.project = nn.Linear(channels[1], out_dim)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, waves: Float[Tensor, "u s"]) -> Float[Tensor, "u n d"]:
        count = -(-waves.shape[1] // self.samples_per_token)
        padded = F.pad(waves, (0, count * self.samples_per_token - waves.shape[1]))
        x = F.gelu(self.second(F.gelu(self.first(band_energies(padded, self.window)))))
        x = x + F.gelu(self.context(x))
        if not torch.compiler.is_exporting():
            return self.project(F.adaptive_avg_pool1d(x, count).transpose(1, 2))
        frames, n = x.shape[2], torch.arange(count)  # in a graph neither length is known: the same as a product
        first, end = n * frames // count, ((n + 1) * frames + count - 1) // count
        t = torch.arange(frames)[:, None]
        inside = ((t >= first) & (t < end)).float()  # [T, N]
        return self.project((x @ (inside / inside.sum(0))).transpose(1, 2))


def band_energies(waves: Float[Tensor, "u s"], window: Float[Tensor, " w"]) -> Float[Tensor, "u k t"]:
    """Log energies in `BANDS` bands of equal width up to 4 kHz, every 20 ms, of mean 0 and variance 1 per waveform."""
    pooled = (waves[:, :-1:2] + waves[:, 1::2]) / 2  # `avg_pool1d` takes twelve times as long
    if torch.compiler.is_exporting():
        power = power_spectrogram_matmul(pooled, window, last=True)[:, 1:].unflatten(1, (BANDS, -1)).mean(2)
    else:
        spectrum = torch.stft(pooled, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
        parts = torch.view_as_real(spectrum.transpose(1, 2)[:, :, 1:]).flatten(2).unflatten(2, (BANDS, -1))
        power = torch.linalg.vector_norm(parts, dim=3).square().transpose(1, 2) * (2 / parts.shape[3])  # [U, K, T]
    x = (power + 1e-6).log()
    return (x - x.mean((1, 2), keepdim=True)) / (x.var((1, 2), keepdim=True) + 1e-3).sqrt()


def _convolutions(channels: Sequence[int], *, strides: Sequence[int]) -> nn.ModuleList:
    if len(channels) != len(strides):
        raise ValueError(f"tiny_channels must be those of {len(strides)} convolutions: got {tuple(channels)}")
    layers = zip((3, *channels[:-1]), channels, strides, strict=True)
    return nn.ModuleList(nn.Conv2d(i, o, 3, stride=stride, padding=1) for i, o, stride in layers)
