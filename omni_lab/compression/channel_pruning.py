"""Channel pruning: attentions and feed-forward networks are rotated so that few channels carry nearly everything, and
the other channels are removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from timm.layers import Mlp
from torch import Tensor, nn

from omni_lab.compression.parts import weight_layers
from omni_lab.compression.pruning import check_sparsity, replace_weights
from omni_lab.layers.attention import MaskedMultiHeadAttention

CHANNEL_MULTIPLE = 4  # widths are multiples of it, which processors prefer
RIDGE = 1e-4  # of the mean variance of hidden units, added before a matrix is inverted


class Moments(NamedTuple):
    """Moments of activations: the mean, and the second moments about zero and about the mean."""

    mean: Float[Tensor, " d"]
    second: Float[Tensor, "d d"]
    covariance: Float[Tensor, "d d"]


class ChannelReduction(NamedTuple):
    """A width that can be reduced.

    error: [n + 1], by the number of remaining channels. Of attention scores: their mean squared error. Of values (each
        head by itself) and hidden units: the fraction of the output's variance that is lost.
    channel_size: weights of one channel.
    apply: reduces the width to that many channels.
    """

    error: Float[Tensor, " n"]
    channel_size: int
    apply: Callable[[int], None]

    @property
    def width(self) -> int:
        return len(self.error) - 1

    def min_width(self, tolerance: float) -> int:
        """The smallest width whose error is at most `tolerance`."""
        needed = int((self.error > tolerance).sum())
        return min(self.width, CHANNEL_MULTIPLE * max(1, -(-needed // CHANNEL_MULTIPLE)))


def prune_channels(model: nn.Module, sparsity: float, runs: Iterable[object]) -> dict[str, Any]:
    """Reduces every `MaskedMultiHeadAttention` and MLP until together they have lost that fraction of their weights, or
    are as narrow as can be; returns the record for `reapply_channel_pruning`, ready for JSON. Nothing is trained.

    Each width is the smallest with an error below a common tolerance, found by bisection. Queries and keys of a head
    are projected to the directions that determine its scores: the singular vectors of the product of the roots of their
    second moments (of keys about their mean), as if queries and keys were independent. Values are projected to the
    principal directions of the head's output (compare Ashkboos et al. 2024, who slice whole transformers). Hidden units
    have no such directions and are removed one by one, first the unit whose loss the others can best compensate in the
    mean squared output (optimal brain surgeon, Hassibi and Stork 1993; the inverse is updated as in Frantar and
    Alistarh 2022, here for whole columns).

    runs: iterating over it runs the model on data (padded tokens count too); modules that it does not reach stay.
    Raises ValueError for a sparsity outside [0, 1), or if no module is reached.
    """
    check_sparsity(sparsity)
    reductions = list(_reductions(model, _collect_moments(model, runs)))
    if not reductions:
        raise ValueError("channel pruning needs data: `runs` reached no attention and no feed-forward network")
    before = {name: layer.weight.shape for name, layer in weight_layers(model).items()}
    target = (1 - sparsity) * sum(r.channel_size * r.width for r in reductions)
    low, high = 1e-9, max(float(r.error[0]) for r in reductions)
    for _ in range(60):
        middle = (low * high) ** 0.5
        if sum(r.channel_size * r.min_width(middle) for r in reductions) > target:
            low = middle
        else:
            high = middle
    for reduction in reductions:
        width = reduction.min_width(high) if sparsity else reduction.width
        if width < reduction.width:
            reduction.apply(width)
    after = {name: layer.weight.shape for name, layer in weight_layers(model).items()}
    return {"shapes": {name: [*shape] for name, shape in after.items() if shape != before[name]}}


def reapply_channel_pruning(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Gives another copy the same widths; its weights must then be loaded."""
    for name, shape in record["shapes"].items():
        layer: Any = model.get_submodule(name)
        replace_weights(layer, layer.weight.new_zeros(shape), layer.bias.new_zeros(shape[0]))


