from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.config.schema import RouterConfig
from omni_lab.data.collate import collate
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.lightning_modules.gates import LitGates, encoded_probs, straight_through
from omni_lab.routing.baselines import StaticRoute
from omni_lab.routing.route import CrossModalPath, RouteSpace
from omni_lab.routing.router import Router
from omni_lab.training.fit import build_trainer
from omni_lab.training.frozen_encoders import cache_latents
from omni_lab.training.recipes import Recipe
from tests.lightning_modules.test_router import MEDIA, routed_recipe

__all__ = ["routed_recipe"]
TEXT, IMAGE, AUDIO, VIDEO = Modality
CONFIG = RouterConfig(epochs=6, learning_rate=2e-2, penalty=3.0, checkpoint_every=100)


def test_straight_through_is_hard_going_forward_and_soft_going_back() -> None:
    logits = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    hard = straight_through(logits, temperature=1.0, noise=False)
    assert hard.tolist() == [0.0, 1.0, 1.0]
    hard.sum().backward()
    soft = torch.tensor([-2.0, 0.5, 3.0]).sigmoid()
    assert torch.allclose(logits.grad, soft * (1 - soft))  # type: ignore[arg-type]
    many = straight_through(torch.full((40_000,), 0.8), temperature=1.0, noise=True)
    assert many.mean().item() == pytest.approx(torch.tensor(0.8).sigmoid().item(), abs=0.01)


def test_modalities_without_an_open_path_are_skipped() -> None:
    paths = (CrossModalPath(TEXT, IMAGE), CrossModalPath(TEXT, AUDIO), CrossModalPath(AUDIO, VIDEO))
    space = RouteSpace(tuple(Modality), paths, 2)
    written = torch.tensor([[True, False, False, False]])

    def modalities(*opened: tuple[int, int]) -> list[bool]:
        bits = torch.zeros(1, 2, 3)
        for layer, i in opened:
            bits[0, layer, i] = 1
        return (encoded_probs(bits, space, written)[0] > 0.5).tolist()

    assert modalities() == [True, False, False, False]
    assert modalities((1, 0)) == [True, True, False, False]
    assert modalities((0, 2)) == [True, False, False, False], "no open path leads from the question to audio"
    assert modalities((0, 2), (1, 1)) == [True, False, True, True]


def test_hard_gates_pay_while_training_what_they_run_later(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, dataset = routed_recipe.build_model(data).eval(), data.dataset("train")
    batch = collate([dataset[i] for i in range(16)])
    torch.manual_seed(0)
    router = Router(model.space, dim=16)
    torch.nn.init.normal_(router.logit_head.weight, std=300.0)  # so sure of itself that no noise changes its mind
    module = LitGates(
        model,
        router,
        replace(CONFIG, estimator="gumbel"),
        costs=build_cost_model(model, router_flops=router.flops),
    )
    route = module.route(batch)
    assert route.num_distinct > 2 and (route.encoder_levels == 0).any()
    with torch.no_grad():
        cost = module.forward_gated(batch)[1]
    counts = module.costs.count_tokens(batch)
    dense = module.costs(model.space, model.space.dense(batch.present), counts)
    expected = module.costs(model.space, route, counts).total / (dense.total - dense.router)
    assert torch.allclose(cost.double(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gumbel", "soft", "choice"])
def test_gates_learn_that_nothing_is_worth_its_cost(routed_recipe: Recipe, tmp_path: FilePath, kind: str) -> None:
    data = routed_recipe.data_module()
    model = routed_recipe.build_model(data)
    for split in ("train", "validation"):
        cache_latents(model, data.dataset(split), MEDIA)
    space = model.space
    static_routes = [StaticRoute.unimodal(space, TEXT), StaticRoute.dense(space)] if kind == "choice" else []
    router = Router(space, dim=16, num_choices=len(static_routes))
    with torch.no_grad():  # everything is open at first, and the more expensive of two static routes is chosen
        router.logit_head.bias += torch.tensor([0.0, 1.0]) if static_routes else 1.0
    config = replace(CONFIG, estimator=kind)
    module = LitGates(model, router, config, costs=build_cost_model(model), static_routes=static_routes)
    trainer = build_trainer(config, tmp_path, callbacks=[], accelerator="cpu")
    batch = collate([data.dataset("validation")[i] for i in range(12)])
    before = module.costs(space, module.route(batch), module.costs.count_tokens(batch)).total.mean()
    trainer.fit(module, data, weights_only=False)
    route = module.route(batch)
    space.check(route, batch.present, batch.ids)
    after = module.costs(space, route, module.costs.count_tokens(batch)).total.mean()
    dense = module.costs(space, space.dense(batch.present), module.costs.count_tokens(batch)).total.mean()
    if kind == "soft":
        assert after == dense, "soft gates save nothing"
        assert trainer.callback_metrics["validation/cost"] < 0.8, "but would if they were hard"
    else:
        assert before == dense and after < 0.6 * dense
    assert all(not p.requires_grad for p in model.parameters())


def test_what_does_not_go_together_is_refused(routed_recipe: Recipe) -> None:
    model = routed_recipe.build_model(routed_recipe.data_module())
    router, costs = Router(model.space, dim=16), build_cost_model(model)

    def gates(kind: str, static_routes: int) -> None:
        many = [StaticRoute.dense(model.space)] * static_routes
        LitGates(model, router, replace(CONFIG, estimator=kind), costs=costs, static_routes=many)

    with pytest.raises(ValueError, match="estimator must be one of .*'choice'.*: got 'hard'"):
        gates("hard", 0)
    with pytest.raises(ValueError, match="at least two static routes.*: got 'choice' with 1"):
        gates("choice", 1)
    with pytest.raises(ValueError, match="the other estimators none: got 'soft' with 2"):
        gates("soft", 2)
