"""Cross-modal attention: the query comes from one modality, keys and values from another.

A path is one directed pair of modalities in one layer and owns all its weights (MulT, Tsai et al. 2019,
eq. 2-3). A layer does, for each query modality m,

    h_m  <-  h_m + sum over n != m of r[m,n] * g[m,n] * CrossModalAttention_mn(h_m, h_n)

and then self-attention and FFN of m. r is the hard route, 0 or 1 per sample and path; g the soft gate, how much m
listens to n. A modality that has no path to listen along has nothing new to digest: its stream passes through
unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.fusion.cross_modal_attention import CrossModalAttention
from omni_lab.fusion.packed import is_packed_supported, packed_layer
from omni_lab.layers.attention import TransformerBlock
from omni_lab.routing.route import CrossModalPath, Route

EXECUTIONS = ("gathered", "masked", "packed")


class FusionOutput(NamedTuple):
    """tokens: the fused stream of each modality. attention: per layer, weights [B, H, Nq, Nk] of each path
    (empty unless asked for)."""

    tokens: Mapping[Modality, Tokens]
    attention: Sequence[Mapping[CrossModalPath, Tensor]]


class FusionLayer(nn.Module):
    """The given paths, then a transformer block for each modality that listens."""

    def __init__(
        self,
        *,
        paths: Sequence[CrossModalPath],
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        dropout: float,
        gated: bool = False,
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
        """opened: [B] each, for which samples each path is open (all of them); if it is masked, how far."""
        packed = execution == "packed" and path_mask is not None and not need_weights
        if packed and is_packed_supported(streams, self.cross.values()):  # type: ignore[arg-type]
            return self._attend_packed(streams, path_mask), {}  # type: ignore[arg-type]
        updated = dict(streams)
        weights: dict[CrossModalPath, Tensor] = {}
        for query, stream in streams.items():
            if query.value not in self.blocks:
                continue
            heard = {path: streams[path.key] for path in self.paths if path.query is query and path.key in streams}
            if path_mask is None and all(context.entry_index is stream.entry_index for context in heard.values()):
                # dealt out alike: once per entry
                own, contexts = (
                    replace(stream, entry_index=None),
                    {p: replace(c, entry_index=None) for p, c in heard.items()},
                )
                own, said = self._attend_gathered(query, own, contexts, need_weights=need_weights)
                updated[query] = replace(own, entry_index=stream.entry_index)
                weights |= {path: stream.gather(w) for path, w in said.items()}
            else:  # once per sample that has the query modality
                samples = stream.present.nonzero().squeeze(1)
                if len(samples) == 0:
                    continue
                contexts = {path: context.select(samples) for path, context in heard.items()}
                kept = (
                    None if path_mask is None else {path: path_mask[path].to(samples.device)[samples] for path in heard}
                )
                listen = self._attend_masked if execution == "masked" else self._attend_gathered
                own, said = listen(
                    query, stream.select(samples).expand_entries(), contexts, kept, need_weights=need_weights
                )
                rows = torch.full((len(stream),), -1, device=samples.device)
                rows[samples] = torch.arange(len(samples), device=samples.device)
                updated[query] = replace(own, entry_index=rows)
                weights |= {
                    p: w.new_zeros(len(stream), *w.shape[1:]).index_copy(0, samples, w) for p, w in said.items()
                }
        return updated, weights

    def _attend_gathered(
        self,
        query: Modality,
        own: Tokens,
        contexts: Mapping[CrossModalPath, Tokens],
        opened: Mapping[CrossModalPath, Bool[Tensor, " b"]] | None = None,
        *,
        need_weights: bool,
    ) -> tuple[Tokens, dict[CrossModalPath, Float[Tensor, "b h q k"]]]:
        """One entry of `own` per sample. A path runs for the samples that open it and have what it listens to."""
        total = own.values
        weights: dict[CrossModalPath, Tensor] = {}
        for path, context in contexts.items():
            runs = context.present if opened is None else context.present & opened[path]
            samples = runs.nonzero().squeeze(1)
            if len(samples) == 0:
                total = self._keep_in_graph(path, own, total)
                continue
            everyone = len(samples) == len(own)
            listening = own if everyone else own.select(samples).expand_entries()
            said = self.cross[str(path)](
                listening, context.select(samples).drop_unused_entries(), need_weights=need_weights
            )
            values = said.values.to(total.dtype)  # under autocast they differ
            total = total + values if everyone else total.index_add(0, samples, values)
            if said.weights is not None:
                weights[path] = said.weights.new_zeros(len(own), *said.weights.shape[1:])
                weights[path].index_copy_(0, samples, said.weights)
        return self.blocks[query.value](own.with_values(total)), weights

    def _attend_masked(
        self,
        query: Modality,
        own: Tokens,
        contexts: Mapping[CrossModalPath, Tokens],
        opened: Mapping[CrossModalPath, Tensor] | None = None,
        *,
        need_weights: bool,
    ) -> tuple[Tokens, dict[CrossModalPath, Float[Tensor, "b h q k"]]]:
        """The same, but every path is worked out for every sample and multiplied by its route."""
        total = own.values
        weights: dict[CrossModalPath, Tensor] = {}
        for path, context in contexts.items():
            route = context.present.to(total.dtype) if opened is None else context.present * opened[path]
            said = self.cross[str(path)](own, context, need_weights=need_weights)
            total = total + said.values.to(total.dtype) * route[:, None, None]
            if said.weights is not None:
                weights[path] = said.weights * route[:, None, None, None]
        return self.blocks[query.value](own.with_values(total)), weights

    def _keep_in_graph(
        self, path: CrossModalPath, own: Tokens, total: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """A path that no sample of this process opened still takes part in a distributed training, with nothing to
        say: sharded gradients would be wrong without it."""
        if not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return total
        one = Tokens(own.values[:1], own.mask[:1])
        return total + 0.0 * self.cross[str(path)](one, one).values.sum()

    def _attend_packed(
        self, streams: Mapping[Modality, Tokens], opened: Mapping[CrossModalPath, Bool[Tensor, " b"]]
    ) -> dict[Modality, Tokens]:
        updated = dict(streams)
        own = {m: stream.expand_entries() for m, stream in streams.items() if m.value in self.blocks}
        runs = {
            path: (
                opened[path].to(own[path.query].values.device) & streams[path.query].present & streams[path.key].present
            )
            for path in self.paths
            if path.query in streams and path.key in streams
        }
        added = packed_layer({p: self.cross[str(p)] for p in runs}, own, streams, runs)  # type: ignore[misc]
        for query, stream in own.items():
            fused = stream.values + added[query].to(stream.values.dtype) if query in added else stream.values
            samples = streams[query].present.nonzero().squeeze(1)
            digested = self.blocks[query.value](stream.with_values(fused).select(samples).expand_entries())
            rows = torch.full((len(streams[query]),), -1, device=samples.device)
            rows[samples] = torch.arange(len(samples), device=samples.device)
            updated[query] = replace(digested, entry_index=rows)
        return updated


class CrossModalFusion(nn.Module):
    """Mid fusion: `depth` layers of cross-modal attention along `paths`, all of width `dim`.

    The streams keep their own length, mask and times; one that listens to nobody also stays
    shared between samples. A modality missing from the whole batch is simply not
    among the streams; one missing from some samples is masked there.
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
        """route: which paths run for which sample; None opens all. execution: how; "gathered" runs each path for the
        samples that open it, "packed" all paths of a layer as one ragged batch (on a GPU in half precision; elsewhere
        it says so once and gathers), "masked" computes everything and multiplies by the route (the reference).

        openness: in place of a route, a weight for each path, differentiable; everything is computed.
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
            opened = None
            if interactions is not None:
                opened = {p: interactions[:, depth, p.query.column, p.key.column] for p in self.paths}
            streams, weights = layer(streams, path_mask=opened, execution=execution, need_weights=need_weights)
            attention.append(weights)
        return FusionOutput(streams, attention)
