"""The answer head: classification over a fixed list of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens


class AnswerHead(nn.Module):
    """Late fusion: pools each stream, sums one projection per modality (zero if absent), and classifies.

    pooling: "mean" or "max" over the tokens of a stream; ValueError for anything else.
    gated: multiply each projection by a soft gate in [0, 2], computed from it; it starts at 1.
    """

    needs_context: ClassVar = False  # it reads the streams themselves

    def __init__(
        self,
        *,
        modalities: Sequence[Modality],
        dim: int,
        num_answers: int,
        dropout: float = 0.0,
        pooling: str = "max",
        gated: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "max"):
            raise ValueError(f"pooling must be 'mean' or 'max': got {pooling!r}")
        self.pooling = pooling
        self.summary = nn.ModuleDict(
            {m.value: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)) for m in modalities}
        )
        self.gate = nn.ModuleDict({m.value: nn.Linear(dim, 1) for m in modalities} if gated else {})
        for gate in self.gate.values():
            assert isinstance(gate, nn.Linear)
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)
        self.classify = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, num_answers))

    def forward(
        self, streams: Mapping[Modality, Tokens], weights: Mapping[Modality, Float[Tensor, " b"]] | None = None
    ) -> Float[Tensor, "b a"]:
        """Logits of the answers. weights: a factor on each modality's projection (default: 1)."""
        size = len(next(iter(streams.values())))
        projections = []
        for modality, tokens in streams.items():
            pooled = tokens.max_pool() if self.pooling == "max" else tokens.mean_pool()
            if torch.compiler.is_compiling():  # compiled graphs run for samples with every modality alone
                projections.append(self._project(modality, pooled))
                continue
            samples = tokens.sample_mask.any(dim=1).nonzero().squeeze(1)
            if len(samples) == size:
                projected = self._project(modality, pooled)
            else:
                projected = self._project(modality, pooled[samples])
                projected = projected.new_zeros(size, projected.shape[1]).index_copy(0, samples, projected)
            projections.append(projected if weights is None else projected * weights[modality][:, None])
        return self.classify(torch.stack(projections).sum(0))

    def _project(self, modality: Modality, pooled: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        projected = self.summary[modality.value](pooled)
        if modality.value not in self.gate:
            return projected
        return projected * 2 * self.gate[modality.value](projected).sigmoid()
