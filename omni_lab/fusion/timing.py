"""Two streams by one clock: what one of them says at the times of the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from omni_lab.modalities import Tokens


def align_by_time(
    source: Tokens, times: Float[Tensor, "b q"], mask: Bool[Tensor, "b q"], *, tolerance: float
) -> Tokens:
    """What `source` says at `times` [B, Q], in seconds; mask: [B, Q], which of them are asked for.

    Between two real tokens that both lie within `tolerance` seconds the value is interpolated linearly; where only one
    does, it is that token's; where none does (a gap, a stream that ended, a sample without one) it is zero and the
    mask False. So a tolerance of the source's own spacing interpolates everywhere but in gaps and at the ends.

    Returns one entry per sample, [B, Q, D] with `times`. Gradients reach the source's values, not the times. Raises
    ValueError if the source has no times, if those of a sample's real tokens do not ascend strictly, or if `tolerance`
    is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 seconds: got {tolerance}")
    source = source.expanded()
    if source.times is None:
        raise ValueError("source must have times: got None")
    row = torch.arange(len(source), device=mask.device).unsqueeze(1)  # [B, 1]
    order = source.mask.int().argsort(dim=1, descending=True, stable=True)  # [B, N], the real ones first
    real = source.mask.gather(1, order)
    clock = source.times.detach().gather(1, order).masked_fill(~real, torch.inf)
    descends = ~(clock[:, 1:] > clock[:, :-1]) & real[:, 1:]
    if descends.any():
        raise ValueError(
            "source.times must ascend strictly among the real tokens of each sample: "
            f"those of sample {int(descends.any(dim=1).nonzero()[0])} do not"
        )
    # one silent token at each end of time, so that every query has two neighbours
    clock = F.pad(F.pad(clock, (1, 0), value=-torch.inf), (0, 1), value=torch.inf)  # [B, N + 2]
    values = F.pad(source.values[row, order].masked_fill(~real.unsqueeze(-1), 0.0), (0, 0, 1, 1))  # [B, N + 2, D]

    seconds = times.detach().masked_fill(~mask, 0.0)
    later = torch.searchsorted(clock, seconds, right=True)  # [B, Q], the first token after each query
    since, until = seconds - clock[row, later - 1], clock[row, later] - seconds  # both >= 0
    between = torch.maximum(since, until) <= tolerance
    share = torch.where(between, since / (since + until), (until < since).to(since.dtype))  # [B, Q], of the later one
    found = mask & (torch.minimum(since, until) <= tolerance)
    mixed = torch.lerp(values[row, later - 1], values[row, later], share.unsqueeze(-1).to(values.dtype))  # [B, Q, D]
    return Tokens(mixed.masked_fill(~found.unsqueeze(-1), 0.0), found, times)
