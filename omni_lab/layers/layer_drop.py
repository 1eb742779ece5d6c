"""Residual layers that samples may skip: at random in training, then as a policy allocates them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import Tokens


class DroppableLayer(nn.Module):
    """A residual layer, of `Tokens` or of features [U, ...]. In training a batch skips it with probability `drop`
    (LayerDrop, Fan et al. 2020, section 3.2); under `allocate_layers` each entry runs it or not."""

    def __init__(self, layer: nn.Module, *, drop: float) -> None:
        super().__init__()
        self.layer = layer
        self.drop = drop
        self.keep: Float[Tensor, " u"] | None = None

    def forward(self, x: Tokens | Tensor) -> Tokens | Tensor:
        if self.keep is None:
            return x if self.training and torch.rand(()) < self.drop else self.layer(x)
        before = x.values if isinstance(x, Tokens) else x
        if self.keep.requires_grad:  # a gate, whose gradient is what the layer adds
            after = self.layer(x)
            after = after.values if isinstance(x, Tokens) else after
            after = before + self.keep.view(-1, *[1] * (before.ndim - 1)) * (after - before)
        else:  # what is skipped is not computed
            rows = self.keep.nonzero().squeeze(1)
            if len(rows) == 0:
                return x
            part = self.layer(Tokens(before[rows], x.mask[rows]) if isinstance(x, Tokens) else before[rows])
            after = before.index_copy(0, rows, part.values if isinstance(part, Tokens) else part)
        return x.with_values(after) if isinstance(x, Tokens) else after


def make_droppable(blocks: nn.Sequential, *, drop: float) -> None:
    """Wraps every layer."""
    for i, block in enumerate(blocks):
        blocks[i] = DroppableLayer(block, drop=drop)


@contextmanager
def allocate_layers(layers: Sequence[DroppableLayer], keep: Float[Tensor, "u k"]) -> Iterator[None]:
    """Inside, entry u runs layer k if keep[u, k] is 1. With a gradient all run, and keep is their gate."""
    try:
        for k, layer in enumerate(layers):
            layer.keep = keep[:, k]
        yield
    finally:
        for layer in layers:
            layer.keep = None
