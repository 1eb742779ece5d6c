"""A router learns on a frozen network that needs some paths and not others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality, OmniBatch
from omni_lab.config.schema import RouterConfig
from omni_lab.data.collate import collate
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.lightning_modules.router import LitRouter, RouteOutcome, deduplicate_routes
from omni_lab.model import OmniModel
from omni_lab.routing.route import ComputeLevel, Route
from omni_lab.routing.router import Router
from omni_lab.training.fit import build_trainer
from omni_lab.training.frozen_encoders import cache_latents, train_early_exits
from omni_lab.training.recipes import Recipe
from omni_lab.training.router_recipes import measure_knot_costs

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
        training=replace(world_recipe.training, frozen_encoders=MEDIA, random_route_prob=0.7),
    )


def test_exits_learn_the_outputs_of_their_encoders(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, dataset = routed_recipe.build_model(data), data.dataset("train")
    batch = collate([dataset[i] for i in range(12)])

    def off(modality: Modality) -> float:
        given, encoder = batch.inputs[modality], model.encoders[modality.value]
        with torch.no_grad():
            full, early = encoder(given.values, given.mask), encoder.forward_early_exit(given.values, given.mask)  # type: ignore[operator]
        return float((full.values - early.values)[full.mask].square().mean())

    before, weights = {m: off(m) for m in MEDIA}, {k: v.clone() for k, v in model.state_dict().items()}
    train_early_exits(model, dataset, steps=60, batch_size=8)
    assert all(off(m) < 0.7 * before[m] for m in MEDIA)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed and all(".early_exit." in name for name in changed)
    assert all(p.requires_grad for p in model.encoders.parameters())


def test_exits_depend_on_the_seed_alone(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    models = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        models.append(routed_recipe.build_model(data))
        train_early_exits(models[-1], data.dataset("train"), steps=3, batch_size=4, seed=5)
    first, second = (m.state_dict() for m in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_cached_latents_of_the_early_exit_replace_it(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, dataset = routed_recipe.build_model(data).eval(), data.dataset("validation")
    plain = collate([dataset[i] for i in range(len(dataset))])
    cache_latents(model, dataset, MEDIA)
    latent = collate([dataset[i] for i in range(len(dataset))])
    route = model.space.sample(plain.present, generator=torch.Generator().manual_seed(1))
    assert (route.encoder_levels == ComputeLevel.EARLY_EXIT).any()
    with torch.inference_mode():
        answers = [model(batch, heads=["answer"], route=route).head_outputs["answer"] for batch in (plain, latent)]
    assert torch.allclose(answers[0], answers[1], atol=1e-5)


def trained(recipe: Recipe, folder: Path, config: RouterConfig) -> tuple[OmniModel, Router, dict[str, float]]:
    data = recipe.data_module()
    model = recipe.build_model(data)
    for split in ("train", "validation"):
        cache_latents(model, data.dataset(split), MEDIA)
    torch.manual_seed(0)
    router = Router(model.space, dim=16, hidden_dim=16, penalty_conditioned=config.penalty_conditioned)
    module = LitRouter(model, router, config, costs=build_cost_model(model, router_flops=router.flops))
    trainer = build_trainer(config, folder, callbacks=[], accelerator="cpu")
    trainer.fit(module, data, weights_only=False)
    return model, router, {k: float(v) for k, v in trainer.callback_metrics.items()}


def test_where_nothing_helps_the_router_closes_everything(routed_recipe: Recipe, tmp_path: Path) -> None:
    """An untrained network knows nothing: all that a route changes is its cost."""
    config = RouterConfig(
        epochs=12, learning_rate=2e-2, penalty=2.0, anneal_fraction=0.1, entropy_coef=0.0, checkpoint_every=100
    )
    model, router, metrics = trained(routed_recipe, tmp_path, config)
    assert metrics["validation/cost"] < 0.5
    dataset = routed_recipe.data_module().dataset("validation")
    batch = collate([dataset[i] for i in range(len(dataset))])
    route, _ = model.select_route(router, batch)
    model.space.check(route, batch.present, batch.ids)
    written = batch.present[:, TEXT.column]
    assert model.space.path_mask(route)[written].float().mean() < 0.2


@pytest.mark.parametrize(
    "changes", [{"estimator": "self_critical"}, {"penalty_conditioned": True}, {"budget": 0.5}, {"accumulate": 2}]
)
def test_every_kind_of_training_runs(routed_recipe: Recipe, tmp_path: Path, changes: dict[str, object]) -> None:
    _, _, metrics = trained(
        routed_recipe, tmp_path, replace(RouterConfig(group_size=3, checkpoint_every=100), **changes)
    )  # type: ignore[arg-type]
    assert {"train/reward", "train/cost", "train/entropy", "train/distinct_routes", "validation/reward"} < set(metrics)
    assert 0 < metrics["validation/cost"] <= 1.1


class ImagesHelp(LitRouter):
    """As if images helped a little, and nothing else did."""

    def evaluate_route(self, batch: OmniBatch, route: Route) -> RouteOutcome:
        seen = (route.encoder_levels[:, Modality.IMAGE.column] > ComputeLevel.SKIP).float()
        return super().evaluate_route(batch, route)._replace(answer_prob=0.02 * seen)


def test_one_router_for_all_budgets(routed_recipe: Recipe, tmp_path: Path) -> None:
    config = RouterConfig(
        epochs=50,
        learning_rate=1e-2,
        anneal_fraction=0.0,
        entropy_coef=0.5,
        penalty_conditioned=True,
        checkpoint_every=1000,
    )
    data = routed_recipe.data_module()
    model = routed_recipe.build_model(data)
    for split in ("train", "validation"):
        cache_latents(model, data.dataset(split), MEDIA)
    torch.manual_seed(0)
    router = Router(model.space, dim=16, hidden_dim=16, penalty_conditioned=True)
    module = ImagesHelp(model, router, config, costs=build_cost_model(model, router_flops=router.flops))
    build_trainer(config, tmp_path, callbacks=[], accelerator="cpu").fit(module, data, weights_only=False)
    measure_knot_costs(module, data.loader("validation"))
    assert ((router.costs > 0) & (router.costs < 1.1)).all()
    least, most = router.costs[-1].item(), router.costs[0].item()
    assert least < 0.9 * most, "under the highest penalty images are skipped"
    dataset = data.dataset("validation")
    batch = collate([dataset[i] for i in range(len(dataset))])
    for budget in (least, most):
        outcome = module.evaluate_route(batch, model.select_route(router, batch, budget=budget + 1e-3)[0])
        assert outcome.cost.mean().item() == pytest.approx(budget, abs=0.01)
    with pytest.raises(ValueError, match="no penalty meets a budget of 0.001 "):
        model.select_route(router, batch, budget=0.001)


def test_duplicate_routes_are_run_once(routed_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, dataset = routed_recipe.build_model(data).eval(), data.dataset("train")
    module = LitRouter(model, Router(model.space, dim=16), RouterConfig(), costs=build_cost_model(model))
    batch, generator = collate([dataset[i] for i in range(6)]), torch.Generator().manual_seed(0)
    rounds = [model.space.sample(batch.present, generator=generator) for _ in range(2)]
    sampled = Route.cat([rounds[i] for i in (0, 1, 0)])
    questions, routes, where = deduplicate_routes(batch, sampled)
    assert len(questions) == len(routes) <= 12 and where.tolist()[:6] == where.tolist()[12:]
    whole, once = (
        module.evaluate_route(batch.select(torch.arange(6).repeat(3)), sampled),
        module.evaluate_route(questions, routes),
    )
    assert all(torch.allclose(a[where], b, atol=1e-5) for a, b in zip(once, whole, strict=True))


def test_what_does_not_go_together_is_refused(routed_recipe: Recipe, world_recipe: Recipe) -> None:
    data = routed_recipe.data_module()
    model, other = routed_recipe.build_model(data), world_recipe.build_model(data)
    router = Router(model.space, dim=16)
    with pytest.raises(ValueError, match="cannot route a model of"):
        LitRouter(other, router, RouterConfig(), costs=build_cost_model(other))
    with pytest.raises(ValueError, match="estimator must be one of .*: got 'ppo'"):
        LitRouter(model, router, RouterConfig(estimator="ppo"), costs=build_cost_model(model))
    with pytest.raises(ValueError, match="conditioned is True"):
        LitRouter(model, router, RouterConfig(penalty_conditioned=True), costs=build_cost_model(model))
    knob = Router(model.space, dim=16, penalty_conditioned=True)
    with pytest.raises(ValueError, match="learns all budgets: got budget=0.5 as well"):
        LitRouter(model, knob, RouterConfig(penalty_conditioned=True, budget=0.5), costs=build_cost_model(model))
