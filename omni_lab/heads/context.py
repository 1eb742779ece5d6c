"""The context that heads cross-attend to: the fused streams of all modalities side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.layers.attention import transformer_blocks


class HeadError(ValueError):
    """A request that a head cannot serve; the message names the head, the request, and what the head can do."""


@dataclass(frozen=True)
class FusedContext:
    """All fused tokens, one entry per sample. modality_slices: the positions of each modality's tokens."""

    tokens: Tokens
    modality_slices: Mapping[Modality, slice]

    def __len__(self) -> int:
        return len(self.tokens)

    def require(self, modality: Modality, head: str) -> slice:
        """The positions of a modality's tokens. Raises HeadError, in the head's name, if any sample has none."""
        positions = self.modality_slices.get(modality, slice(0))
        lacking = (~self.tokens.mask[:, positions].any(dim=1)).nonzero().flatten().tolist()
        if lacking:
            raise HeadError(f"{head}: every sample needs {modality}: samples {lacking} have none")
        return positions


class ContextEncoder(nn.Module):
    """Fused streams to one context: a norm and a projection per modality, then `depth` joint transformer blocks.

    The projections also tell the modalities apart. The context is computed once for all heads.

    dim, out_dim: widths of the fused streams and of the context.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[Modality],
        dim: int,
        out_dim: int,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.read = nn.ModuleDict(
            {m.value: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_dim)) for m in modalities}
        )
        self.blocks = transformer_blocks(depth, dim=out_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout)

    def forward(
        self, streams: Mapping[Modality, Tokens], weights: Mapping[Modality, Float[Tensor, " b"]] | None = None
    ) -> FusedContext:
        """weights: a factor on each modality's projected tokens (default: 1)."""
        parts, slices, start = [], {}, 0
        for modality, tokens in streams.items():
            part = tokens.with_values(self.read[modality.value](tokens.values)).expand_entries()
            if weights is not None:
                part = part.with_values(part.values * weights[modality][:, None, None])
            slices[modality] = slice(start, start + part.mask.shape[1])
            start += part.mask.shape[1]
            parts.append(part)
        tokens = Tokens(torch.cat([p.values for p in parts], dim=1), torch.cat([p.mask for p in parts], dim=1))
        return FusedContext(self.blocks(tokens), slices)
