"""The answer head: one of a fixed list of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.modalities import Modality, Tokens


class AnswerHead(nn.Module):
    """Pools each stream, sums one projection per modality (absent ones add zero) and classifies. Logits [B, A].

    pool: "mean" over a stream's tokens, or "max" of each channel.
    """

    def __init__(
        self, *, modalities: Sequence[Modality], dim: int, answers: int, dropout: float = 0.0, pool: str = "max"
    ) -> None:
        super().__init__()
        if pool not in ("mean", "max"):
            raise ValueError(f"pool must be 'mean' or 'max': got {pool!r}")
        self.pool = pool
        self.summary = nn.ModuleDict(
            {m.value: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)) for m in modalities}
        )
        self.classify = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, answers))

    def forward(self, streams: Mapping[Modality, Tokens]) -> Float[Tensor, "b a"]:
        parts = [
            torch.where(tokens.sample_mask.any(dim=1, keepdim=True), self.summary[m.value](self._pooled(tokens)), 0.0)
            for m, tokens in streams.items()
        ]
        return self.classify(torch.stack(parts).sum(0))

    def _pooled(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        return tokens.strongest() if self.pool == "max" else tokens.pooled()
