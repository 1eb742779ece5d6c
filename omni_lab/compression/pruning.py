"""Fewer weights: single ones set to zero, which makes the stored model smaller, or whole heads, hidden units and paths
taken out, which makes it smaller and faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.utils import prune

from omni_lab.attention import MultiHeadAttention
from omni_lab.compression.parts import layers_of
from omni_lab.routing import Path, RouteSpace

LEAST_UNITS = 8  # of a feed-forward network


def cubic_share(final: float, step: int, steps: int) -> float:
    """How much is gone after `step` of `steps` rounds: much at first, while much is superfluous, then less and less
    (Zhu and Gupta 2017, eq. 1, from nothing)."""
    return final * (1 - (1 - step / steps) ** 3)


def check_share(share: float) -> None:
    """Raises ValueError for a share that is not from 0 up to, but not including, 1."""
    if not 0 <= share < 1:
        raise ValueError(f"the share to prune must be at least 0 and less than 1: got {share}")


def zero_smallest(model: nn.Module, share: float) -> None:
    """Sets that share of the weights of all linear layers, convolutions and embeddings to zero, the smallest of the
    whole model."""
    check_share(share)
    chosen = [(layer, "weight") for layer in layers_of(model).values()]
    prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=share)
    for layer, weight in chosen:
        prune.remove(layer, weight)


def still_there(model: nn.Module) -> dict[str, Bool[Tensor, ...]]:
    """Which of these weights are not zero, by name."""
    return {f"{name}.weight": layer.weight != 0 for name, layer in layers_of(model).items()}


def zero_again(model: nn.Module, kept: Mapping[str, Bool[Tensor, ...]]) -> None:
    """What was pruned and has grown since is set to zero again."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in kept.items():
            weights[name].mul_(mask)


class Group(NamedTuple):
    """Parts of a module that can be taken out one by one. scores: of each, how much weight it has, on average 1 in
    each module. size: how many weights each has. least: how many must stay. remove: leaves only those named."""

    name: str
    scores: Float[Tensor, " g"]
    size: int
    least: int
    remove: Callable[[Int[Tensor, " k"]], None]


def groups_of(model: nn.Module) -> Iterator[Group]:
    """The heads of every attention of ours and the hidden units of every feed-forward network; the window attention of
    the picture encoder keeps its heads."""
    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention):
            yield Group(name, _relative(_head_energy(module)), 4 * module.head_dim * module.dim, 1, _keep_heads(module))
        elif isinstance(module, Mlp):
            up, down = module.fc1.weight, module.fc2.weight
            energy = up.square().sum(1) + down.square().sum(0)
            least = min(LEAST_UNITS, len(energy))
            yield Group(name, _relative(energy), up.shape[1] + down.shape[0], least, _keep_units(module))


def rarest_paths(space: RouteSpace, rates: Float[Tensor, "l p"], count: int) -> list[tuple[int, Path]]:
    """So many of the paths that layers still have, those that are open for the fewest questions; but the last one
    between two modalities stays, since nothing could take its place. rates: see `open_rates`."""
    there = [(layer, path) for layer in range(space.depth) for path in space.paths]
    left = [known for known in there if known not in space.taken_out]
    gone: list[tuple[int, Path]] = []
    for layer, path in sorted(left, key=lambda known: float(rates[known[0], space.paths.index(known[1])])):
        if len(gone) < count and sum(other == path for _, other in left) > 1:
            left.remove((layer, path))
            gone.append((layer, path))
    return gone


def take_out(model: nn.Module, share: float) -> dict[str, list[int]]:
    """Takes out heads and hidden units that together have that share of the weights of all of them, those of the least
    weight relative to others of their module first, however unevenly that falls; returns which stay, by module. Every
    attention keeps a head, every feed-forward network eight units. Paths are taken out by `OmniModel.take_out`."""
    check_share(share)
    groups = list(groups_of(model))
    order = sorted(
        (float(score), place, unit) for place, group in enumerate(groups) for unit, score in enumerate(group.scores)
    )
    stays = [[True] * len(group.scores) for group in groups]
    left = share * sum(group.size * len(group.scores) for group in groups)
    for _, place, unit in order:
        if left <= 0:
            break
        if sum(stays[place]) > groups[place].least:
            stays[place][unit] = False
            left -= groups[place].size
    kept = {group.name: [i for i, stay in enumerate(s) if stay] for group, s in zip(groups, stays, strict=True)}
    keep_only(model, kept)
    return kept


def keep_only(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Takes out all heads and hidden units but these, by module."""
    for group in list(groups_of(model)):
        if len(kept[group.name]) < len(group.scores):
            group.remove(torch.tensor(kept[group.name]))


def _relative(energy: Float[Tensor, " g"]) -> Float[Tensor, " g"]:
    norms = energy.detach().sqrt()
    return norms / norms.mean().clamp(min=1e-12)


def _head_energy(attention: MultiHeadAttention) -> Float[Tensor, " h"]:
    def per_head(weight: Tensor) -> Tensor:
        return weight.square().unflatten(0, (attention.heads, -1)).sum((1, 2))

    rows = sum(per_head(layer.weight) for layer in (attention.query, attention.key, attention.value))
    return rows + per_head(attention.out.weight.T)


def _keep_heads(attention: MultiHeadAttention) -> Callable[[Int[Tensor, " k"]], None]:
    def remove(kept: Int[Tensor, " k"]) -> None:
        channels = (kept[:, None] * attention.head_dim + torch.arange(attention.head_dim)).flatten()
        for layer in (attention.query, attention.key, attention.value):
            _keep_rows(layer, channels)
        _keep_columns(attention.out, channels)
        attention.heads = len(kept)

    return remove


def _keep_units(network: Any) -> Callable[[Int[Tensor, " k"]], None]:
    def remove(kept: Int[Tensor, " k"]) -> None:
        _keep_rows(network.fc1, kept)
        _keep_columns(network.fc2, kept)

    return remove


def _keep_rows(layer: nn.Linear, kept: Int[Tensor, " k"]) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[kept])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[kept])
    layer.out_features = len(kept)


def _keep_columns(layer: nn.Linear, kept: Int[Tensor, " k"]) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[:, kept])
    layer.in_features = len(kept)
