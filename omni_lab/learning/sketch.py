"""A coarse sketch of what each token covers, for encoders to reproduce: contrast between names alone makes them forget
who speaks, what colour the ground is, and whatever else a name does not say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.functional import resample

from omni_lab.encoders import AudioEncoder
from omni_lab.encoders.audio import BANDS, RATE, LogMel
from omni_lab.modalities import Modality, OmniBatch, Tokens

WIDTHS = {Modality.IMAGE: 12, Modality.AUDIO: BANDS, Modality.VIDEO: 48}  # numbers per token


class Sketches(nn.Module):
    """Reads a sketch off the tokens of pictures, sounds and clips, linearly, and says how far off it is.

    A cell of a picture: the colours of its four quarters. A cell of a frame: of its sixteen sixteenths. A stretch of
    sound: the mean log energy in each mel band. All scaled to a spread of about one.
    """

    def __init__(self, encoders: nn.ModuleDict, *, dim: int) -> None:
        super().__init__()
        known = {name: encoder for name, encoder in encoders.items() if name in WIDTHS}
        self.read = nn.ModuleDict({name: nn.Linear(dim, WIDTHS[Modality(name)]) for name in known})
        audio = known.get("audio")
        self.samples_per_token = round(audio.seconds_per_token * RATE) if isinstance(audio, AudioEncoder) else 0
        self.input_rate = audio.input_rate if isinstance(audio, AudioEncoder) else RATE
        self.mel = LogMel()

    def forward(self, batch: OmniBatch, streams: dict[Modality, Tokens]) -> Float[Tensor, ""]:
        """Mean squared error over the real tokens, then over the modalities. streams: what `batch` was encoded as."""
        errors = []
        for modality in WIDTHS:
            if modality in streams:
                tokens = streams[modality]
                wanted = self._drawn(modality, batch.inputs[modality].values, tokens)
                off = (self.read[modality.value](tokens.values) - wanted).square().mean(dim=2)  # [U, N]
                errors.append((off * tokens.mask).sum() / tokens.mask.sum())
        return torch.stack(errors).mean()

    @torch.no_grad()
    def _drawn(self, modality: Modality, values: Tensor, tokens: Tokens) -> Float[Tensor, "u n w"]:
        count, length = tokens.mask.shape
        if modality is Modality.AUDIO:
            waves = values if self.input_rate == RATE else resample(values, self.input_rate, RATE)
            waves = F.pad(waves, (0, length * self.samples_per_token - waves.shape[1]))
            return F.adaptive_avg_pool1d(self.mel(waves), length).transpose(1, 2) / 4 + 1
        pictures = values.flatten(0, -4) / 255.0  # [U * F, 3, H, W]
        side = round((length * count / len(pictures)) ** 0.5)  # cells along an edge
        fine = round((WIDTHS[modality] / 3) ** 0.5)  # parts of a cell along an edge
        parts = F.adaptive_avg_pool2d(pictures, side * fine)
        cells = F.unfold(parts, fine, stride=fine).transpose(1, 2)  # [U * F, cells, 3 * fine * fine]
        return cells.reshape(count, length, -1) * 4 - 2
