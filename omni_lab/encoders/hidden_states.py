"""An adapter for encoders of other libraries: any module whose output has a `last_hidden_state`, as those of Hugging
Face's transformers have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni_lab.batch import SAMPLE_RATE, Modality, Tokens
from omni_lab.layers.positional import layer_norm_no_affine


class HiddenStateEncoder(nn.Module):
    """Values and mask of one modality to `Tokens` [U, N, out_dim].

    Images [U, 3, H, W] uint8 are resized to `image_size`, scaled to [0, 1], normalised, and given as `pixel_values`.
    Waveforms [U, S] at 16 kHz become zero mean and unit variance, and are given as `input_values`.
    Token ids [U, N] are given as `input_ids`, with an `attention_mask`.

    module: called with those names; its output has `last_hidden_state` [U, N, width].
    width: of it. prefix_tokens: so many of an image's tokens are no cells, such as a class token.
    image_size: height and width, pixels. mean, std: of the channels.
    samples_per_token: audio samples that one token covers.
    Raises ValueError for video, and for an image whose tokens are no square.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        modality: Modality,
        *,
        width: int,
        out_dim: int,
        image_size: int = 224,
        prefix_tokens: int = 1,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        samples_per_token: int = 320,
    ) -> None:
        super().__init__()
        if modality is Modality.VIDEO:
            raise ValueError("modality must be text, image or audio: got video")
        self.module, self.modality, self.prefix_tokens = module, modality, prefix_tokens
        self.image_size, self.sample_rate, self.samples_per_token = image_size, SAMPLE_RATE, samples_per_token
        self.project = nn.Linear(width, out_dim)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        if modality is Modality.IMAGE:
            with torch.no_grad():
                count = self._cells(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)).shape[1]
            side = math.isqrt(count)
            if side**2 != count:
                raise ValueError(f"an image of {image_size} px has {count} tokens: expected a square number of them")
            self.grid = (side, side)

    def forward(self, values: Tensor, mask: Tensor) -> Tokens:
        if self.modality is Modality.IMAGE:
            cells = self._cells(values)
            return Tokens(layer_norm_no_affine(self.project(cells)), mask.expand(-1, cells.shape[1]))
        if self.modality is Modality.TEXT:
            states = self.module(input_ids=values, attention_mask=mask.long()).last_hidden_state
            return Tokens(layer_norm_no_affine(self.project(states)), mask)
        real = mask.to(values.dtype)
        count = real.sum(1, keepdim=True).clamp(min=1)
        centred = (values - (values * real).sum(1, keepdim=True) / count) * real
        waves = centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        states = self.module(input_values=waves).last_hidden_state
        starts = torch.arange(states.shape[1], device=mask.device) * self.samples_per_token
        return Tokens(layer_norm_no_affine(self.project(states)), starts < mask.sum(1).clamp(min=1)[:, None])

    def _cells(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        pixels = images / 255
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        states = self.module(pixel_values=(pixels - self.mean) / self.std).last_hidden_state
        return states[:, self.prefix_tokens :]
