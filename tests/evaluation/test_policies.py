"""Routes for many questions, carried out."""

from __future__ import annotations

import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.data.collate import collate
from omni_lab.evaluation.policies import PolicyEvaluator, PolicyOutcome, cheapest_keeping, load_outcomes, save_outcomes
from omni_lab.routing.baselines import StaticRoute
from omni_lab.routing.router import Router
from omni_lab.training.recipes import Recipe


def test_policies_are_carried_out_question_by_question(world_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = replace(world_recipe.model.fusion, gated=True)
    recipe = replace(world_recipe, model=replace(world_recipe.model, fusion=fusion))
    data = recipe.data_module()
    model, dataset = recipe.build_model(data).eval(), data.dataset("validation")
    bench = PolicyEvaluator(model, dataset)
    assert sorted(bench.order) == list(range(len(dataset))) and len(bench) == len(dataset)
    everything = model.space.dense(bench.present)
    dense = bench.evaluate(everything)
    assert dense.cost == dense.cross_modal_cost == bench.cost(everything) == pytest.approx(1.0)
    whole = collate([dataset[i] for i in bench.order.tolist()])
    with torch.inference_mode():
        answers = model(whole, heads=["answer"]).head_outputs["answer"]
    right = whole.targets["answer_scores"].gather(1, answers.argmax(1, keepdim=True)).squeeze(1)
    assert dense.correct.tolist() == right.tolist()
    assert dense.required_f1.recall == 1.0 and dense.required_f1.precision < 1.0
    for i, number in enumerate(bench.order.tolist()):
        needs = data.store.families[dataset.families[number]].required_modalities
        assert dense.required[i].tolist() == [m in needs for m in Modality]
        assert bench.scenes[i] == dataset.scenes[number] and bench.families[i] == dataset.families[number]

    looking = StaticRoute.unimodal(model.space, Modality.IMAGE).route(model.space, bench.present)
    only = bench.evaluate(looking)
    assert only.cost == bench.cost(looking) < 1 and only.cross_modal_cost < 1
    assert not only.encoded[:, Modality.VIDEO.column].any()
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", None)  # what was tried before is not tried again
        charged = bench.evaluate(looking, router_flops=1000.0)
    assert charged.correct.tolist() == only.correct.tolist()
    assert np.allclose(charged.flops - only.flops, 1000.0)

    controller = Router(model.space, dim=16)
    route = bench.collect_routes(lambda batch: model.select_route(controller, batch)[0])
    assert len(route) == len(dataset)
    with pytest.raises(ValueError, match=f"a route for each of the {len(dataset)} questions: got 1"):
        bench.evaluate(route.select(torch.tensor([0])))
    few = PolicyEvaluator(model, dataset, questions=[5, 3])
    assert len(few) == 2 and sorted(few.order) == [3, 5]

    soft = bench.evaluate_soft(
        lambda batch: model(batch, heads=["answer"]).head_outputs["answer"], router_flops=7.0, name="soft"
    )
    assert soft.correct.tolist() == dense.correct.tolist() and np.allclose(soft.flops - dense.flops, 7.0)


def outcome(rng: np.random.Generator, shared: dict[str, np.ndarray], *, right: float, cost: float) -> PolicyOutcome:
    size = len(shared["dense_flops"])
    own = {"flops": cost * shared["dense_flops"], "cross_modal_flops": cost * shared["dense_cross_modal_flops"]}
    encoded = rng.random((size, 4)) < 0.5
    return PolicyOutcome(correct=(np.arange(size) < right * size).astype(float), encoded=encoded, **own, **shared)


def questions(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    shared = {"dense_flops": rng.random(size) + 5, "dense_cross_modal_flops": rng.random(size)}
    return shared | {name: rng.random((size, 4)) < 0.5 for name in ("required", "question_mask")}


def test_outcomes_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shared, scenes = questions(rng, 6), np.arange(6) // 2
    given = {name: outcome(rng, shared, right=0.5, cost=0.3) for name in ("group/0.1", "dense")}
    save_outcomes(tmp_path / "outcomes.npz", given, scenes)
    found, read = load_outcomes(tmp_path / "outcomes.npz")
    assert [*found] == [*given] and read.tolist() == scenes.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["outcomes.npz"]
    with zipfile.ZipFile(tmp_path / "outcomes.npz") as archive:
        assert {kept.compress_type for kept in archive.infolist()} == {zipfile.ZIP_LZMA}
    for name, one in given.items():
        for field in fields(PolicyOutcome):
            assert np.allclose(getattr(found[name], field.name), getattr(one, field.name), rtol=1e-6)


def test_the_operating_point_must_be_sure_to_keep_the_accuracy() -> None:
    rng = np.random.default_rng(0)
    shared, scenes = questions(rng, 800), np.arange(800)
    dense = outcome(rng, shared, right=0.9, cost=1.0)
    tried = {"cheap": (0.8, 0.1), "hardly": (0.883, 0.2), "safe": (0.9, 0.3), "dear": (0.9, 0.6)}
    candidates = {name: outcome(rng, shared, right=r, cost=c) for name, (r, c) in tried.items()}
    assert candidates["hardly"].accuracy > 0.98 * dense.accuracy
    assert cheapest_keeping(0.98, dense, candidates, scenes, resamples=200) == "safe"
    del candidates["safe"], candidates["dear"]
    assert cheapest_keeping(0.98, dense, candidates, scenes, resamples=200) == "hardly"
