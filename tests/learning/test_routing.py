"""A controller learns on a frozen network that needs some paths and not others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omni_lab.config import RouterConfig
from omni_lab.data import collate
from omni_lab.evaluation.flops import cost_model
from omni_lab.learning import Recipe
from omni_lab.learning.controllers import measure_costs
from omni_lab.learning.exits import train_exits
from omni_lab.learning.latents import encode_media
from omni_lab.learning.recipes import make_trainer
from omni_lab.learning.routing import Judged, RouterTraining, each_once
from omni_lab.modalities import Modality, OmniBatch
from omni_lab.model import OmniModel
from omni_lab.routing import Level, Route
from omni_lab.routing.controller import Controller

TEXT, IMAGE, AUDIO, VIDEO = Modality
MEDIA = (IMAGE, AUDIO, VIDEO)


@pytest.fixture
def routed_recipe(world_recipe: Recipe) -> Recipe:
    model = world_recipe.model
    return replace(
        world_recipe,
        model=replace(
            model,
            latent_bits=8,
            vision=replace(model.vision, early_exit=True),
            audio=replace(model.audio, early_exit=True),
            fusion=replace(model.fusion, gated=True),
        ),
        training=replace(world_recipe.training, frozen=MEDIA, random_routes=0.7),
    )


def test_exits_come_to_say_what_the_encoder_says(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, dataset = routed_recipe.new_model(data), data.dataset("train")
    batch = collate([dataset[i] for i in range(12)])

    def off(modality: Modality) -> float:
        given, encoder = batch.inputs[modality], model.encoders[modality.value]
        with torch.no_grad():
            full, light = encoder(given.values, given.mask), encoder.light(given.values, given.mask)  # type: ignore[operator]
        return float((full.values - light.values)[full.mask].square().mean())

    before, weights = {m: off(m) for m in MEDIA}, {k: v.clone() for k, v in model.state_dict().items()}
    train_exits(model, dataset, updates=60, media=8)
    assert all(off(m) < 0.7 * before[m] for m in MEDIA)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed and all(".exit." in name for name in changed)
    assert all(p.requires_grad for p in model.encoders.parameters())


def test_exits_depend_on_the_seed_alone(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    models = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        models.append(routed_recipe.new_model(data))
        train_exits(models[-1], data.dataset("train"), updates=3, media=4, seed=5)
    first, second = (m.state_dict() for m in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_light_latents_stand_for_the_early_exit(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, dataset = routed_recipe.new_model(data).eval(), data.dataset("validation")
    plain = collate([dataset[i] for i in range(len(dataset))])
    encode_media(model, dataset, MEDIA)
    latent = collate([dataset[i] for i in range(len(dataset))])
    route = model.space.random(plain.present, generator=torch.Generator().manual_seed(1))
    assert (route.encoders == Level.LIGHT).any()
    with torch.inference_mode():
        answers = [model(batch, heads=["answer"], route=route).heads["answer"] for batch in (plain, latent)]
    assert torch.allclose(answers[0], answers[1], atol=1e-5)


def trained(recipe: Recipe, folder: Path, config: RouterConfig) -> tuple[OmniModel, Controller, dict[str, float]]:
    data = recipe.data_module()
    model = recipe.new_model(data)
    for split in ("train", "validation"):
        encode_media(model, data.dataset(split), MEDIA)
    torch.manual_seed(0)
    controller = Controller(model.space, width=16, hidden=16, conditioned=config.conditioned)
    module = RouterTraining(model, controller, config, costs=cost_model(model, controller=controller.flops))
    trainer = make_trainer(config, folder, callbacks=[], accelerator="cpu")
    trainer.fit(module, data, weights_only=False)
    return model, controller, {k: float(v) for k, v in trainer.callback_metrics.items()}


def test_where_nothing_helps_the_controller_closes_everything(routed_recipe: Recipe, tmp_path: Path) -> None:
    """An untrained network knows nothing: all that a route changes is its cost."""
    config = RouterConfig(
        epochs=12, learning_rate=2e-2, penalty=2.0, anneal=0.1, entropy_bonus=0.0, checkpoint_every=100
    )
    model, controller, metrics = trained(routed_recipe, tmp_path, config)
    assert metrics["validation/cost"] < 0.5
    dataset = routed_recipe.data_module().dataset("validation")
    batch = collate([dataset[i] for i in range(len(dataset))])
    route, _ = model.decide(controller, batch)
    model.space.check(route, batch.present, batch.ids)
    written = batch.present[:, TEXT.column]
    assert model.space.opened(route)[written].float().mean() < 0.2


@pytest.mark.parametrize(
    "changes", [{"estimator": "self_critical"}, {"conditioned": True}, {"budget": 0.5}, {"accumulate": 2}]
)
def test_every_kind_of_training_runs(routed_recipe: Recipe, tmp_path: Path, changes: dict[str, object]) -> None:
    _, _, metrics = trained(routed_recipe, tmp_path, replace(RouterConfig(group=3, checkpoint_every=100), **changes))  # type: ignore[arg-type]
    assert {"train/reward", "train/cost", "train/entropy", "train/distinct_routes", "validation/reward"} < set(metrics)
    assert 0 < metrics["validation/cost"] <= 1.1


class PicturesHelp(RouterTraining):
    """As if the picture helped a little, and nothing else did."""

    def judge(self, batch: OmniBatch, route: Route) -> Judged:
        seen = (route.encoders[:, Modality.IMAGE.column] > Level.SKIP).float()
        return super().judge(batch, route)._replace(score=0.02 * seen)


def test_one_controller_for_all_budgets(routed_recipe: Recipe, tmp_path: Path) -> None:
    config = RouterConfig(
        epochs=50, learning_rate=1e-2, anneal=0.0, entropy_bonus=0.5, conditioned=True, checkpoint_every=1000
    )
    data = routed_recipe.data_module()
    model = routed_recipe.new_model(data)
    for split in ("train", "validation"):
        encode_media(model, data.dataset(split), MEDIA)
    torch.manual_seed(0)
    controller = Controller(model.space, width=16, hidden=16, conditioned=True)
    module = PicturesHelp(model, controller, config, costs=cost_model(model, controller=controller.flops))
    make_trainer(config, tmp_path, callbacks=[], accelerator="cpu").fit(module, data, weights_only=False)
    measure_costs(module, data.loader("validation"))
    assert ((controller.costs > 0) & (controller.costs < 1.1)).all()
    least, most = controller.costs[-1].item(), controller.costs[0].item()
    assert least < 0.9 * most, "under the highest penalty the picture is given up"
    dataset = data.dataset("validation")
    batch = collate([dataset[i] for i in range(len(dataset))])
    for budget in (least, most):
        judged = module.judge(batch, model.decide(controller, batch, budget=budget + 1e-3)[0])
        assert judged.cost.mean().item() == pytest.approx(budget, abs=0.01)
    with pytest.raises(ValueError, match="no penalty meets a budget of 0.001 "):
        model.decide(controller, batch, budget=0.001)


def test_what_was_drawn_before_is_not_tried_again(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, dataset = routed_recipe.new_model(data).eval(), data.dataset("train")
    module = RouterTraining(model, Controller(model.space, width=16), RouterConfig(), costs=cost_model(model))
    batch, generator = collate([dataset[i] for i in range(6)]), torch.Generator().manual_seed(0)
    rounds = [model.space.random(batch.present, generator=generator) for _ in range(2)]
    drawn = Route.cat([rounds[i] for i in (0, 1, 0)])
    questions, routes, where = each_once(batch, drawn)
    assert len(questions) == len(routes) <= 12 and where.tolist()[:6] == where.tolist()[12:]
    whole, once = module.judge(batch.of(torch.arange(6).repeat(3)), drawn), module.judge(questions, routes)
    assert all(torch.allclose(a[where], b, atol=1e-5) for a, b in zip(once, whole, strict=True))


def test_what_does_not_go_together_is_refused(routed_recipe: Recipe, world_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, other = routed_recipe.new_model(data), world_recipe.new_model(data)
    controller = Controller(model.space, width=16)
    with pytest.raises(ValueError, match="cannot route a model of"):
        RouterTraining(other, controller, RouterConfig(), costs=cost_model(other))
    with pytest.raises(ValueError, match="estimator must be one of .*: got 'ppo'"):
        RouterTraining(model, controller, RouterConfig(estimator="ppo"), costs=cost_model(model))
    with pytest.raises(ValueError, match="conditioned is True"):
        RouterTraining(model, controller, RouterConfig(conditioned=True), costs=cost_model(model))
    knob = Controller(model.space, width=16, conditioned=True)
    with pytest.raises(ValueError, match="learns all budgets: got budget=0.5 as well"):
        RouterTraining(model, knob, RouterConfig(conditioned=True, budget=0.5), costs=cost_model(model))
