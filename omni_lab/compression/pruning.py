"""Pruning: single weights set to zero, which makes the stored model smaller, or whole heads, hidden units and paths
removed, which makes it smaller and faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.utils import prune

from omni_lab.compression.parts import weight_layers
from omni_lab.layers.attention import MaskedMultiHeadAttention
from omni_lab.model import OmniModel
from omni_lab.routing.route import CrossModalPath

MIN_HIDDEN_UNITS = 8  # of a feed-forward network


def cubic_sparsity(final: float, step: int, steps: int) -> float:
    """Sparsity after `step` of `steps` rounds, most at first, while much is redundant (Zhu and Gupta 2017, eq. 1)."""
    return final * (1 - (1 - step / steps) ** 3)


def check_sparsity(sparsity: float) -> None:
    """Raises ValueError unless 0 <= sparsity < 1."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"the sparsity must be at least 0 and less than 1: got {sparsity}")


def prune_weights(model: nn.Module, sparsity: float) -> None:
    """Global magnitude pruning: sets that fraction of the weights of all `weight_layers` to zero."""
    check_sparsity(sparsity)
    weights = [(layer, "weight") for layer in weight_layers(model).values()]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=sparsity)
    for layer, name in weights:
        prune.remove(layer, name)


def nonzero_masks(model: nn.Module) -> dict[str, Bool[Tensor, ...]]:
    """Masks of the prunable weights that are not zero, by name."""
    return {f"{name}.weight": layer.weight != 0 for name, layer in weight_layers(model).items()}


def apply_masks(model: nn.Module, masks: Mapping[str, Bool[Tensor, ...]]) -> None:
    """Sets pruned weights to zero again after a training step."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask.to(weights[name].device))


class PruningGroup(NamedTuple):
    """The units of a module that can be removed one by one: heads of an attention, or hidden units of an MLP.

    unit_size: weights per unit.
    min_units: how many must remain.
    inner: layers whose outputs are split evenly among the units.
    outer: the layer that takes the output of all units.
    """

    name: str
    module: nn.Module
    units: int
    unit_size: int
    min_units: int
    inner: tuple[nn.Linear, ...]
    outer: nn.Linear

    def keep(self, units: list[int]) -> None:
        """Removes all other units."""

        def rows(tensor: Tensor) -> Tensor:
            return tensor.detach().unflatten(0, (self.units, -1))[units].flatten(0, 1)

        for layer in self.inner:
            replace_weights(layer, rows(layer.weight), rows(layer.bias))
        replace_weights(self.outer, rows(self.outer.weight.T).T, self.outer.bias)
        if isinstance(self.module, MaskedMultiHeadAttention):
            self.module.num_heads = len(units)


def replace_weights(layer: nn.Linear, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"]) -> None:
    """Gives a linear layer weights of another shape."""
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.to(layer.weight).contiguous(), layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(layer.bias), layer.bias.requires_grad)


def pruning_groups(model: nn.Module) -> Iterator[PruningGroup]:
    """The heads of every `MaskedMultiHeadAttention` and the hidden units of every MLP; the window attention of the
    vision encoder keeps its heads."""
    for name, module in model.named_modules():
        inner: tuple[nn.Linear, ...]
        if isinstance(module, MaskedMultiHeadAttention):
            inner, outer = (module.query, module.key, module.value), module.out
            units, min_units = module.num_heads, 1
        elif isinstance(module, Mlp):
            inner, outer = (cast(nn.Linear, module.fc1),), cast(nn.Linear, module.fc2)
            units, min_units = outer.in_features, min(MIN_HIDDEN_UNITS, outer.in_features)
        else:
            continue
        unit_size = sum(layer.weight.numel() for layer in (*inner, outer)) // units
        yield PruningGroup(name, module, units, unit_size, min_units, inner, outer)


def importance(model: nn.Module, losses: Iterable[Float[Tensor, ""]]) -> dict[str, Float[Tensor, " g"]]:
    """How much each loss would grow, to first order, without a head or unit, by module: the sum over the losses of
    (sum of gradient * weight)^2, over the weights that carry its output (Molchanov et al. 2019, eq. 8, in its variant
    with gates). Magnitude fails here: a unit of small weights may be the only one that carries some information."""
    scores = {group.name: torch.zeros(group.units) for group in pruning_groups(model)}
    for loss in losses:
        model.zero_grad(set_to_none=True)
        loss.backward()
        for group in pruning_groups(model):
            weight = group.outer.weight
            if weight.grad is not None:
                products = (weight * weight.grad).detach().sum(0)
                scores[group.name] += products.unflatten(0, (group.units, -1)).sum(1).square().cpu()
    model.zero_grad(set_to_none=True)
    return scores


def prune_structures(model: OmniModel, sparsity: float, scores: Mapping[str, Float[Tensor, " g"]]) -> dict[str, Any]:
    """Removes heads and hidden units that together hold that fraction of the weights of all of them, those of least
    importance for their size first; returns the record for `reapply_structure_pruning`, ready for JSON.

    Every attention of a block keeps a head, every MLP eight units. A path without heads is removed as a whole, except
    the last one between two modalities, which nothing could replace.

    scores: see `importance`. They are divided by the root of their mean over the module: half way between one threshold
        for the whole model, which empties whole modules, and one threshold per module.
    """
    check_sparsity(sparsity)
    groups = list(pruning_groups(model))
    paths = {
        f"fusion.layers.{depth}.cross.{path}.attention": (depth, path)
        for depth, layer in enumerate(cast(Any, model.fusion).layers)
        for path in layer.paths
    }
    scale = {name: float(values.mean()) ** 0.5 or 1.0 for name, values in scores.items()}
    order = sorted(
        (float(score) / scale[group.name] / group.unit_size, index, unit)
        for index, group in enumerate(groups)
        for unit, score in enumerate(scores[group.name])
    )
    kept = {group.name: [*range(group.units)] for group in groups}
    layers_with = Counter(path for _, path in paths.values())
    to_remove = sparsity * sum(group.unit_size * group.units for group in groups)
    for _, index, unit in order:
        if to_remove <= 0:
            break
        group, units = groups[index], kept[groups[index].name]
        _, path = paths.get(group.name, (None, None))
        if len(units) > group.min_units or (path is not None and layers_with[path] > 1):
            units.remove(unit)
            to_remove -= group.unit_size
            if path is not None and not units:
                layers_with[path] -= 1
    record = {
        "paths": [[depth, str(path)] for name, (depth, path) in paths.items() if not kept[name]],
        "kept": {name: units for name, units in kept.items() if units},
    }
    reapply_structure_pruning(model, record)
    return record


def reapply_structure_pruning(model: OmniModel, record: Mapping[str, Any]) -> None:
    """Removes from another copy what `prune_structures` removed."""
    model.prune_paths([(depth, CrossModalPath.from_string(path)) for depth, path in record["paths"]])
    for group in list(pruning_groups(model)):
        units = record["kept"][group.name]
        if len(units) < group.units:
            group.keep(units)
