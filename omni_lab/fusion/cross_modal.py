"""Mid fusion by cross-modal attention: the query comes from one modality, keys and values from another.

A path is one directed pair of modalities in one layer and owns all its weights (MulT, Tsai et al. 2019, eq. 2-3).
A layer does, for each query modality m,

    h_m  <-  h_m + sum over n != m of r[m,n] * g[m,n] * CrossModalAttention_mn(h_m, h_n)

and then self-attention and FFN of m, whether a path ran or not. All paths of a layer read the streams of the layer
before. r is the hard route, 0 or 1 per sample and path; g is the path's own soft gate. A modality that no path of the
model leads to passes through unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.fusion.cross_modal_attention import CrossModalAttention
from omni_lab.fusion.packed import is_packed_supported, packed_layer
from omni_lab.layers.attention import TransformerBlock
from omni_lab.routing.route import CrossModalPath, Route

EXECUTIONS = ("gathered", "masked", "packed")


class FusionOutput(NamedTuple):
    """Fused streams. attention: per layer, weights [B, H, Nq, Nk] of each path; empty without `need_weights`."""

    tokens: Mapping[Modality, Tokens]
    attention: Sequence[Mapping[CrossModalPath, Tensor]]


class FusionLayer(nn.Module):
    """The given paths, then a transformer block for each modality that is the query of a path."""

    def __init__(
        self,
        *,
        paths: Sequence[CrossModalPath],
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        dropout: float,
        gated: bool,
    ) -> None:
        super().__init__()
        self.paths = list(paths)
        self.cross = nn.ModuleDict(
            {str(path): CrossModalAttention(dim=dim, num_heads=num_heads, gated=gated) for path in self.paths}
        )
        self.blocks = nn.ModuleDict(
            {
                query.value: TransformerBlock(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout)
                for query in dict.fromkeys(path.query for path in self.paths)
            }
        )

    def forward(
        self,
        streams: Mapping[Modality, Tokens],
        *,
        path_mask: Mapping[CrossModalPath, Tensor] | None = None,
        execution: str = "gathered",
        need_weights: bool,
    ) -> tuple[dict[Modality, Tokens], dict[CrossModalPath, Float[Tensor, "b h q k"]]]:
        """path_mask: [B] bool per path, True where it runs (None: everywhere); masked execution also takes floats."""
        packed = execution == "packed" and path_mask is not None and not need_weights
        if packed and is_packed_supported(streams, self.cross.values()):  # type: ignore[arg-type]
            return self._forward_packed(streams, path_mask), {}  # type: ignore[arg-type]
        fused = dict(streams)
        weights: dict[CrossModalPath, Tensor] = {}
        masked = execution == "masked"
        for query, stream in streams.items():
            if query.value not in self.blocks:
                continue
            contexts = {path: streams[path.key] for path in self.paths if path.query is query and path.key in streams}
            if path_mask is None and all(context.entry_index is stream.entry_index for context in contexts.values()):
                # the same samples share the same entries in all streams: compute once per entry
                own = replace(stream, entry_index=None)
                contexts = {path: replace(context, entry_index=None) for path, context in contexts.items()}
                own, entry_weights = self._attend(query, own, contexts, masked=masked, need_weights=need_weights)
                fused[query] = replace(own, entry_index=stream.entry_index)
                weights |= {path: stream.gather(w) for path, w in entry_weights.items()}
                continue
            samples = stream.present.nonzero().squeeze(1)
            if len(samples) == 0:
                continue
            own = stream.select(samples).expand_entries()
            contexts = {path: context.select(samples) for path, context in contexts.items()}
            runs = None if path_mask is None else {p: path_mask[p].to(samples.device)[samples] for p in contexts}
            own, own_weights = self._attend(query, own, contexts, runs, masked=masked, need_weights=need_weights)
            fused[query] = replace(own, entry_index=_index_present(stream))
            weights |= {path: _scatter(w, samples, len(stream)) for path, w in own_weights.items()}
        return fused, weights

    def _attend(
        self,
        query: Modality,
        own: Tokens,
        contexts: Mapping[CrossModalPath, Tokens],
        path_mask: Mapping[CrossModalPath, Tensor] | None = None,
        *,
        masked: bool,
        need_weights: bool,
    ) -> tuple[Tokens, dict[CrossModalPath, Float[Tensor, "b h q k"]]]:
        """All paths into one query stream, then its block. `own` holds one entry per sample.

        masked: compute each path for every sample and multiply by its mask; else compute it where it runs.
        """
        total = own.values
        weights: dict[CrossModalPath, Tensor] = {}
        for path, context in contexts.items():
            runs = context.present if path_mask is None else context.present * path_mask[path]
            if masked:
                output = self.cross[str(path)](own, context, need_weights=need_weights)
                total = total + output.values.to(total.dtype) * runs[:, None, None]
                if output.weights is not None:
                    weights[path] = output.weights * runs[:, None, None, None]
                continue
            samples = runs.nonzero().squeeze(1)
            if len(samples) == 0:
                if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
                    # the path must take part in every process: sharded gradients would be wrong without it
                    one = Tokens(own.values[:1], own.mask[:1])
                    total = total + 0.0 * self.cross[str(path)](one, one).values.sum()
                continue
            everyone = len(samples) == len(own)
            own_tokens = own if everyone else own.select(samples).expand_entries()
            context = context.select(samples).drop_unused_entries()
            output = self.cross[str(path)](own_tokens, context, need_weights=need_weights)
            values = output.values.to(total.dtype)  # under autocast they differ
            total = total + values if everyone else total.index_add(0, samples, values)
            if output.weights is not None:
                weights[path] = _scatter(output.weights, samples, len(own))
        return self.blocks[query.value](own.with_values(total)), weights

    def _forward_packed(
        self, streams: Mapping[Modality, Tokens], path_mask: Mapping[CrossModalPath, Bool[Tensor, " b"]]
    ) -> dict[Modality, Tokens]:
        fused = dict(streams)
        own = {m: stream.expand_entries() for m, stream in streams.items() if m.value in self.blocks}
        runs = {}
        for path in self.paths:
            if path.query in streams and path.key in streams:
                both = streams[path.query].present & streams[path.key].present
                runs[path] = path_mask[path].to(own[path.query].values.device) & both
        added = packed_layer({p: self.cross[str(p)] for p in runs}, own, streams, runs)  # type: ignore[misc]
        for query, stream in own.items():
            total = stream.values + added[query].to(stream.values.dtype) if query in added else stream.values
            samples = streams[query].present.nonzero().squeeze(1)
            tokens = self.blocks[query.value](stream.with_values(total).select(samples).expand_entries())
            fused[query] = replace(tokens, entry_index=_index_present(streams[query]))
        return fused


def _index_present(stream: Tokens) -> Int[Tensor, " b"]:
    """The entry index of a stream that has one entry for each sample with this modality."""
    return torch.where(stream.present, stream.present.cumsum(0) - 1, -1)


def _scatter(values: Float[Tensor, "p ..."], samples: Int[Tensor, " p"], size: int) -> Float[Tensor, "b ..."]:
    """The values of some of `size` samples, with zeros for the others."""
    return values.new_zeros(size, *values.shape[1:]).index_copy(0, samples, values)


class CrossModalFusion(nn.Module):
    """Mid fusion: `depth` layers of cross-modal attention along `paths`, all of width `dim`.

    Streams keep their own length, mask and times. A stream without incoming paths also stays shared between samples.
    A modality that the whole batch lacks is not among the streams; one that some samples lack is masked there.
    """

    def __init__(
        self,
        *,
        paths: Sequence[CrossModalPath],
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.paths = list(paths)
        self.layers = nn.ModuleList(
            FusionLayer(paths=paths, dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, gated=gated)
            for _ in range(depth)
        )

    def forward(
        self,
        streams: Mapping[Modality, Tokens],
        *,
        route: Route | None = None,
        path_gates: Float[Tensor, "b l m m"] | None = None,
        execution: str = "gathered",
        need_weights: bool = False,
    ) -> FusionOutput:
        """Runs all layers. Raises ValueError for an unknown execution.

        route: which paths run for which sample; None runs all.
        path_gates: in place of a route, a differentiable weight per path; every path is computed.
        execution: "gathered" runs each path for the samples that need it; "masked", the reference, computes every path
            and multiplies by the route; "packed" runs all paths of a layer as one ragged batch, on a GPU in half
            precision (elsewhere it warns once and gathers).
        need_weights: take the explicit attention path and return its weights.
        """
        if execution not in EXECUTIONS:
            raise ValueError(f"execution must be one of {EXECUTIONS}: got {execution!r}")
        interactions = path_gates
        if path_gates is not None:
            execution = "masked"
        elif route is not None:
            interactions = route.interaction_mask.cpu()  # once, not once per path
        attention = []
        for depth, layer in enumerate(self.layers):
            path_mask = None
            if interactions is not None:
                path_mask = {p: interactions[:, depth, p.query.column, p.key.column] for p in self.paths}
            streams, weights = layer(streams, path_mask=path_mask, execution=execution, need_weights=need_weights)
            attention.append(weights)
        return FusionOutput(streams, attention)
