"""Narrower models: of the size that was asked for, and as like the whole one as their width allows."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.compression.channel_pruning import CHANNEL_MULTIPLE, prune_channels, reapply_channel_pruning
from omni_lab.compression.parts import AssemblySpec, ModelPart, assemble_model, split_model
from omni_lab.fusion.packed import is_packed_supported
from omni_lab.layers.attention import MaskedMultiHeadAttention
from omni_lab.model import OmniModel
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]

Block = nn.ModuleDict


def runs(model: OmniModel, make_batch: MakeBatch) -> Iterator[object]:
    return (model(make_batch(12, seed=seed)) for seed in range(4))


def prunable(model: nn.Module) -> int:
    """Weights of the matrices that can be narrowed."""
    found = [m for m in model.modules() if isinstance(m, MaskedMultiHeadAttention | Mlp)]
    return sum(w.numel() for m in found for w in m.parameters() if w.ndim == 2)


def test_as_much_goes_as_was_asked_for(routed: OmniModel, make_batch: MakeBatch) -> None:
    answers = {}
    for sparsity in (0.0, 0.3, 0.6):
        model = copy.deepcopy(routed)
        record = prune_channels(model, sparsity, runs(model, make_batch))
        assert prunable(model) <= (1 - sparsity) * prunable(routed)
        assert prunable(model) > (1 - sparsity - 0.15) * prunable(routed), "and little more"
        assert bool(record["shapes"]) == (sparsity > 0)
        for module in model.modules():
            if isinstance(module, MaskedMultiHeadAttention):
                each = [layer.out_features // module.num_heads for layer in (module.query, module.key, module.value)]
                assert each[0] == each[1] and all(n % CHANNEL_MULTIPLE == 0 or n == module.head_dim for n in each)
                assert module.out.in_features == module.value.out_features
        with torch.inference_mode():
            answers[sparsity] = model(make_batch(9)).head_outputs["answer"]
        again = copy.deepcopy(routed)
        reapply_channel_pruning(again, json.loads(json.dumps(record)))
        again.load_state_dict(model.state_dict())
        with torch.inference_mode():
            assert torch.equal(again(make_batch(9)).head_outputs["answer"], answers[sparsity])
    assert torch.equal(answers[0.0], routed(make_batch(9)).head_outputs["answer"].detach())
    error = {sparsity: float((said - answers[0.0]).square().mean()) for sparsity, said in answers.items()}
    assert error[0.3] < error[0.6] < float(answers[0.0].var())


def simple_block(width: int, rank: int) -> tuple[Any, Tensor]:
    """An attention whose inputs vary in `rank` directions alone, and such inputs."""
    torch.manual_seed(1)
    attention = MaskedMultiHeadAttention(dim=width, num_heads=2)
    for layer in attention.children():
        nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    inputs = torch.randn(64, 9, rank) @ torch.randn(rank, width) + torch.randn(width)
    return attention, inputs


def test_what_no_input_reaches_goes_without_loss() -> None:
    attention, inputs = simple_block(width=32, rank=4)
    mask = torch.ones(64, 9, dtype=torch.bool)

    def said(module: nn.Module) -> Tensor:
        return module(inputs, Tokens(inputs, mask)).values

    whole = nn.ModuleDict({"attention": attention})
    expected = said(attention).detach()
    for sparsity in (0.5, 0.75):  # four directions need four of sixteen channels
        smaller = copy.deepcopy(whole)
        prune_channels(smaller, sparsity, (said(smaller["attention"]) for _ in range(1)))
        assert prunable(smaller) == (1 - sparsity) * prunable(whole)
        assert torch.allclose(said(smaller["attention"]), expected, atol=1e-3), sparsity


def test_units_that_others_can_replace_go_first() -> None:
    torch.manual_seed(0)
    network = Mlp(16, hidden_features=24).eval()
    with torch.no_grad():
        network.fc1.weight[12:] = network.fc1.weight[:12]  # each unit has a twin
        network.fc1.bias[12:] = network.fc1.bias[:12]
    x = torch.randn(500, 16)
    expected = network(x).detach()
    smaller = nn.ModuleDict({"mlp": copy.deepcopy(network)})
    prune_channels(smaller, 0.5, (smaller["mlp"](x) for _ in range(1)))
    first: Any = smaller["mlp"].fc1
    assert first.out_features == 12
    assert len({tuple(row) for row in first.weight.tolist()}) == 12, "one of each pair stays"
    assert torch.allclose(smaller["mlp"](x), expected, atol=1e-2)
    plain = copy.deepcopy(network)
    with torch.no_grad():
        plain.fc2.weight[:, 12:] = 0
    assert (plain(x) - expected).abs().max() > 0.1, "what is left makes up for it"


def test_units_are_chosen_and_made_up_for_as_well_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    network = Mlp(4, hidden_features=6).eval()
    with torch.no_grad():
        network.fc1.bias.fill_(1.0)  # units whose mean is not zero
    x = torch.randn(400, 4) @ torch.randn(4, 4)
    expected = network(x).detach()
    hidden = network.act(network.fc1(x)).detach()
    ones = torch.ones(len(hidden), 1)

    def best(stay: tuple[int, ...]) -> float:
        known = torch.cat([hidden[:, list(stay)], ones], 1)
        return float((known @ torch.linalg.lstsq(known, expected).solution - expected).square().sum())

    monkeypatch.setattr("omni_lab.compression.channel_pruning.CHANNEL_MULTIPLE", 1)
    smaller = nn.ModuleDict({"mlp": copy.deepcopy(network)})
    prune_channels(smaller, 0.16, (smaller["mlp"](x) for _ in range(1)))
    assert smaller["mlp"].fc1.out_features == 5
    found = float((smaller["mlp"](x).detach() - expected).square().sum())
    errors = [best(stay) for stay in itertools.combinations(range(6), 5)]
    assert found == pytest.approx(min(errors), rel=0.05) and min(errors) < 0.9 * sorted(errors)[1]


@pytest.mark.parametrize("kind", ["parts", "need_weights", "masked"])
def test_every_way_of_carrying_out_takes_narrow_paths(routed: OmniModel, make_batch: MakeBatch, kind: str) -> None:
    model, batch = copy.deepcopy(routed), make_batch(6)
    prune_channels(model, 0.4, runs(model, make_batch))
    with torch.inference_mode():
        expected = model(batch).head_outputs["answer"]
        if kind == "parts":
            carried = assemble_model(AssemblySpec.from_model(model), lambda name, *given: parts[name].module(*given))
            parts = {part.name: part for part in split_model(model, batch)}
            found = carried(batch).head_outputs["answer"]
        elif kind == "need_weights":
            found = model(batch, need_weights=True).head_outputs["answer"]
        else:
            found = model(batch, route=model.space.dense(batch.present), execution="masked").head_outputs["answer"]
    assert torch.allclose(found, expected, atol=1e-4)


def test_narrow_paths_are_not_packed(routed: OmniModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = Tokens(torch.zeros(2, 3, 16).half(), torch.ones(2, 3).bool())
    model = copy.deepcopy(routed)
    prune_channels(model, 0.4, runs(model, make_batch))
    before, after = ([*layer.cross.values()] for layer in (routed.fusion.layers[0], model.fusion.layers[0]))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert is_packed_supported({Modality.TEXT: halves}, before) and not is_packed_supported(
        {Modality.TEXT: halves}, after
    )


def test_parts_with_other_heads_have_another_graph_key() -> None:
    keys = []
    for dim, heads in ((16, 2), (16, 4)):
        attention = nn.ModuleDict({"attention": MaskedMultiHeadAttention(dim=dim, num_heads=heads)})
        keys.append(ModelPart("a", attention, None, (), ()).graph_key)
    assert keys[0] != keys[1], "the same shapes, but other graphs"


def test_what_was_not_run_stays(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch = copy.deepcopy(routed), make_batch(5)
    closed = model.space.dense(batch.present)
    closed.interaction_mask[:] = False
    record = prune_channels(model, 0.5, (model(batch, route=closed) for _ in range(2)))
    assert record["shapes"] and not any(".cross." in name for name in record["shapes"])
    with pytest.raises(ValueError, match="channel pruning needs data"):
        prune_channels(model, 0.5, iter(()))


def test_hooks_are_gone_after_an_error(routed: OmniModel) -> None:
    def broken() -> Iterator[object]:
        yield None
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        prune_channels(routed, 0.5, broken())
    assert not any(module._forward_hooks for module in routed.modules())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_impossible_sparsities_are_refused(routed: OmniModel, sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"at least 0 and less than 1: got"):
        prune_channels(routed, sparsity, iter(()))
