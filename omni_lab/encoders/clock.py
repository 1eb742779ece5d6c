"""What a time looks like to attention: the same for every modality that has a clock."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

SHORTEST, LONGEST = 0.1, 20.0  # seconds per turn of the fastest and the slowest wave


def time_features(times: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape {dim}"]:
    """Sines and cosines of `times` in seconds (Vaswani et al. 2017, section 3.5, with periods that suit speech).

    So tokens of one moment look alike whichever encoder made them. Amplitude 0.3, so that they do not drown what a
    token says. dim must be even.
    """
    periods = torch.logspace(math.log10(SHORTEST), math.log10(LONGEST), dim // 2, device=times.device)
    angles = 2 * math.pi * times.unsqueeze(-1) / periods
    return 0.3 * torch.cat([angles.sin(), angles.cos()], dim=-1)


def place_features(rows: int, columns: int, dim: int) -> Float[Tensor, "{rows*columns} {dim}"]:
    """The same for the cells of a grid, row by row: half of the channels tell the height, half the width, both from
    0 to 1 second's worth, so that cells of a picture and of a frame at one place look alike. dim must divide by 4."""
    down, across = (torch.arange(n) / max(1, n - 1) for n in (rows, columns))
    vertical = time_features(down, dim // 2).repeat_interleave(columns, dim=0)
    return torch.cat([vertical, time_features(across, dim // 2).repeat(rows, 1)], dim=1)
