"""Routes for a whole split, carried out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from omni_lab.data import collate
from omni_lab.evaluation.flops import cost_model
from omni_lab.learning import Recipe
from omni_lab.learning.policies import carry_out, decide_all, in_order, presence
from omni_lab.modalities import Modality
from omni_lab.routing.controller import Controller
from omni_lab.routing.controls import Plan


def test_policies_are_carried_out_question_by_question(world_recipe: Recipe) -> None:
    recipe = replace(
        world_recipe, model=replace(world_recipe.model, fusion=replace(world_recipe.model.fusion, gated=True))
    )
    data = recipe.data_module()
    model, dataset = recipe.new_model(data).eval(), data.dataset("validation")
    batches, costs = in_order(dataset), cost_model(model)
    order = np.concatenate(batches)
    assert sorted(order) == list(range(len(dataset)))
    present = presence(dataset, batches)
    dense = carry_out(model, model.space.dense(present), dataset, batches, costs=costs)
    assert dense.cost == pytest.approx(1.0) and dense.cross_modal_cost == pytest.approx(1.0)
    whole = collate([dataset[i] for i in order.tolist()])
    with torch.inference_mode():
        answers = model(whole, heads=["answer"]).heads["answer"]
    right = whole.targets["answer_scores"].gather(1, answers.argmax(1, keepdim=True)).squeeze(1)
    assert dense.correct.tolist() == right.tolist()
    assert dense.needs.recall == 1.0 and dense.needs.precision < 1.0

    deaf = carry_out(
        model, Plan.unimodal(model.space, Modality.IMAGE).route(model.space, present), dataset, batches, costs=costs
    )
    assert deaf.cost < 1 and deaf.cross_modal_cost < 1
    assert not deaf.encoded[:, Modality.VIDEO.column].any()
    for i, number in enumerate(order.tolist()):
        needs = data.store.families[dataset.families[number]].needs
        assert dense.needed[i].tolist() == [m in needs for m in Modality]

    controller = Controller(model.space, width=16)
    route = decide_all(lambda batch: model.decide(controller, batch)[0].route, dataset, batches)
    assert len(route) == len(dataset)
    with pytest.raises(ValueError, match=f"a route for each of the {len(dataset)} questions: got 1"):
        carry_out(model, route.of(torch.tensor([0])), dataset, batches, costs=costs)
