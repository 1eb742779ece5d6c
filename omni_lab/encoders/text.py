"""The text encoder: a token embedding and a small transformer."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.config.models import TextConfig
from omni_lab.layers.attention import transformer_blocks
from omni_lab.layers.positional import HIGH_AMPLITUDE, layer_norm_no_affine


class TextEncoder(nn.Module):
    """Token ids [U, T] to `Tokens` [U, T, out_dim]: embedding + learned positions, transformer, projection.

    Learned positions are added to the output too, at the scale of its content.
    """

    def __init__(self, config: TextConfig, *, vocab_size: int, out_dim: int) -> None:
        super().__init__()
        dim, self.max_length = config.dim, config.max_length
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)  # no larger than the positions, or word order would be drowned
        self.position = nn.Parameter(torch.randn(config.max_length, dim) * 0.02)
        self.blocks = transformer_blocks(config.depth, dim=dim, num_heads=config.num_heads, dropout=config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, out_dim)
        self.order = nn.Parameter(torch.randn(config.max_length, out_dim) * HIGH_AMPLITUDE)

    def forward(self, ids: Int[Tensor, "u t"], mask: Bool[Tensor, "u t"]) -> Tokens:
        if ids.shape[1] > self.max_length:
            raise ValueError(f"text must be at most {self.max_length} tokens long: got {ids.shape[1]}")
        x = self.embedding(ids) + self.position[: ids.shape[1]]  # [U, T, d]
        hidden = self.blocks(Tokens(x, mask))
        values = layer_norm_no_affine(self.project(self.norm(hidden.values))) + self.order[: ids.shape[1]]
        return Tokens(values, mask)
