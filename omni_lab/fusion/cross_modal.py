"""Cross-modal attention: the query comes from one modality, keys and values from another.

A path is one directed pair of modalities in one layer and owns all its weights (MulT, Tsai et al. 2019,
eq. 2-3). A layer does, for each query modality m,

    h_m  <-  h_m + sum over n != m of CrossModalAttention_mn(h_m, h_n)      then self-attention and FFN of m

A modality that listens to nobody has nothing new to digest: its stream passes through unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.attention import AttentionOutput, MultiHeadAttention, TransformerBlock
from omni_lab.modalities import Modality, Tokens


class Path(NamedTuple):
    """A directed interaction: `query` listens to `key`."""

    query: Modality
    key: Modality

    def __str__(self) -> str:
        return f"{self.query}_from_{self.key}"


def all_paths(modalities: Sequence[Modality]) -> list[Path]:
    """Every directed pair of different modalities."""
    return [Path(m, n) for m in modalities for n in modalities if m is not n]


class FusionOutput(NamedTuple):
    """tokens: the fused stream of each modality. attention: per layer, weights [B, H, Nq, Nk] of each path
    (empty unless asked for)."""

    tokens: Mapping[Modality, Tokens]
    attention: Sequence[Mapping[Path, Tensor]]


class CrossModalAttention(nn.Module):
    """One path: norms, projections and output of its own. Returns what is added to the query stream.

    A sample that lacks the key modality (all its context tokens masked) receives exactly zero.
    """

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim=dim, heads=heads)
        for layer in (self.attention.query, self.attention.value, self.attention.out):
            nn.init.xavier_uniform_(layer.weight)  # as loud as what it is added to
            nn.init.zeros_(layer.bias)
        self.attention.key.load_state_dict(self.attention.query.state_dict())  # at first, like attends to like

    def forward(self, query: Tokens, context: Tokens, *, need_weights: bool = False) -> AttentionOutput:
        normed = context.with_values(self.norm_context(context.values))
        return self.attention(self.norm_query(query.values), normed, need_weights=need_weights)


class FusionLayer(nn.Module):
    """The given paths, then a transformer block for each modality that listens."""

    def __init__(self, *, paths: Sequence[Path], dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.paths = list(paths)
        self.cross = nn.ModuleDict({str(path): CrossModalAttention(dim=dim, heads=heads) for path in self.paths})
        self.blocks = nn.ModuleDict(
            {
                query.value: TransformerBlock(dim=dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout)
                for query in dict.fromkeys(path.query for path in self.paths)
            }
        )

    def forward(
        self, streams: Mapping[Modality, Tokens], *, need_weights: bool
    ) -> tuple[dict[Modality, Tokens], dict[Path, Float[Tensor, "b h q k"]]]:
        updated = dict(streams)
        weights: dict[Path, Tensor] = {}
        for query, stream in streams.items():
            if query.value not in self.blocks:
                continue
            heard = {path: streams[path.key] for path in self.paths if path.query is query and path.key in streams}
            if all(context.rows is stream.rows for context in heard.values()):  # dealt out alike: once per entry
                own, contexts = replace(stream, rows=None), {p: replace(c, rows=None) for p, c in heard.items()}
                own, said = self._listen(query, own, contexts, need_weights=need_weights)
                updated[query] = replace(own, rows=stream.rows)
                weights |= {path: stream.dealt(w) for path, w in said.items()}
            else:  # once per sample that has the query modality
                samples = stream.present.nonzero().squeeze(1)
                if len(samples) == 0:
                    continue
                contexts = {path: context.of(samples) for path, context in heard.items()}
                own, said = self._listen(query, stream.of(samples).expanded(), contexts, need_weights=need_weights)
                rows = torch.full((len(stream),), -1, device=samples.device)
                rows[samples] = torch.arange(len(samples), device=samples.device)
                updated[query] = replace(own, rows=rows)
                weights |= {
                    p: w.new_zeros(len(stream), *w.shape[1:]).index_copy(0, samples, w) for p, w in said.items()
                }
        return updated, weights

    def _listen(
        self, query: Modality, own: Tokens, contexts: Mapping[Path, Tokens], *, need_weights: bool
    ) -> tuple[Tokens, dict[Path, Float[Tensor, "b h q k"]]]:
        """One entry of `own` per sample. A path runs for the samples that have what it listens to."""
        total = own.values
        weights: dict[Path, Tensor] = {}
        for path, context in contexts.items():
            samples = context.present.nonzero().squeeze(1)
            if len(samples) == 0:
                continue
            said = self.cross[str(path)](own.of(samples).expanded(), context.of(samples), need_weights=need_weights)
            total = total.index_add(0, samples, said.values.to(total.dtype))  # under autocast they differ
            if said.weights is not None:
                weights[path] = said.weights.new_zeros(len(own), *said.weights.shape[1:])
                weights[path].index_copy_(0, samples, said.weights)
        return self.blocks[query.value](own.with_values(total)), weights


class CrossModalFusion(nn.Module):
    """Mid fusion: `depth` layers of cross-modal attention along `paths`, all of width `dim`.

    The streams keep their own length, mask and times; one that listens to nobody also stays
    shared between samples. A modality missing from the whole batch is simply not
    among the streams; one missing from some samples is masked there.
    """

    def __init__(
        self,
        *,
        paths: Sequence[Path],
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(paths=paths, dim=dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )

    def forward(self, streams: Mapping[Modality, Tokens], *, need_weights: bool = False) -> FusionOutput:
        attention = []
        for layer in self.layers:
            streams, weights = layer(streams, need_weights=need_weights)
            attention.append(weights)
        return FusionOutput(streams, attention)
