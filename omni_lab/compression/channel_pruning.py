"""Attentions and feed-forward networks made narrower: turned so that few channels carry nearly everything, and the
other channels taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from timm.layers import Mlp
from torch import Tensor, nn

from omni_lab.compression.pruning import check_share
from omni_lab.layers.attention import MaskedMultiHeadAttention

STEP = 4  # widths are multiples of it, as processors like them
RIDGE = 1e-4  # of units' mean variance, added before a matrix is inverted


class Moments:
    """Of what a layer is given or says, over everything that it sees: the mean, and the second moments about zero and
    about the mean."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Any = 0
        self.square: Any = 0

    def see(self, x: Float[Tensor, "*b d"]) -> None:
        x = x.detach().flatten(0, -2).double()
        self.count += len(x)
        self.sum = self.sum + x.sum(0).cpu()
        self.square = self.square + (x.T @ x).cpu()

    @property
    def mean(self) -> Float[Tensor, " d"]:
        return self.sum / self.count

    @property
    def second(self) -> Float[Tensor, "d d"]:
        return self.square / self.count

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        return self.second - torch.outer(self.mean, self.mean)


class ChannelReduction(NamedTuple):
    """A width that can be made smaller. error: [n + 1], by how many channels stay: of scores the mean square of what
    is lost, of values (each head by itself) and hidden units the share of the output's variance. size: how many weights
    a channel has. leave: makes it that narrow."""

    error: Float[Tensor, " n"]
    size: int
    leave: Callable[[int], None]

    @property
    def width(self) -> int:
        return len(self.error) - 1

    def within(self, tolerance: float) -> int:
        """The least width whose error is tolerable."""
        least = int((self.error > tolerance).sum())
        return min(self.width, STEP * max(1, -(-least // STEP)))


def prune_channels(model: nn.Module, share: float, runs: Iterable[object]) -> dict[str, Any]:
    """Makes every attention and every feed-forward network of ours narrower, until together they have lost that share
    of their weights (or are all as narrow as can be); returns what `narrow_again` wants, as JSON keeps it.

    Each becomes as narrow as it can with an error below a tolerance, the same for all; it is searched for. Queries and
    keys of a head go over to the directions that decide its scores (the singular vectors of the product of the roots of
    their second moments, those of keys about their mean: as if queries and keys were independent); values to the
    principal directions of what the head says (compare Ashkboos et al. 2024, who slice whole transformers so). Hidden
    units have no such directions and go one by one, the one first whose loss the others can best make up for in the
    layer's output, in the mean square (optimal brain surgeon, Hassibi and Stork 1993; the inverse is kept up to date as
    in Frantar and Alistarh 2022, here for whole columns). Nothing is trained.

    runs: iterating over it runs the model on data; that is what outputs are compared on, padded tokens among them. What
    it does not reach stays.
    Raises ValueError for a share that is not from 0 up to 1, or if nothing is reached.
    """
    check_share(share)
    cuts = list(_cuts(model, _observed(model, runs)))
    if not cuts:
        raise ValueError("narrowing wants data to compare outputs on: no attention and no feed-forward network was run")
    before = {name: layer.weight.shape for name, layer in _linears(model)}
    wanted = (1 - share) * sum(cut.size * cut.width for cut in cuts)
    low, high = 1e-9, max(float(cut.error[0]) for cut in cuts)
    for _ in range(60):
        middle = (low * high) ** 0.5
        if sum(cut.size * cut.within(middle) for cut in cuts) > wanted:
            low = middle
        else:
            high = middle
    for cut in cuts:
        stays = cut.within(high) if share else cut.width
        if stays < cut.width:
            cut.leave(stays)
    return {
        "shapes": {name: [*layer.weight.shape] for name, layer in _linears(model) if layer.weight.shape != before[name]}
    }


def reapply_channel_pruning(model: nn.Module, gone: Mapping[str, Any]) -> None:
    """Makes another copy as narrow, its weights yet to be loaded."""
    for name, shape in gone["shapes"].items():
        layer: Any = model.get_submodule(name)
        _set(layer, layer.weight.new_zeros(shape), layer.bias.new_zeros(shape[0]))


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))


def _observed(model: nn.Module, runs: Iterable[object]) -> dict[str, Moments]:
    """Of what queries and keys say, and of what the last layers are given."""
    found: dict[str, Moments] = {}

    def see(name: str, layer: nn.Module, given: tuple[Tensor], said: Tensor) -> None:
        found.setdefault(name, Moments()).see(said if name.endswith(("query", "key")) else given[0])

    hooks = []
    for name, module in model.named_modules():
        ends = {MaskedMultiHeadAttention: ("query", "key", "out"), Mlp: ("fc2",)}.get(type(module), ())
        hooks += [module.get_submodule(e).register_forward_hook(partial(see, f"{name}.{e}")) for e in ends]
    try:
        with torch.no_grad():
            for _ in runs:
                pass
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _cuts(model: nn.Module, moments: Mapping[str, Moments]) -> Iterator[ChannelReduction]:
    for name, module in model.named_modules():
        if isinstance(module, MaskedMultiHeadAttention) and f"{name}.out" in moments:
            yield _cut_scores(module, moments[f"{name}.query"], moments[f"{name}.key"])
            yield _cut_values(module, moments[f"{name}.out"])
        elif isinstance(module, Mlp) and f"{name}.fc2" in moments:
            yield _cut_units(module, moments[f"{name}.fc2"])


def _cut_scores(attention: MaskedMultiHeadAttention, queries: Moments, keys: Moments) -> ChannelReduction:
    """A constant added to all keys of a sample changes nothing in the softmax; here, keys vary about the mean of all
    samples."""
    turns, error = [], torch.zeros(1, dtype=torch.double)
    for head in _heads(attention, len(queries.mean)):
        (query, query_inverse), (key, key_inverse) = (_roots(m[head, head]) for m in (queries.second, keys.covariance))
        left, strength, right = torch.linalg.svd(query @ key)
        turns.append(
            (strength.sqrt()[:, None] * left.T @ query_inverse, strength.sqrt()[:, None] * right @ key_inverse)
        )
        error = error + _lost(strength.square()) / attention.head_dim / attention.num_heads

    def leave(channels: int) -> None:
        for layer, turn in zip((attention.query, attention.key), zip(*turns, strict=True), strict=True):
            _turn(layer, torch.block_diag(*[t[:channels] for t in turn]))

    return ChannelReduction(error, 2 * attention.dim * attention.num_heads, leave)


def _cut_values(attention: MaskedMultiHeadAttention, mixed: Moments) -> ChannelReduction:
    weight = _exact(attention.out.weight)
    total = ((weight @ mixed.covariance) * weight).sum().clamp(min=1e-12)
    directions, error, heads = [], torch.zeros(1, dtype=torch.double), _heads(attention, len(mixed.mean))
    for head in heads:
        root = _roots(mixed.covariance[head, head])[0]
        direction, strength, _ = torch.linalg.svd(weight[:, head] @ root, full_matrices=False)
        directions.append(direction)
        error = error + _lost(strength.square()) / total

    def leave(channels: int) -> None:
        kept = [direction[:, :channels] for direction in directions]
        turn = torch.block_diag(*[k.T @ weight[:, head] for k, head in zip(kept, heads, strict=True)])
        said = torch.cat(kept, 1)
        _set(attention.out, said, _exact(attention.out.bias) + (weight - said @ turn) @ mixed.mean)
        _turn(attention.value, turn)

    return ChannelReduction(error, 2 * attention.dim * attention.num_heads, leave)


def _cut_units(network: Any, given: Moments) -> ChannelReduction:
    covariance, weight = given.covariance, _exact(network.fc2.weight)
    total = ((weight @ covariance) * weight).sum().clamp(min=1e-12)
    covariance = covariance + RIDGE * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance))
    order, errors = _least_missed(covariance, weight)

    def leave(units: int) -> None:
        stay: Int[Tensor, " u"] = order[len(order) - units :].sort().values
        said = torch.linalg.solve(covariance[stay][:, stay], covariance[stay] @ weight.T).T
        _set(network.fc2, said, _exact(network.fc2.bias) + weight @ given.mean - said @ given.mean[stay])
        _set(network.fc1, _exact(network.fc1.weight)[stay], _exact(network.fc1.bias)[stay])

    return ChannelReduction(errors.flip(0) / total, network.fc1.in_features + network.fc2.out_features, leave)


