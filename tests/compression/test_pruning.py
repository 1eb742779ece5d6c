"""Pruned models: as many weights gone as were asked for, the right ones, and what is left works as before."""

from __future__ import annotations

import copy
import json
from functools import partial
from itertools import pairwise

import pytest
import torch

from omni_lab.compression.pruning import (
    apply_masks,
    cubic_share,
    importance,
    nonzero_masks,
    prune_structures,
    prune_weights,
    pruning_groups,
    reapply_structure_pruning,
)
from omni_lab.model import OmniModel
from omni_lab.routing.route import RouteSpace
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
    prune_weights(model, share)
    kept = nonzero_masks(model)
    total, zero = sum(m.numel() for m in kept.values()), sum(int((~m).sum()) for m in kept.values())
    assert zero / total == pytest.approx(share, abs=1e-3)
    largest_gone = max(float(before[n].detach().abs()[~m].max()) for n, m in kept.items() if not m.all())
    smallest_left = min(float(before[n].detach().abs()[m].min()) for n, m in kept.items() if m.any())
    assert largest_gone <= smallest_left
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    apply_masks(model, kept)
    after = dict(model.named_parameters())
    assert all(not after[n][~m].any() and torch.equal(after[n][m], before[n][m] + 1) for n, m in kept.items())
    assert {*after} == {*before}, "no mask is left behind"


def worth_of(model: OmniModel, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.parts, generator=generator) for group in pruning_groups(model)}


def test_whole_heads_and_units_go(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch = copy.deepcopy(routed), make_batch(5)
    before, worth = {g.name: g for g in pruning_groups(routed)}, worth_of(routed)
    held = sum(g.size * g.parts for g in before.values())
    gone = prune_structures(model, 0.4, worth)
    left = {name: gone["kept"].get(name, []) for name in before}
    went = sum((g.parts - len(left[n])) * g.size for n, g in before.items())
    assert 0.4 <= went / held < 0.4 + max(g.size for g in before.values()) / held
    lost = sum(p.numel() for p in routed.parameters()) - sum(p.numel() for p in model.parameters())
    assert went <= lost < 1.1 * went, "and a few biases"
    for name, units in left.items():
        if len(units) > before[name].least:
            dropped = [float(worth[name][i]) for i in range(before[name].parts) if i not in units]
            assert max(dropped, default=0) <= float(worth[name][units].min()), name
    with torch.inference_mode():
        assert model(batch).head_outputs["answer"].isfinite().all()
    again = copy.deepcopy(routed)
    reapply_structure_pruning(again, gone)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_what_is_not_missed_is_worth_nothing(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch = copy.deepcopy(routed), make_batch(5)
    groups = {g.name: g for g in pruning_groups(model)}
    silent = {name: 1 for name, group in groups.items() if group.parts > group.least}
    with torch.no_grad():
        for name, unit in silent.items():
            columns = groups[name].out.unflatten(1, (groups[name].parts, -1))
            columns[:, unit] = 0
    expected = model(batch).head_outputs["answer"].detach()
    worth = importance(model, (model(batch).head_outputs["answer"].square().mean() for _ in range(2)))
    assert all(float(worth[name][unit]) == 0 for name, unit in silent.items())
    assert sum(float(w.sum()) for w in worth.values()) > 0 and all(p.grad is None for p in model.parameters())
    for name, unit in silent.items():
        worth[name] = torch.ones_like(worth[name])
        worth[name][unit] = 0
    gone = prune_structures(model, 1e-9, worth)
    assert sum(g.parts for g in groups.values()) - sum(map(len, gone["kept"].values())) == 1
    assert torch.allclose(model(batch).head_outputs["answer"], expected, atol=1e-5)


def test_an_empty_path_goes_and_another_layer_takes_its_wishes(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch, space = copy.deepcopy(routed), make_batch(5), routed.space
    path, worth = space.paths[0], {g.name: torch.ones(g.parts) for g in pruning_groups(routed)}
    name = f"fusion.layers.1.cross.{path}.attention"
    worth[name] = torch.zeros_like(worth[name])
    size = next(g.size * g.parts for g in pruning_groups(routed) if g.name == name)
    gone = prune_structures(model, 0.999 * size / sum(g.size * g.parts for g in pruning_groups(routed)), worth)
    assert gone["paths"] == [[1, str(path)]] and name not in gone["kept"] and model.space.pruned_paths == ((1, path),)
    dense = model.space.dense(batch.present)
    assert not dense.path_mask(1, path).any()
    closed = routed.space.dense(batch.present)
    closed.interaction_mask[:, 1, path.query.column, path.key.column] = False
    with torch.inference_mode():
        whole = model(batch, route=dense).head_outputs["answer"]
        assert torch.equal(whole, model(batch).head_outputs["answer"])
        assert torch.equal(whole, routed(batch, route=closed).head_outputs["answer"])
    wished = torch.zeros(len(batch.present), space.depth, len(space.paths), dtype=torch.bool)
    wished[:, 1, 0] = True
    before, after = (s.project(dense.encoder_levels, wished, batch.present) for s in (space, model.space))
    assert before.path_mask(1, path).any() and not after.path_mask(1, path).any()
    assert torch.equal(after.path_mask(0, path), before.path_mask(1, path))
    known = json.loads(json.dumps(model.space.to_dict()))
    assert RouteSpace.from_dict(known).pruned_paths == ((1, path),)
    with pytest.raises(ValueError, match="has no path"):
        model.prune_paths([(1, path)])


def test_something_is_always_left(routed: OmniModel) -> None:
    model = copy.deepcopy(routed)
    prune_structures(model, 0.99, worth_of(routed))
    assert all(
        g.parts == min(g.least, {h.name: h.parts for h in pruning_groups(routed)}[g.name])
        for g in pruning_groups(model)
    )
    left = [path for layer in model.fusion.layers for path in layer.paths]
    assert sorted(left) == sorted(routed.space.paths), "of every path, one layer keeps it"


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_impossible_shares_are_refused(routed: OmniModel, share: float) -> None:
    for change in (prune_weights, partial(prune_structures, worth=worth_of(routed))):
        with pytest.raises(ValueError, match=r"at least 0 and less than 1: got"):
            change(routed, share=share)
