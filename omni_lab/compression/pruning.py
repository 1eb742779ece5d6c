"""Fewer weights: single ones set to zero, which makes the stored model smaller, or whole heads, hidden units and paths
taken out, which makes it smaller and faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.utils import prune

from omni_lab.compression.parts import layers_of
from omni_lab.layers.attention import MaskedMultiHeadAttention
from omni_lab.model import OmniModel
from omni_lab.routing.route import CrossModalPath

LEAST_UNITS = 8  # of a feed-forward network


def cubic_share(final: float, step: int, steps: int) -> float:
    """How much is gone after `step` of `steps` rounds: much at first, while much is superfluous, then less and less
    (Zhu and Gupta 2017, eq. 1, from nothing)."""
    return final * (1 - (1 - step / steps) ** 3)


def check_share(share: float) -> None:
    """Raises ValueError for a share that is not from 0 up to, but not including, 1."""
    if not 0 <= share < 1:
        raise ValueError(f"the share to prune must be at least 0 and less than 1: got {share}")


def prune_weights(model: nn.Module, share: float) -> None:
    """Sets that share of the weights of all linear layers, convolutions and embeddings to zero, the smallest of the
    whole model."""
    check_share(share)
    chosen = [(layer, "weight") for layer in layers_of(model).values()]
    prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=share)
    for layer, weight in chosen:
        prune.remove(layer, weight)


def nonzero_masks(model: nn.Module) -> dict[str, Bool[Tensor, ...]]:
    """Which of these weights are not zero, by name."""
    return {f"{name}.weight": layer.weight != 0 for name, layer in layers_of(model).items()}


def apply_masks(model: nn.Module, kept: Mapping[str, Bool[Tensor, ...]]) -> None:
    """What was pruned and has grown since is set to zero again."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in kept.items():
            weights[name].mul_(mask.to(weights[name].device))


class PruningGroup(NamedTuple):
    """What can be taken out of a module one by one, so many `parts`. size: how many weights each has. least: how
    many must stay. out: the weight whose columns carry what they say. remove: leaves only those named."""

    name: str
    parts: int
    size: int
    least: int
    out: Tensor
    remove: Callable[[Int[Tensor, " k"]], None]


def pruning_groups(model: nn.Module) -> Iterator[PruningGroup]:
    """The heads of every attention of ours and the hidden units of every feed-forward network; the window attention of
    the picture encoder keeps its heads."""
    for name, module in model.named_modules():
        if isinstance(module, MaskedMultiHeadAttention):
            widths = (module.query.out_features, module.key.out_features, 2 * module.value.out_features)
            size = sum(widths) // module.num_heads * module.dim
            yield PruningGroup(name, module.num_heads, size, 1, module.out.weight, _keep_heads(module))
        elif isinstance(module, Mlp):
            (units, width), out = module.fc1.weight.shape, module.fc2.weight
            yield PruningGroup(name, units, width + len(out), min(LEAST_UNITS, units), out, _keep_units(module))


def importance(model: nn.Module, losses: Iterable[Float[Tensor, ""]]) -> dict[str, Float[Tensor, " g"]]:
    """How much worse each loss would become, to first order, if a head or unit said nothing: the sum over the losses of
    (sum of gradient * weight)^2, over the weights that carry what it says, by module (Molchanov et al. 2019, eq. 8, in
    its variant with gates). Magnitude does not do here: a unit of small weights may be the only one that knows
    something."""
    found = {group.name: torch.zeros(group.parts) for group in pruning_groups(model)}
    for loss in losses:
        model.zero_grad(set_to_none=True)
        loss.backward()
        for group in pruning_groups(model):
            if group.out.grad is not None:
                said = (group.out * group.out.grad).detach().sum(0)
                found[group.name] += said.unflatten(0, (group.parts, -1)).sum(1).square().cpu()
    model.zero_grad(set_to_none=True)
    return found


def prune_structures(model: OmniModel, share: float, worth: Mapping[str, Float[Tensor, " g"]]) -> dict[str, Any]:
    """Takes out heads and hidden units that together have that share of the weights of all of them, those worth least
    for their size first, however unevenly that falls; returns what `take_out_again` wants, as JSON keeps it.

    Every attention of a block keeps a head, every feed-forward network eight units. A path that has no head left is
    taken out whole, but for the last one between two modalities: nothing could take its place. worth: see `importance`;
    it is divided by the root of its mean over the module, half way between one threshold for the whole model, which
    empties whole modules, and one for each.
    """
    check_share(share)
    groups = list(pruning_groups(model))
    paths = {
        f"fusion.layers.{depth}.cross.{path}.attention": (depth, path)
        for depth, layer in enumerate(cast(Any, model.fusion).layers)
        for path in layer.paths
    }
    scale = {name: float(scores.mean()) ** 0.5 or 1.0 for name, scores in worth.items()}
    order = sorted(
        (float(score) / scale[group.name] / group.size, place, unit)
        for place, group in enumerate(groups)
        for unit, score in enumerate(worth[group.name])
    )
    stays = [[True] * group.parts for group in groups]
    layers = Counter(path for _, path in paths.values())
    left = share * sum(group.size * group.parts for group in groups)
    for _, place, unit in order:
        if left <= 0:
            break
        group, known, now = groups[place], paths.get(groups[place].name), sum(stays[place])
        if now > group.least or (known is not None and layers[known[1]] > 1):
            stays[place][unit] = False
            left -= group.size
            if known is not None and now == 1:
                layers[known[1]] -= 1
    kept = {group.name: [i for i, stay in enumerate(s) if stay] for group, s in zip(groups, stays, strict=True)}
    gone = {
        "paths": [[depth, str(path)] for name, (depth, path) in paths.items() if not kept[name]],
        "kept": {name: units for name, units in kept.items() if units},
    }
    reapply_structure_pruning(model, gone)
    return gone


def reapply_structure_pruning(model: OmniModel, gone: Mapping[str, Any]) -> None:
    """Takes out what `take_out` took out of another copy."""
    model.prune_paths([(depth, CrossModalPath.from_string(path)) for depth, path in gone["paths"]])
    for group in list(pruning_groups(model)):
        units = gone["kept"][group.name]
        if len(units) < group.parts:
            group.remove(torch.tensor(units))


def _keep_heads(attention: MaskedMultiHeadAttention) -> Callable[[Int[Tensor, " k"]], None]:
    def remove(kept: Int[Tensor, " k"]) -> None:
        def channels(width: int) -> Int[Tensor, " c"]:
            each = width // attention.num_heads
            return (kept[:, None] * each + torch.arange(each)).flatten()

        _keep_columns(attention.out, channels(attention.out.in_features))
        for layer in (attention.query, attention.key, attention.value):
            _keep_rows(layer, channels(layer.out_features))
        attention.num_heads = len(kept)

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
