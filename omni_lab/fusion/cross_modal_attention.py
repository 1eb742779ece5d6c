"""One cross-modal path: the query comes from one modality, keys and values from another."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.layers.attention import AttentionOutput, MaskedMultiHeadAttention


class CrossModalAttention(nn.Module):
    """One path with its own norms, projections, output layer and gate (MulT, Tsai et al. 2019, eq. 2-3).

    The output is what the path adds to the query stream: exactly zero for a sample without the key modality.
    gated: multiply the output by a soft gate in [0, 2], computed from the means of both streams; it starts at 1.
    """

    def __init__(self, *, dim: int, num_heads: int, gated: bool = False) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.attention = MaskedMultiHeadAttention(dim=dim, num_heads=num_heads)
        for layer in (self.attention.query, self.attention.value, self.attention.out):
            nn.init.xavier_uniform_(layer.weight)  # output and query stream then have the same scale
            nn.init.zeros_(layer.bias)
        self.attention.key.load_state_dict(self.attention.query.state_dict())  # at first, similar tokens match
        self.gate = nn.Linear(2 * dim, 1) if gated else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, query: Tokens, context: Tokens, *, need_weights: bool = False) -> AttentionOutput:
        query = query.with_values(self.norm_query(query.values))
        context = context.with_values(self.norm_context(context.values))
        output = self.attention(query.values, context, need_weights=need_weights)
        if self.gate is None:
            return output
        gate = self.soft_gate(query.mean_pool(), context.mean_pool())
        return output._replace(values=output.values * gate[:, None, None])

    def soft_gate(self, query: Float[Tensor, "b d"], context: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The gate, from the mean normed token of the query stream and of the context stream."""
        assert self.gate is not None
        return 2 * self.gate(torch.cat([query, context], dim=1)).sigmoid().squeeze(1)
