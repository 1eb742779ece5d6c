"""Tiny encoders: about two percent of the FLOPs of the encoders beside which they are trained, and the same tokens.

They look at a coarse copy of the input. Routers use them to decide whether the full encoder is worth its cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from omni_lab.batch import SAMPLE_RATE

BANDS = 16  # of the tiny spectrogram
POOLED_RATE = 4000  # Hz: waveforms are averaged down to it
WINDOW, HOP = 256, 80  # samples at that rate: frames of 64 ms, every 20 ms


class TinyVision(nn.Module):
    """Images [U, 3, H, W] uint8 to features [U, rows * columns, out_dim], one per cell of a grid.

    Images are averaged to four by four pixels a cell, and normalised per image; two convolutions of stride 2 follow. To
    each cell a summary of all is added.
    """

    def __init__(self, channels: Sequence[int], *, grid: tuple[int, int], out_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.first = nn.Conv2d(3, channels[0], 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels[0], channels[1], 3, stride=2, padding=1)
        self.project = nn.Linear(channels[1], out_dim)
        self.summary = nn.Linear(grid[0] * grid[1] * channels[1], out_dim)

    def forward(self, images: UInt8[Tensor, "u 3 h w"]) -> Float[Tensor, "u n d"]:
        x = F.adaptive_avg_pool2d(images / 127.5 - 1, (4 * self.grid[0], 4 * self.grid[1]))
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 0.05)
        x = F.gelu(self.second(F.gelu(self.first(x)))).flatten(2).transpose(1, 2)  # [U, N, C]
        return self.project(x) + self.summary(x.flatten(1))[:, None]


class TinyAudio(nn.Module):
    """Waveforms [U, S] at 16 kHz to features [U, N, out_dim], one per `samples_per_token`.

    Log energies in 16 bands up to 2 kHz every 20 ms, normalised per waveform; two convolutions of stride 2 follow, and
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
        return self.project(F.adaptive_avg_pool1d(x, count).transpose(1, 2))


def band_energies(waves: Float[Tensor, "u s"], window: Float[Tensor, " w"]) -> Float[Tensor, "u k t"]:
    """Log energies in `BANDS` bands of equal width up to 2 kHz, every 20 ms, of mean 0 and variance 1 per waveform."""
    pooled = F.avg_pool1d(waves[:, None], SAMPLE_RATE // POOLED_RATE)[:, 0]
    spectrum = torch.stft(pooled, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)  # [U, 129, T]
    power = spectrum[:, 1:].abs().square().unflatten(1, (BANDS, -1)).mean(2)
    x = (power + 1e-6).log()
    return (x - x.mean((1, 2), keepdim=True)) / (x.var((1, 2), keepdim=True) + 1e-3).sqrt()