def _collect_moments(model: nn.Module, runs: Iterable[object]) -> dict[str, Moments]:
    """Moments of the output of queries and keys, and of the input of each module's last layer, by layer name."""
    totals: dict[str, tuple[int, Tensor, Tensor]] = {}  # by layer: the count, the sum, the sum of squares

    def add(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = (output if name.endswith(("query", "key")) else inputs[0]).detach().flatten(0, -2).double()
        count, total, square = totals.get(name, (0, 0, 0))
        totals[name] = (count + len(x), total + x.sum(0).cpu(), square + (x.T @ x).cpu())

    hooks = []
    for name, module in model.named_modules():
        layers = {MaskedMultiHeadAttention: ("query", "key", "out"), Mlp: ("fc2",)}.get(type(module), ())
        hooks += [module.get_submodule(n).register_forward_hook(partial(add, f"{name}.{n}")) for n in layers]
    try:
        with torch.no_grad():
            for _ in runs:
                pass
    finally:
        for hook in hooks:
            hook.remove()
    moments = {}
    for name, (count, total, square) in totals.items():
        mean, second = total / count, square / count
        moments[name] = Moments(mean, second, second - torch.outer(mean, mean))
    return moments


def _reductions(model: nn.Module, moments: Mapping[str, Moments]) -> Iterator[ChannelReduction]:
    for name, module in model.named_modules():
        if isinstance(module, MaskedMultiHeadAttention) and f"{name}.out" in moments:
            yield _reduce_scores(module, moments[f"{name}.query"], moments[f"{name}.key"])
            yield _reduce_values(module, moments[f"{name}.out"])
        elif isinstance(module, Mlp) and f"{name}.fc2" in moments:
            yield _reduce_units(module, moments[f"{name}.fc2"])


def _reduce_scores(attention: MaskedMultiHeadAttention, queries: Moments, keys: Moments) -> ChannelReduction:
    """A constant added to all keys of a sample cancels in the softmax; we take keys about the mean of all samples."""
    projections, error = [], torch.zeros(1, dtype=torch.double)
    for head in _head_slices(attention, len(queries.mean)):
        query, query_inverse = _root_and_inverse(queries.second[head, head])
        key, key_inverse = _root_and_inverse(keys.covariance[head, head])
        left, singular, right = torch.linalg.svd(query @ key)
        root = singular.sqrt()[:, None]
        projections.append((root * left.T @ query_inverse, root * right @ key_inverse))
        error = error + _tail_sums(singular.square()) / attention.head_dim / attention.num_heads

    def apply(width: int) -> None:
        for layer, by_head in zip((attention.query, attention.key), zip(*projections, strict=True), strict=True):
            _project_output(layer, torch.block_diag(*[projection[:width] for projection in by_head]))

    return ChannelReduction(error, 2 * attention.dim * attention.num_heads, apply)


def _reduce_values(attention: MaskedMultiHeadAttention, inputs: Moments) -> ChannelReduction:
    """inputs: moments of the input of `attention.out`."""
    weight = _double(attention.out.weight)
    variance = ((weight @ inputs.covariance) * weight).sum().clamp(min=1e-12)
    bases, error, heads = [], torch.zeros(1, dtype=torch.double), _head_slices(attention, len(inputs.mean))
    for head in heads:
        root = _root_and_inverse(inputs.covariance[head, head])[0]
        basis, singular, _ = torch.linalg.svd(weight[:, head] @ root, full_matrices=False)
        bases.append(basis)
        error = error + _tail_sums(singular.square()) / variance

    def apply(width: int) -> None:
        kept = [basis[:, :width] for basis in bases]
        projection = torch.block_diag(*[k.T @ weight[:, head] for k, head in zip(kept, heads, strict=True)])
        output = torch.cat(kept, 1)
        bias = _double(attention.out.bias) + (weight - output @ projection) @ inputs.mean
        replace_weights(attention.out, output, bias)
        _project_output(attention.value, projection)

    return ChannelReduction(error, 2 * attention.dim * attention.num_heads, apply)


def _reduce_units(mlp: Any, inputs: Moments) -> ChannelReduction:
    """inputs: moments of the hidden units."""
    covariance, weight = inputs.covariance, _double(mlp.fc2.weight)
    variance = ((weight @ covariance) * weight).sum().clamp(min=1e-12)
    covariance = covariance + RIDGE * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance))
    order, errors = _removal_order(covariance, weight)

    def apply(width: int) -> None:
        kept: Int[Tensor, " u"] = order[len(order) - width :].sort().values
        output = torch.linalg.solve(covariance[kept][:, kept], covariance[kept] @ weight.T).T
        replace_weights(mlp.fc2, output, _double(mlp.fc2.bias) + weight @ inputs.mean - output @ inputs.mean[kept])
        replace_weights(mlp.fc1, _double(mlp.fc1.weight)[kept], _double(mlp.fc1.bias)[kept])

    return ChannelReduction(errors.flip(0) / variance, mlp.fc1.in_features + mlp.fc2.out_features, apply)


def _removal_order(
    covariance: Float[Tensor, "u u"], weight: Float[Tensor, "d u"]
) -> tuple[Int[Tensor, " u"], Float[Tensor, u + 1]]:
    """Units in the order of their removal, and the output's error after each number of removals; the remaining units
    compensate each removal as well as they can."""
    inverse, weight, errors = torch.linalg.inv(covariance), weight.clone(), [torch.zeros((), dtype=torch.double)]
    order: list[int] = []
    remaining = torch.ones(len(covariance), dtype=torch.bool)
    for _ in range(len(covariance)):
        cost = (weight.square().sum(0) / inverse.diagonal()).where(remaining, torch.inf)
        unit = int(cost.argmin())
        order.append(unit)
        errors.append(errors[-1] + cost[unit])
        remaining[unit] = False
        row = inverse[unit] / inverse[unit, unit]
        weight = weight - torch.outer(weight[:, unit], row)
        inverse = inverse - torch.outer(inverse[:, unit], row)
        inverse[unit, unit] = 1.0  # not used again
    return torch.tensor(order), torch.stack(errors)


def _head_slices(attention: MaskedMultiHeadAttention, width: int) -> list[slice]:
    size = width // attention.num_heads
    return [slice(head * size, (head + 1) * size) for head in range(attention.num_heads)]


def _tail_sums(variance: Float[Tensor, " n"]) -> Float[Tensor, n + 1]:
    """The variance lost if only the first k channels remain, for every k from none to all."""
    return torch.cat([variance.flip(0).cumsum(0).flip(0), variance.new_zeros(1)])


def _root_and_inverse(matrix: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """The square root of a covariance matrix, and the root's inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=max(float(values.max()) * 1e-8, 1e-12)).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def _double(weight: Tensor) -> Tensor:
    return weight.detach().double().cpu()


def _project_output(layer: nn.Linear, projection: Float[Tensor, "m n"]) -> None:
    replace_weights(layer, projection @ _double(layer.weight), projection @ _double(layer.bias))
