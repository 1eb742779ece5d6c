"""What heads of several tokens read: the fused streams side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.layers.attention import TransformerBlock


class HeadError(ValueError):
    """A head is asked for what it cannot give: the message says which head, what was asked, and what it can give."""


@dataclass(frozen=True)
class FusedContext:
    """tokens: [B, N, D], one entry per sample. places: where in N each modality's tokens stand."""

    tokens: Tokens
    modality_slices: Mapping[Modality, slice]

    def __len__(self) -> int:
        return len(self.tokens)

    def present(self, modality: Modality) -> Bool[Tensor, " b"]:
        """[B], whether a sample has anything of a modality."""
        if modality not in self.modality_slices:
            return torch.zeros(len(self), dtype=torch.bool, device=self.tokens.mask.device)
        return self.tokens.mask[:, self.modality_slices[modality]].any(dim=1)


class ContextEncoder(nn.Module):
    """All fused tokens side by side, each modality through a norm and a projection of its own, which say what it is;
    then `depth` transformer blocks over all of them together. It is made once, however many heads read it.

    modalities, dim: of the fused streams. out_dim: of the memory.
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
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(dim=out_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout)
                for _ in range(depth)
            )
        )

    def forward(
        self, streams: Mapping[Modality, Tokens], weights: Mapping[Modality, Float[Tensor, " b"]] | None = None
    ) -> FusedContext:
        """weights: multiply what is read of each modality by so much (default: 1)."""
        heard, places, start = [], {}, 0
        for modality, tokens in streams.items():
            read = tokens.with_values(self.read[modality.value](tokens.values)).expand_entries()
            if weights is not None:
                read = read.with_values(read.values * weights[modality][:, None, None])
            places[modality] = slice(start, start + read.mask.shape[1])
            start += read.mask.shape[1]
            heard.append(read)
        tokens = Tokens(torch.cat([h.values for h in heard], dim=1), torch.cat([h.mask for h in heard], dim=1))
        return FusedContext(self.blocks(tokens), places)