def _least_missed(
    covariance: Float[Tensor, "u u"], weight: Float[Tensor, "d u"]
) -> tuple[Int[Tensor, " u"], Float[Tensor, u + 1]]:
    """Units in the order in which they go, and the error of the output after so many; what is left makes up for each as
    well as it can."""
    inverse, weight, errors = torch.linalg.inv(covariance), weight.clone(), [torch.zeros((), dtype=torch.double)]
    order: list[int] = []
    alive = torch.ones(len(covariance), dtype=torch.bool)
    for _ in range(len(covariance)):
        cost = (weight.square().sum(0) / inverse.diagonal()).where(alive, torch.inf)
        unit = int(cost.argmin())
        order.append(unit)
        errors.append(errors[-1] + cost[unit])
        alive[unit] = False
        row = inverse[unit] / inverse[unit, unit]
        weight = weight - torch.outer(weight[:, unit], row)
        inverse = inverse - torch.outer(inverse[:, unit], row)
        inverse[unit, unit] = 1.0  # never asked for again
    return torch.tensor(order), torch.stack(errors)


def _heads(attention: MaskedMultiHeadAttention, width: int) -> list[slice]:
    each = width // attention.num_heads
    return [slice(head * each, (head + 1) * each) for head in range(attention.num_heads)]


def _lost(variance: Float[Tensor, " n"]) -> Float[Tensor, n + 1]:
    """What is lost if only the first k channels stay, for every k from none to all."""
    return torch.cat([variance.flip(0).cumsum(0).flip(0), variance.new_zeros(1)])


def _roots(matrix: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """The root of a covariance, and its inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=max(float(values.max()) * 1e-8, 1e-12)).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().double().cpu()


def _turn(layer: nn.Linear, turn: Float[Tensor, "m n"]) -> None:
    _set(layer, turn @ _exact(layer.weight), turn @ _exact(layer.bias))


def _set(layer: nn.Linear, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"]) -> None:
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.to(layer.weight).contiguous(), layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(layer.bias), layer.bias.requires_grad)
