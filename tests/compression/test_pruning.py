"""Pruned models: as many weights gone as were asked for, the right ones, and what is left works as before."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from omni_lab.attention import MultiHeadAttention
from omni_lab.compression.pruning import (
    cubic_share,
    groups_of,
    keep_only,
    rarest_paths,
    still_there,
    take_out,
    zero_again,
    zero_smallest,
)
from omni_lab.modalities import Tokens
from omni_lab.model import OmniModel
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]


def test_much_goes_at_first() -> None:
    shares = [cubic_share(0.9, step, 4) for step in range(5)]
    assert shares[0] == 0 and shares[-1] == pytest.approx(0.9)
    steps = [after - before for before, after in pairwise(shares)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_smallest_weights_go_and_stay_away(routed: OmniModel, share: float) -> None:
    model = copy.deepcopy(routed)
    before = dict(routed.named_parameters())
    zero_smallest(model, share)
    kept = still_there(model)
    total, zero = sum(m.numel() for m in kept.values()), sum(int((~m).sum()) for m in kept.values())
    assert zero / total == pytest.approx(share, abs=1e-3)
    largest_gone = max(float(before[n].detach().abs()[~m].max()) for n, m in kept.items() if not m.all())
    smallest_left = min(float(before[n].detach().abs()[m].min()) for n, m in kept.items() if m.any())
    assert largest_gone <= smallest_left
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    zero_again(model, kept)
    after = dict(model.named_parameters())
    assert all(not after[n][~m].any() and torch.equal(after[n][m], before[n][m] + 1) for n, m in kept.items())
    assert {*after} == {*before}, "no mask is left behind"


def test_whole_heads_and_units_go(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch = copy.deepcopy(routed), make_batch(5)
    before = {g.name: g for g in groups_of(routed)}
    held = sum(g.size * len(g.scores) for g in before.values())
    kept = take_out(model, 0.4)
    gone = sum((len(g.scores) - len(kept[n])) * g.size for n, g in before.items())
    assert 0.4 <= gone / held < 0.4 + max(g.size for g in before.values()) / held
    lost = sum(p.numel() for p in routed.parameters()) - sum(p.numel() for p in model.parameters())
    assert gone <= lost < 1.1 * gone, "and a few biases"
    with torch.inference_mode():
        assert model(batch).heads["answer"].isfinite().all()
    again = copy.deepcopy(routed)
    keep_only(again, kept)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_what_weighs_nothing_is_not_missed() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(dim=16, heads=4)
    with torch.no_grad():
        attention.out.weight[:, 4:8] = 0
        for layer in (attention.query, attention.key, attention.value):
            layer.weight[4:8] = 0
    tokens = Tokens(torch.randn(3, 5, 16), torch.ones(3, 5).bool())
    expected = attention(tokens.values, tokens).values
    assert take_out(nn.ModuleDict({"a": attention}), 0.25) == {"a": [0, 2, 3]}
    assert attention.heads == 3 and attention.query.out_features == attention.out.in_features == 12
    assert torch.allclose(attention(tokens.values, tokens).values, expected, atol=1e-6)


def test_the_least_used_paths_go_and_no_route_opens_them(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch = copy.deepcopy(routed), make_batch(5)
    space = routed.space
    rates = torch.rand(space.depth, len(space.paths), generator=torch.Generator().manual_seed(1))
    gone = rarest_paths(space, rates, 3)
    used = [float(rates[layer, space.paths.index(path)]) for layer, path in gone]
    assert len({*gone}) == 3 and used == sorted(used) and used[0] == float(rates.min())
    model.take_out(gone)
    assert not {*gone} & {*rarest_paths(model.space, rates, 1)}
    dense = model.space.dense(batch.present)
    assert all(not dense.opened(layer, path).any() for layer, path in gone)
    closed = routed.space.dense(batch.present)
    for layer, path in gone:
        closed.interactions[:, layer, path.query.column, path.key.column] = False
    with torch.inference_mode():
        assert torch.equal(model(batch).heads["answer"], model(batch, route=dense).heads["answer"])
        assert torch.equal(model(batch, route=dense).heads["answer"], routed(batch, route=closed).heads["answer"])
    with pytest.raises(ValueError, match="has no path"):
        model.take_out(gone[:1])


def test_some_way_between_two_modalities_is_always_left(routed: OmniModel) -> None:
    model, space = copy.deepcopy(routed), routed.space
    rates = torch.rand(space.depth, len(space.paths), generator=torch.Generator().manual_seed(2))
    model.take_out(rarest_paths(space, rates, 1))
    model.take_out(rarest_paths(model.space, rates, 1000))
    left = [path for layer in model.fusion.layers for path in layer.paths]
    assert sorted(left) == sorted(space.paths)


def test_something_is_always_left(routed: OmniModel) -> None:
    model = copy.deepcopy(routed)
    kept = take_out(model, 0.99)
    assert all(len(kept[g.name]) == min(g.least, len(g.scores)) for g in groups_of(routed))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_impossible_shares_are_refused(routed: OmniModel, share: float) -> None:
    for change in (zero_smallest, take_out):
        with pytest.raises(ValueError, match=r"at least 0 and less than 1: got"):
            change(routed, share)
