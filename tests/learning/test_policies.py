"""Routes for many questions, carried out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from omni_lab.data import collate
from omni_lab.learning import Recipe
from omni_lab.learning.policies import Bench
from omni_lab.modalities import Modality
from omni_lab.routing.controller import Controller
from omni_lab.routing.controls import Plan


def test_policies_are_carried_out_question_by_question(world_recipe: Recipe) -> None:
    fusion = replace(world_recipe.model.fusion, gated=True)
    recipe = replace(world_recipe, model=replace(world_recipe.model, fusion=fusion))
    data = recipe.data_module()
    model, dataset = recipe.new_model(data).eval(), data.dataset("validation")
    bench = Bench(model, dataset)
    assert sorted(bench.order) == list(range(len(dataset))) and len(bench) == len(dataset)
    everything = model.space.dense(bench.present)
    dense = bench.run(everything)
    assert dense.cost == dense.cross_modal_cost == bench.cost(everything) == pytest.approx(1.0)
    whole = collate([dataset[i] for i in bench.order.tolist()])
    with torch.inference_mode():
        answers = model(whole, heads=["answer"]).heads["answer"]
    right = whole.targets["answer_scores"].gather(1, answers.argmax(1, keepdim=True)).squeeze(1)
    assert dense.correct.tolist() == right.tolist()
    assert dense.needs.recall == 1.0 and dense.needs.precision < 1.0
    for i, number in enumerate(bench.order.tolist()):
        needs = data.store.families[dataset.families[number]].needs
        assert dense.needed[i].tolist() == [m in needs for m in Modality]
        assert bench.scenes[i] == dataset.scenes[number] and bench.families[i] == dataset.families[number]

    looking = Plan.unimodal(model.space, Modality.IMAGE).route(model.space, bench.present)
    only = bench.run(looking)
    assert only.cost == bench.cost(looking) < 1 and only.cross_modal_cost < 1
    assert not only.encoded[:, Modality.VIDEO.column].any()
    charged = bench.run(looking, controller=1000.0)
    assert np.allclose(charged.total - only.total, 1000.0)

    controller = Controller(model.space, width=16)
    route = bench.routes(lambda batch: model.decide(controller, batch)[0].route)
    assert len(route) == len(dataset)
    with pytest.raises(ValueError, match=f"a route for each of the {len(dataset)} questions: got 1"):
        bench.run(route.of(torch.tensor([0])))
    few = Bench(model, dataset, questions=[5, 3])
    assert len(few) == 2 and sorted(few.order) == [3, 5]
