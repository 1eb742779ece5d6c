"""Pruned models: as many weights gone as were asked for, the right ones, and what is left works as before."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch

from omni_lab.compression.pruning import (
    apply_masks,
    cubic_sparsity,
    importance,
    nonzero_masks,
    prune_structures,
    prune_weights,
    pruning_groups,
    reapply_structure_pruning,
)
from omni_lab.model import OmniModel
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]


def test_much_goes_at_first() -> None:
    sparsities = [cubic_sparsity(0.9, step, 4) for step in range(5)]
    assert sparsities[0] == 0 and sparsities[-1] == pytest.approx(0.9)
    increments = [after - before for before, after in pairwise(sparsities)]
    assert increments == sorted(increments, reverse=True)


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_the_smallest_weights_go_and_stay_away(routed: OmniModel, sparsity: float) -> None:
    model = copy.deepcopy(routed)
    before = dict(routed.named_parameters())
    prune_weights(model, sparsity)
    masks = nonzero_masks(model)
    total, zero = sum(m.numel() for m in masks.values()), sum(int((~m).sum()) for m in masks.values())
    assert zero / total == pytest.approx(sparsity, abs=1e-3)
    largest_pruned = max(float(before[n].detach().abs()[~m].max()) for n, m in masks.items() if not m.all())
    smallest_kept = min(float(before[n].detach().abs()[m].min()) for n, m in masks.items() if m.any())
    assert largest_pruned <= smallest_kept
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    apply_masks(model, masks)
    after = dict(model.named_parameters())
    assert all(not after[n][~m].any() and torch.equal(after[n][m], before[n][m] + 1) for n, m in masks.items())
    assert {*after} == {*before}, "no mask is left behind"


def random_scores(model: OmniModel, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.units, generator=generator) for group in pruning_groups(model)}


def test_whole_heads_and_units_go(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch = copy.deepcopy(routed), make_batch(5)
    before, scores = {g.name: g for g in pruning_groups(routed)}, random_scores(routed)
    total = sum(g.unit_size * g.units for g in before.values())
    record = prune_structures(model, 0.4, scores)
    left = {name: record["kept"].get(name, []) for name in before}
    removed = sum((g.units - len(left[n])) * g.unit_size for n, g in before.items())
    assert 0.4 <= removed / total < 0.4 + max(g.unit_size for g in before.values()) / total
    lost = sum(p.numel() for p in routed.parameters()) - sum(p.numel() for p in model.parameters())
    assert removed <= lost < 1.1 * removed, "and a few biases"
    for name, units in left.items():
        if len(units) > before[name].min_units:
            dropped = [float(scores[name][i]) for i in range(before[name].units) if i not in units]
            assert max(dropped, default=0) <= float(scores[name][units].min()), name
    with torch.inference_mode():
        assert model(batch).head_outputs["answer"].isfinite().all()
    again = copy.deepcopy(routed)
    reapply_structure_pruning(again, record)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_units_without_effect_have_no_importance(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch = copy.deepcopy(routed), make_batch(5)
    groups = {g.name: g for g in pruning_groups(model)}
    silent = {name: 1 for name, group in groups.items() if group.units > group.min_units}
    with torch.no_grad():
        for name, unit in silent.items():
            columns = groups[name].outer.weight.unflatten(1, (groups[name].units, -1))
            columns[:, unit] = 0
    expected = model(batch).head_outputs["answer"].detach()
    scores = importance(model, (model(batch).head_outputs["answer"].square().mean() for _ in range(2)))
    assert all(float(scores[name][unit]) == 0 for name, unit in silent.items())
    assert sum(float(w.sum()) for w in scores.values()) > 0 and all(p.grad is None for p in model.parameters())
    for name, unit in silent.items():
        scores[name] = torch.ones_like(scores[name])
        scores[name][unit] = 0
    record = prune_structures(model, 1e-9, scores)
    assert sum(g.units for g in groups.values()) - sum(map(len, record["kept"].values())) == 1
    assert torch.allclose(model(batch).head_outputs["answer"], expected, atol=1e-5)


def test_an_empty_path_goes_and_another_layer_takes_its_decisions(routed: OmniModel, make_batch: MakeBatch) -> None:
    model, batch, space = copy.deepcopy(routed), make_batch(5), routed.space
    path, scores = space.paths[0], {g.name: torch.ones(g.units) for g in pruning_groups(routed)}
    name = f"fusion.layers.1.cross.{path}.attention"
    scores[name] = torch.zeros_like(scores[name])
    size = next(g.unit_size * g.units for g in pruning_groups(routed) if g.name == name)
    record = prune_structures(model, 0.999 * size / sum(g.unit_size * g.units for g in pruning_groups(routed)), scores)
    assert record["paths"] == [[1, str(path)]] and name not in record["kept"]
    assert model.space.pruned_paths == ((1, path),)
    dense = model.space.dense(batch.present)
    assert not dense.path_mask(1, path).any()
    closed = routed.space.dense(batch.present)
    closed.interaction_mask[:, 1, path.query.column, path.key.column] = False
    with torch.inference_mode():
        whole = model(batch, route=dense).head_outputs["answer"]
        assert torch.equal(whole, model(batch).head_outputs["answer"])
        assert torch.equal(whole, routed(batch, route=closed).head_outputs["answer"])
    requested = torch.zeros(len(batch.present), space.depth, len(space.paths), dtype=torch.bool)
    requested[:, 1, 0] = True
    before, after = (s.project(dense.encoder_levels, requested, batch.present) for s in (space, model.space))
    assert before.path_mask(1, path).any() and not after.path_mask(1, path).any()
    assert torch.equal(after.path_mask(0, path), before.path_mask(1, path))
    known = model.space.to_dict()
    assert known["taken_out"] == [[1, str(path)]]
    with pytest.raises(ValueError, match="has no path"):
        model.prune_paths([(1, path)])


def test_something_is_always_left(routed: OmniModel) -> None:
    model = copy.deepcopy(routed)
    prune_structures(model, 0.99, random_scores(routed))
    assert all(
        g.units == min(g.min_units, {h.name: h.units for h in pruning_groups(routed)}[g.name])
        for g in pruning_groups(model)
    )
    left = [path for layer in model.fusion.layers for path in layer.paths]
    assert sorted(left) == sorted(routed.space.paths), "of every path, one layer keeps it"


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_impossible_sparsities_are_refused(routed: OmniModel, sparsity: float) -> None:
    for change in (prune_weights, partial(prune_structures, scores=random_scores(routed))):
        with pytest.raises(ValueError, match=r"at least 0 and less than 1: got"):
            change(routed, sparsity=sparsity)
