"""Log-mel spectrograms of 16 kHz waveforms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import SAMPLE_RATE

N_MELS, N_FFT = 64, 512
HOP_LENGTH, WIN_LENGTH = 160, 400  # samples: a frame every 10 ms, from a window of 25 ms


class LogMelSpectrogram(nn.Module):
    """Log energies of waveforms [U, S] in `N_MELS` mel bands every 10 ms, [U, N_MELS, S / 160]; S a multiple of 160.

    A waveform counts as silent beyond its ends, padded or not. No weights, nothing in the state dict.
    """

    bank: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        bank = torchaudio.functional.melscale_fbanks(N_FFT // 2 + 1, 20.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE)
        self.register_buffer("bank", bank, persistent=False)  # [257, N_MELS]
        self.register_buffer("window", torch.hann_window(WIN_LENGTH), persistent=False)

    def forward(self, waves: Float[Tensor, "u s"]) -> Float[Tensor, "u m t"]:
        with torch.autocast(waves.device.type, enabled=False):
            if torch.compiler.is_exporting():
                power = power_spectrogram_matmul(waves.float(), self.window)
            else:
                power = torchaudio.functional.spectrogram(
                    waves.float(), 0, self.window, N_FFT, HOP_LENGTH, WIN_LENGTH, 2.0, False, pad_mode="constant"
                )[..., :-1]
            return (self.bank.T @ power + 1e-6).log()


def power_spectrogram_matmul(waves: Float[Tensor, "u s"], window: Float[Tensor, " w"]) -> Float[Tensor, "u k t"]:
    """The power spectrogram, 257 bins every 160 samples, by matrix products; S a multiple of 160, window 400 long.

    A Fourier transform of 512 = 16 x 32 samples in two steps (Cooley and Tukey 1965). For exported models: the
    transform of ONNX Runtime is several times as slow.
    """
    hops = F.pad(waves, (256, 224)).unflatten(1, (-1, HOP_LENGTH))  # a frame is 3.2 hops
    frames = torch.cat([hops[:, :-3], hops[:, 1:-2], hops[:, 2:-1], hops[:, 3:, :32]], dim=2)  # [U, F, 512]
    x = (frames * F.pad(window, (56, 56))).unflatten(2, (16, 32)).transpose(2, 3)  # [U, F, 32, 16]

    def cos_sin(rows: Tensor, columns: Tensor, period: int) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * rows[:, None] * columns / period
        return angle.cos(), angle.sin()

    short, long = torch.arange(16.0), torch.arange(32.0)
    cos, sin = cos_sin(short, short, 16)
    real, imaginary = x @ cos, -(x @ sin)  # [U, F, 32, 16]
    cos, sin = cos_sin(long, short, 512)
    real, imaginary = real * cos + imaginary * sin, imaginary * cos - real * sin
    cos, sin = cos_sin(long, torch.arange(17.0), 32)
    both = torch.cat([real, imaginary], dim=2).transpose(2, 3)  # [U, F, 16, 64]
    spectrum = both @ torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])  # [U, F, 16, 17 + 17]
    power = spectrum[..., :17].square() + spectrum[..., 17:].square()
    return power.transpose(2, 3).flatten(2)[..., :257].transpose(1, 2)
