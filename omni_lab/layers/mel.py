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


def power_spectrogram_matmul(
    waves: Float[Tensor, "u s"], window: Float[Tensor, " w"], *, last: bool = False
) -> Float[Tensor, "u k t"]:
    """The power spectrogram, 257 bins every 160 samples, by matrix products; S a multiple of 160.

    A Fourier transform of 512 = 32 x 16 samples in two steps (Cooley and Tukey 1965). For exported models: the
    transform of ONNX Runtime is several times as slow.

    window: of at most 512 samples. last: also the frame around the end of the waveform.
    """
    hops = F.pad(waves, (256, 224 + HOP_LENGTH * last)).unflatten(1, (-1, HOP_LENGTH))  # a frame is 3.2 hops
    frames = torch.cat([hops[:, :-3], hops[:, 1:-2], hops[:, 2:-1], hops[:, 3:, :32]], dim=2)  # [U, F, 512]
    padded = F.pad(window, ((N_FFT - len(window)) // 2,) * 2)
    x = (frames * padded).unflatten(2, (32, 16)).transpose(2, 3)  # [U, F, 16, 32]: sample 16 * column + row

    def cos_sin(rows: Tensor, columns: Tensor, period: int) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * rows[:, None] * columns / period
        return angle.cos(), angle.sin()

    short, half = torch.arange(16.0), torch.arange(17.0)  # of 32 bins of a real signal 17 tell all
    cos, sin = cos_sin(torch.arange(32.0), half, 32)
    spectrum = x @ torch.cat([cos, -sin], dim=1)  # [U, F, 16, 17 + 17]
    real, imaginary = spectrum[..., :17], spectrum[..., 17:]
    cos, sin = cos_sin(short, half, N_FFT)
    both = torch.cat([real * cos + imaginary * sin, imaginary * cos - real * sin], dim=2).transpose(2, 3)
    cos, sin = cos_sin(short, short, 16)
    spectrum = both @ torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])  # [U, F, 17, 16 + 16]
    power = (spectrum[..., :16].square() + spectrum[..., 16:].square()).flatten(2)  # bin row + 32 * column
    bins = torch.arange(N_FFT // 2 + 1)
    bins = torch.where(bins % 32 < 17, bins, N_FFT - bins)  # the others are mirrored
    return power[..., bins % 32 * 16 + bins // 32].transpose(1, 2)
