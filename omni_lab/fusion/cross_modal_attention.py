"""One cross-modal path: the query comes from one modality, keys and values from another (MulT, Tsai et al. 2019, eq. 2-3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.layers.attention import AttentionOutput, MaskedMultiHeadAttention


class CrossModalAttention(nn.Module):
    """One path: norms, projections, output and gate of its own. Returns what is added to the query stream.

    A sample that lacks the key modality (all its context tokens masked) receives exactly zero. gated: multiply by a
    soft gate between 0 and 2, worked out from the mean of both ends; it begins at 1.
    """

    def __init__(self, *, dim: int, num_heads: int, gated: bool = False) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.attention = MaskedMultiHeadAttention(dim=dim, num_heads=num_heads)
        for layer in (self.attention.query, self.attention.value, self.attention.out):
            nn.init.xavier_uniform_(layer.weight)  # as loud as what it is added to
            nn.init.zeros_(layer.bias)
        self.attention.key.load_state_dict(self.attention.query.state_dict())  # at first, like attends to like
        self.gate = nn.Linear(2 * dim, 1) if gated else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, query: Tokens, context: Tokens, *, need_weights: bool = False) -> AttentionOutput:
        normed = context.with_values(self.norm_context(context.values))
        listening = query.with_values(self.norm_query(query.values))
        said = self.attention(listening.values, normed, need_weights=need_weights)
        if self.gate is None:
            return said
        opening = self.soft_gate(listening.mean_pool(), normed.mean_pool())
        return said._replace(values=said.values * opening[:, None, None])

    def soft_gate(self, query: Float[Tensor, "b d"], context: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The soft gate, from the means of the normed tokens of both ends."""
        assert self.gate is not None
        return 2 * self.gate(torch.cat([query, context], dim=1)).sigmoid().squeeze(1)
