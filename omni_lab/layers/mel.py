"""TODO"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import SAMPLE_RATE

N_MELS = 64


class LogMelSpectrogram(nn.Module):
    """Log energies in `BANDS` mel bands every 10 ms. [U, S], S a multiple of 160, to [U, BANDS, S / 160]. Beyond its
    ends a sound is silent, whether or not it was padded. Has no weights, and nothing in the state dict."""

    bank: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        bank = torchaudio.functional.melscale_fbanks(257, 20.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE)  # [257, BANDS]
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(400), persistent=False)

    def forward(self, waves: Float[Tensor, "u s"]) -> Float[Tensor, "u m t"]:
        with torch.autocast(waves.device.type, enabled=False):
            if torch.compiler.is_exporting():
                power = power_spectrogram_matmul(waves.float(), self.window)
            else:
                power = torchaudio.functional.spectrogram(
                    waves.float(), 0, self.window, 512, 160, 400, 2.0, False, pad_mode="constant"
                )[..., :-1]
            return (self.bank.T @ power + 1e-6).log()


def power_spectrogram_matmul(waves: Float[Tensor, "u s"], window: Float[Tensor, " w"]) -> Float[Tensor, "u k t"]:
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


HOP_LENGTH = 160  # samples a frame: 10 ms
WIN_LENGTH, BINS = 400, 257
