"""All open (sample, path) pairs of a layer as one ragged batch, as mixture-of-experts code treats tokens and experts:
grouped projections, one variable-length attention, and back.

Of the kernels that can do the middle part, `torch.nn.attention.varlen` is used: it takes the packed tokens as they are.
Nested tensors would need the same packing and their own layout on top; a FlexAttention document mask must be compiled
anew for each routing, and has no backward on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
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
    """Tokens [T, D] of many sequences one after the other, sorted by path. lengths: [S], of each sequence. sequences,
    groups: how many sequences, and how many tokens, each path has."""

    values: Float[Tensor, "t d"]
    lengths: Int[Tensor, " s"]
    sequences: list[int]
    groups: list[int]


Kernel = Callable[[Tensor, Tensor, Tensor, Int[Tensor, " s"], Int[Tensor, " s"]], Tensor]


def is_packed_supported(streams: Mapping[Modality, Tokens], cross: Iterable[CrossModalAttention]) -> bool:
    """Whether there is a kernel for these tokens and these paths; says so once where there is none."""
    values = next(iter(streams.values())).values
    half = torch.is_autocast_enabled(values.device.type) or values.dtype in (torch.float16, torch.bfloat16)
    attention = [path.attention for path in cross]
    whole = all(a.query.out_features == a.value.out_features == a.num_heads * a.head_dim for a in attention)
    alike = whole and len({a.num_heads for a in attention}) <= 1  # the kernel takes one width, and scales by it
    works = values.is_cuda and half and alike
    if not works:
        _say_once("a CUDA device" if not values.is_cuda else "paths of one width" if half else "half precision")
    return works


@cache
def _say_once(lacking: str) -> None:
    log.warning("packed execution wants variable-length attention, and that %s: gathering instead", lacking)


def packed_layer(
    cross: Mapping[CrossModalPath, CrossModalAttention],
    own: Mapping[Modality, Tokens],
    streams: Mapping[Modality, Tokens],
    runs: Mapping[CrossModalPath, Bool[Tensor, " b"]],
    kernel: Kernel | None = None,
) -> dict[Modality, Float[Tensor, "b n d"]]:
    """What the open paths add to each query stream. own: the query streams, one entry per sample. runs: which samples
    each path runs for. kernel: attends within sequences (default: the varlen kernel of the GPU)."""
    pairs = {path: run.nonzero().squeeze(1) for path, run in runs.items()}
    paths = [path for path, samples in pairs.items() if len(samples)]
    if not paths:
        return {}
    queries = _pack(
        [own[p.query].select(pairs[p]).expand_entries() for p in paths], [cross[p].norm_query for p in paths]
    )
    contexts = _pack(
        [streams[p.key].select(pairs[p]).expand_entries() for p in paths], [cross[p].norm_context for p in paths]
    )
    attention = [cross[p].attention for p in paths]
    heads = attention[0].num_heads

    def split(x: Float[Tensor, "t d"]) -> Float[Tensor, "t h e"]:
        return x.unflatten(1, (heads, -1))

    mixed = (kernel or varlen_kernel)(
        split(grouped_linear(queries, [a.query for a in attention])),
        split(grouped_linear(contexts, [a.key for a in attention])),
        split(grouped_linear(contexts, [a.value for a in attention])),
        queries.lengths,
        contexts.lengths,
    ).flatten(1)
    said = grouped_linear(queries._replace(values=mixed), [a.out for a in attention])
    if cross[paths[0]].gate is not None:
        said = said * _openness(queries, contexts, cross, paths).to(said.dtype)
    added: dict[Modality, Tensor] = {}
    for path, values in zip(paths, said.split(queries.groups), strict=True):
        stream, samples = own[path.query], pairs[path]
        total = added.get(path.query, said.new_zeros(*stream.values.shape))
        padded = said.new_zeros(len(samples), *stream.values.shape[1:])
        padded[stream.mask[samples]] = values
        added[path.query] = total.index_add(0, samples, padded)
    return added


def _pack(parts: list[Tokens], norms: list[nn.LayerNorm]) -> Ragged:
    """The real tokens of each path's samples, normed by that path."""
    values = [norm(part.values[part.mask]) for part, norm in zip(parts, norms, strict=True)]
    lengths = torch.cat([part.mask.sum(1) for part in parts])
    return Ragged(torch.cat(values), lengths, [len(part) for part in parts], [len(v) for v in values])


def grouped_linear(x: Ragged, layers: list[nn.Linear]) -> Float[Tensor, "t d"]:
    """Each path's tokens through that path's layer: one grouped product on a GPU in bfloat16, else one after the
    other."""
    values = x.values
    if torch.is_autocast_enabled(values.device.type):
        values = values.to(torch.get_autocast_dtype(values.device.type))
    if values.is_cuda and values.dtype == torch.bfloat16:
        weight = torch.stack([layer.weight.to(values.dtype).T for layer in layers])  # [P, D, D]
        offsets = torch.tensor(x.groups, device=values.device).cumsum(0).to(torch.int32)
        bias = torch.stack([layer.bias for layer in layers]).to(values.dtype)
        group = torch.repeat_interleave(torch.tensor(x.groups, device=values.device), output_size=len(values))
        return F.grouped_mm(values, weight, offs=offsets) + bias[group]
    return torch.cat([layer(part) for layer, part in zip(layers, values.split(x.groups), strict=True)])


def _openness(
    queries: Ragged, contexts: Ragged, cross: Mapping[CrossModalPath, CrossModalAttention], paths: list[CrossModalPath]
) -> Float[Tensor, "t 1"]:
    """The soft gate of each pair, at each of its query tokens."""
    own, heard = (_means(x).split(x.sequences) for x in (queries, contexts))
    gates = [cross[path].soft_gate(q, c) for path, q, c in zip(paths, own, heard, strict=True)]
    return torch.cat(gates).repeat_interleave(queries.lengths)[:, None]


def _means(x: Ragged) -> Float[Tensor, "s d"]:
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
