"""Sequential routers are trained, saved, loaded again, and run for real."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.config.schema import Profile, RouterConfig
from omni_lab.evaluation.policies import PolicyEvaluator
from omni_lab.routing.glance import WIDTH
from omni_lab.training import sequential_recipes
from omni_lab.training.recipes import Recipe, TrainedModel
from omni_lab.training.sequential_recipes import SequentialRecipe, glance_flops, load_or_train_sequential

ROUTER = RouterConfig(estimator="sequential", hidden=8, group_size=3, max_batch_cost=4, checkpoint_every=2)


@pytest.fixture
def network(world_recipe: Recipe) -> tuple[Recipe, TrainedModel]:
    model = replace(
        world_recipe.model,
        vision=replace(world_recipe.model.vision, early_exit=True, tiny_channels=(4, 4, 4)),
        audio=replace(world_recipe.model.audio, tiny_channels=(4, 4)),
    )
    recipe = replace(world_recipe, name="levels", model=model)
    data = recipe.data_module()
    return recipe, TrainedModel(recipe.build_model(data).eval(), data, {}, "new")


def test_it_is_trained_once_and_answers(network: tuple[Recipe, TrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = SequentialRecipe("sequential", network[0], ROUTER)
    trained = load_or_train_sequential(recipe, network[1])
    assert trained.metadata["history"]
    start = recipe.build_model(network[1])
    assert not torch.equal(trained.router.early_head.weight, start.early_head.weight)
    assert trained.router.glance.std.min() > 0 and trained.router.glance.mean.any(), "of the training media"
    monkeypatch.setattr(sequential_recipes, "fit_router", lambda *args, **kwargs: pytest.fail("trained again"))
    again = load_or_train_sequential(recipe, network[1]).router
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), trained.router.state_dict().values(), strict=True)
    )

    dataset = network[1].data.dataset("test")
    evaluator = PolicyEvaluator(network[1].model, dataset)
    looked = glance_flops(again, network[1])
    assert 0 < looked < 0.2 * float(evaluator.dense.total.mean())
    outcome, trajectory = evaluator.evaluate_sequential(again, glances=looked)
    assert len(outcome.correct) == len(evaluator) == len(trajectory.steps)
    assert (outcome.flops > looked).all() and (trajectory.steps >= 1).all()
    unrouted = evaluator.evaluate(trajectory.route)
    assert unrouted.correct.tolist() == outcome.correct.tolist(), "the answers of the final routes"
    assert (outcome.flops > unrouted.flops).all(), "looking and deciding is charged"


def test_glances_go_with_the_samples(network: tuple[Recipe, TrainedModel]) -> None:
    dataset = network[1].data.dataset("train")
    assert "glances" not in dataset[0].targets
    router = SequentialRecipe("sequential", network[0], ROUTER).build_model(network[1])
    sequential_recipes.cache_glances(router.glance, dataset)
    for i in range(len(dataset)):
        glances = dataset[i].targets["glances"]
        assert glances.shape == (len(Modality), WIDTH) and not glances[Modality.TEXT.column].any()
        assert [bool(glances[m.column].any()) for m in Modality][1:] == dataset.present[i, 1:].tolist()


def test_routers_learn_on_scenes_that_the_network_has_not_seen(network: tuple[Recipe, TrainedModel]) -> None:
    recipe, trained = network
    part = replace(recipe, data=replace(recipe.data, max_scenes=7))
    data = part.data_module()
    rest = sequential_recipes.held_out(trained._replace(data=data)).data
    seen, unseen, every = (d.dataset("train").scenes for d in (data, rest, trained.data))
    assert {*seen}.isdisjoint(unseen) and {*seen} | {*unseen} == {*every} and len({*seen}) == 7
    assert {*rest.dataset("validation").scenes} == {*trained.data.dataset("validation").scenes}
    assert sequential_recipes.held_out(trained) is trained, "where it was trained on all"


@pytest.mark.parametrize("estimator", ["expected", "fitted_q"])
def test_it_is_trained_on_a_table(network: tuple[Recipe, TrainedModel], estimator: str) -> None:
    router = replace(ROUTER, estimator=estimator, penalty_conditioned=True, entropy_coef=0.1)
    recipe = SequentialRecipe(estimator, network[0], router)
    trained = load_or_train_sequential(recipe, network[1])
    assert trained.metadata["seconds"] > 0
    again = load_or_train_sequential(recipe, network[1]).router
    state = trained.router.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in again.state_dict().items())


def test_recipes_go_by_name(tiny_profile: Profile) -> None:
    recipe = sequential_recipes.get_sequential_recipe("fitted_q", tiny_profile, network_seed=3)
    assert recipe.network.seed == 3 and recipe.router.estimator == "fitted_q"
    assert recipe.folder.name == "digits_distilled-seed3-fitted_q-seed0"
    other = sequential_recipes.get_sequential_recipe("fitted_q", tiny_profile, network="adverse")
    assert other.network.name == "adverse_distilled"
    with pytest.raises(ValueError, match="unknown network 'digit'; the nearest of .* is 'digits'"):
        sequential_recipes.get_sequential_recipe("fitted_q", tiny_profile, network="digit")
    with pytest.raises(ValueError, match="unknown sequential router 'fited_q'; the nearest of .* is 'fitted_q'"):
        sequential_recipes.get_sequential_recipe("fited_q", tiny_profile)
