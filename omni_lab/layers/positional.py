"""Features of time and place that are added to tokens, the same for every modality."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MIN_PERIOD, MAX_PERIOD = 0.1, 20.0  # seconds, of the fastest and the slowest sine
LOW_AMPLITUDE, HIGH_AMPLITUDE = 0.3, 0.9  # inside an encoder, and of the tokens that it returns


def sinusoidal_time_embedding(
    times: Float[Tensor, "*shape"], dim: int, *, amplitude: float = LOW_AMPLITUDE
) -> Float[Tensor, "*shape {dim}"]:
    """Sines and cosines of times (Vaswani et al. 2017, section 3.5, with periods that suit speech).

    Tokens of the same moment get the same features, whichever encoder made them. dim: even.
    """
    steps = max(1, dim // 2 - 1)  # a list of Python floats, so that exported models hold constants, not powers
    periods = torch.tensor(
        [MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** (i / steps) for i in range(dim // 2)], device=times.device
    )
    angles = 2 * math.pi * times.unsqueeze(-1) / periods
    return amplitude * torch.cat([angles.sin(), angles.cos()], dim=-1)


def sinusoidal_grid_embedding(
    rows: int, columns: int, dim: int, *, amplitude: float = LOW_AMPLITUDE
) -> Float[Tensor, "{rows*columns} {dim}"]:
    """Sines and cosines of the cells of a grid, row by row: half of the channels for the height, half for the width.

    Both run from 0 to 1, embedded as seconds, so that cells at the same place of an image and of a video frame get the
    same features. dim: divisible by 4.
    """
    down, across = (torch.arange(n) / max(1, n - 1) for n in (rows, columns))
    vertical, horizontal = (sinusoidal_time_embedding(x, dim // 2, amplitude=amplitude) for x in (down, across))
    return torch.cat([vertical.repeat_interleave(columns, dim=0), horizontal.repeat(rows, 1)], dim=1)


def layer_norm_no_affine(values: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """Layer norm without weights. It gives content features the same scale in every modality, so that training cannot
    let them outgrow the position features of `HIGH_AMPLITUDE` that are added to them."""
    return F.layer_norm(values, values.shape[-1:])
