"""Packed execution: all (sample, path) pairs of a layer as one ragged batch, as mixture-of-experts code packs tokens.

The steps are grouped projections, one variable-length attention, and a scatter back. Attention uses
`torch.nn.attention.varlen`, which takes packed tokens as they are. Nested tensors would need the same packing and a
layout of their own; a FlexAttention document mask is compiled again for each routing and has no backward on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.fusion.cross_modal_attention import CrossModalAttention
from omni_lab.routing.route import CrossModalPath

log = logging.getLogger(__name__)


class Ragged(NamedTuple):
    """The tokens of S sequences one after the other, sorted by path. lengths, num_tokens: per sequence, per path."""

    values: Float[Tensor, "t d"]
    lengths: Int[Tensor, " s"]
    num_tokens: list[int]


def is_packed_supported(streams: Mapping[Modality, Tokens], cross: Iterable[CrossModalAttention]) -> bool:
    """Whether these tokens and paths can run packed; warns once for each reason why not."""
    values = next(iter(streams.values())).values
    half = torch.is_autocast_enabled(values.device.type) or values.dtype in (torch.float16, torch.bfloat16)
    attention = [path.attention for path in cross]
    unpruned = all(a.query.out_features == a.value.out_features == a.num_heads * a.head_dim for a in attention)
    one_width = unpruned and len({a.num_heads for a in attention}) <= 1  # the kernel takes one width, and scales by it
    supported = values.is_cuda and half and one_width
    if not supported:
        _warn_once("a CUDA device" if not values.is_cuda else "paths of one width" if half else "half precision")
    return supported


@cache
def _warn_once(lacking: str) -> None:
    log.warning("packed execution needs %s: running gathered instead", lacking)


def packed_layer(
    cross: Mapping[CrossModalPath, CrossModalAttention],
    own: Mapping[Modality, Tokens],
    streams: Mapping[Modality, Tokens],
    runs: Mapping[CrossModalPath, Bool[Tensor, " b"]],
) -> dict[Modality, Float[Tensor, "b n d"]]:
    """What all paths of a layer add to each query stream.

    own, streams: the query streams, one entry per sample, and the context streams. runs: where each path runs.
    """
    pairs = {path: run.nonzero().squeeze(1) for path, run in runs.items()}
    paths = [path for path, samples in pairs.items() if len(samples)]
    if not paths:
        return {}
    queries = _pack([own[p.query].select(pairs[p]) for p in paths], [cross[p].norm_query for p in paths])
    contexts = _pack([streams[p.key].select(pairs[p]) for p in paths], [cross[p].norm_context for p in paths])
    attention = [cross[p].attention for p in paths]

    def split_heads(x: Float[Tensor, "t d"]) -> Float[Tensor, "t h e"]:
        return x.unflatten(1, (attention[0].num_heads, -1))

    mixed = varlen_kernel(
        split_heads(grouped_linear(queries, [a.query for a in attention])),
        split_heads(grouped_linear(contexts, [a.key for a in attention])),
        split_heads(grouped_linear(contexts, [a.value for a in attention])),
        queries.lengths,
        contexts.lengths,
    ).flatten(1)
    output = grouped_linear(queries._replace(values=mixed), [a.out for a in attention])
    if cross[paths[0]].gate is not None:
        means = (_mean_pool(x).split([len(pairs[p]) for p in paths]) for x in (queries, contexts))
        gates = torch.cat([cross[path].soft_gate(q, c) for path, q, c in zip(paths, *means, strict=True)])
        output = output * gates.repeat_interleave(queries.lengths)[:, None].to(output.dtype)
    added: dict[Modality, Tensor] = {}
    for path, values in zip(paths, output.split(queries.num_tokens), strict=True):
        stream, samples = own[path.query], pairs[path]
        total = added.get(path.query, output.new_zeros(*stream.values.shape))
        padded = output.new_zeros(len(samples), *stream.values.shape[1:])
        padded[stream.mask[samples]] = values
        added[path.query] = total.index_add(0, samples, padded)
    return added


def _pack(parts: list[Tokens], norms: list[nn.LayerNorm]) -> Ragged:
    """The real tokens of each path's samples, normed by that path."""
    parts = [part.expand_entries() for part in parts]
    values = [norm(part.values[part.mask]) for part, norm in zip(parts, norms, strict=True)]
    lengths = torch.cat([part.mask.sum(1) for part in parts])
    return Ragged(torch.cat(values), lengths, [len(v) for v in values])


def grouped_linear(x: Ragged, layers: list[nn.Linear]) -> Float[Tensor, "t d"]:
    """Each path's tokens through its own layer: one grouped product in bfloat16 on a GPU, else a loop."""
    values = x.values
    if torch.is_autocast_enabled(values.device.type):
        values = values.to(torch.get_autocast_dtype(values.device.type))
    if values.is_cuda and values.dtype == torch.bfloat16:
        weight = torch.stack([layer.weight.to(values.dtype).T for layer in layers])  # [P, D, D]
        counts = torch.tensor(x.num_tokens, device=values.device)
        bias = torch.stack([layer.bias for layer in layers]).to(values.dtype)
        group = torch.repeat_interleave(counts, output_size=len(values))
        return F.grouped_mm(values, weight, offs=counts.cumsum(0).to(torch.int32)) + bias[group]
    return torch.cat([layer(part) for layer, part in zip(layers, values.split(x.num_tokens), strict=True)])


def _mean_pool(x: Ragged) -> Float[Tensor, "s d"]:
    owner = torch.arange(len(x.lengths), device=x.values.device).repeat_interleave(x.lengths)
    total = x.values.new_zeros(len(x.lengths), x.values.shape[1]).index_add(0, owner, x.values)
    return total / x.lengths[:, None].clamp(min=1)


def varlen_kernel(
    q: Float[Tensor, "t h e"],
    k: Float[Tensor, "s h e"],
    v: Float[Tensor, "s h e"],
    q_lengths: Int[Tensor, " n"],
    k_lengths: Int[Tensor, " n"],
) -> Float[Tensor, "t h e"]:
    """Flash attention within each of n sequences, on a GPU in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    q_ends, k_ends = (F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32) for lengths in (q_lengths, k_lengths))
    mixed = varlen_attn(q, k, v, q_ends, k_ends, int(q_lengths.max()), int(k_lengths.max()))
    assert isinstance(mixed, Tensor)
    return mixed
