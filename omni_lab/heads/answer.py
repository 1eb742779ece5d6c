"""The answer head: one of a fixed list of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens


class AnswerHead(nn.Module):
    """Late fusion: pools each stream, sums one projection per modality (absent ones add zero) and classifies.
    Logits [B, A].

    pool: "mean" over a stream's tokens, or "max" of each channel. gated: multiply each modality's part by a soft gate
    between 0 and 2, worked out from it; it begins at 1.
    """

    needs_context: ClassVar = False  # but the streams themselves

    def __init__(
        self,
        *,
        modalities: Sequence[Modality],
        dim: int,
        answers: int,
        dropout: float = 0.0,
        pool: str = "max",
        gated: bool = False,
    ) -> None:
        super().__init__()
        if pool not in ("mean", "max"):
            raise ValueError(f"pool must be 'mean' or 'max': got {pool!r}")
        self.pool = pool
        self.summary = nn.ModuleDict(
            {m.value: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)) for m in modalities}
        )
        self.gate = nn.ModuleDict({m.value: nn.Linear(dim, 1) for m in modalities} if gated else {})
        for gate in self.gate.values():
            assert isinstance(gate, nn.Linear)
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)
        self.classify = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, answers))

    def forward(
        self, streams: Mapping[Modality, Tokens], weights: Mapping[Modality, Float[Tensor, " b"]] | None = None
    ) -> Float[Tensor, "b a"]:
        """weights: multiply each modality's part by so much (default: 1)."""
        size = len(next(iter(streams.values())))
        parts = []
        for modality, tokens in streams.items():
            pooled = self._pooled(tokens)
            samples = tokens.sample_mask.any(dim=1).nonzero().squeeze(1)
            if len(samples) == size:
                parts.append(self._said(modality, pooled))
            else:
                said = self._said(modality, pooled[samples])
                parts.append(said.new_zeros(size, said.shape[1]).index_copy(0, samples, said))
            if weights is not None:
                parts[-1] = parts[-1] * weights[modality][:, None]
        return self.classify(torch.stack(parts).sum(0))

    def _said(self, modality: Modality, pooled: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        said = self.summary[modality.value](pooled)
        if modality.value not in self.gate:
            return said
        return said * 2 * self.gate[modality.value](said).sigmoid()

    def _pooled(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        return tokens.max_pool() if self.pool == "max" else tokens.mean_pool()
