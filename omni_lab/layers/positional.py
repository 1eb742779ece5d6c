"""What a time or a place looks like to attention: the same for every modality."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MIN_PERIOD, MAX_PERIOD = 0.1, 20.0  # seconds per turn of the fastest and the slowest wave
LOW_AMPLITUDE, HIGH_AMPLITUDE = 0.3, 0.9  # amplitudes


def sinusoidal_time_embedding(
    times: Float[Tensor, "*shape"], dim: int, *, amplitude: float = LOW_AMPLITUDE
) -> Float[Tensor, "*shape {dim}"]:
    """Sines and cosines of `times` in seconds (Vaswani et al. 2017, section 3.5, with periods that suit speech).

    So tokens of one moment look alike whichever encoder made them. dim must be even.
    """
    steps = max(1, dim // 2 - 1)  # listed here, so that exported models hold numbers in place of powers
    periods = torch.tensor(
        [MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** (i / steps) for i in range(dim // 2)], device=times.device
    )
    angles = 2 * math.pi * times.unsqueeze(-1) / periods
    return amplitude * torch.cat([angles.sin(), angles.cos()], dim=-1)


def sinusoidal_grid_embedding(
    rows: int, columns: int, dim: int, *, amplitude: float = LOW_AMPLITUDE
) -> Float[Tensor, "{rows*columns} {dim}"]:
    """The same for the cells of a grid, row by row: half of the channels tell the height, half the width, both from
    0 to 1 second's worth, so that cells of a picture and of a frame at one place look alike. dim must divide by 4."""
    down, across = (torch.arange(n) / max(1, n - 1) for n in (rows, columns))
    vertical, horizontal = (sinusoidal_time_embedding(x, dim // 2, amplitude=amplitude) for x in (down, across))
    return torch.cat([vertical.repeat_interleave(columns, dim=0), horizontal.repeat(rows, 1)], dim=1)


def layer_norm_no_affine(values: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """Layer norm without weights: what a token says is then as large in every modality, and training cannot let it
    outgrow the `LOUD` features of place and time that are added to it."""
    return F.layer_norm(values, values.shape[-1:])
