"""Routers are trained, saved and loaded again."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.config.schema import Profile, RouterConfig
from omni_lab.data.collate import collate
from omni_lab.lightning_modules.gates import LitGates
from omni_lab.lightning_modules.router import LitRouter
from omni_lab.training import fit as fitting
from omni_lab.training import router_recipes as routers
from omni_lab.training.callbacks import ProgressTable, RestoreBestWeights
from omni_lab.training.recipes import Recipe, TrainedModel
from omni_lab.training.router_recipes import (
    RouterRecipe,
    build_router_module,
    get_router_recipe,
    load_or_train_router,
)
from omni_lab.utils.env import RETRAIN_SINCE_ENV_VAR

ROUTER = RouterConfig(hidden=8, group_size=3, max_batch_cost=4, checkpoint_every=2)


@pytest.fixture
def network(world_recipe: Recipe) -> tuple[Recipe, TrainedModel]:
    model = replace(world_recipe.model, fusion=replace(world_recipe.model.fusion, gated=True))
    recipe = replace(world_recipe, name="routed", model=model)
    data = recipe.data_module()
    return recipe, TrainedModel(recipe.build_model(data).eval(), data, {}, "new")


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_router_is_trained_once(network: tuple[Recipe, TrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RouterRecipe("group", network[0], ROUTER)
    trained = load_or_train_router(recipe, network[1])
    assert trained.metadata["history"] and not (recipe.work_folder(network[1]) / "last.ckpt").exists()
    assert not same(trained.router, recipe.build_model(network[1]))
    with monkeypatch.context() as patched:
        patched.setattr(routers, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
        assert same(load_or_train_router(recipe, network[1]).router, trained.router)
    again = load_or_train_router(recipe, network[1], retrain=True)
    assert same(again.router, trained.router)  # the seed decides
    with monkeypatch.context() as patched:  # as `omni-lab run --retrain` does
        patched.setenv(RETRAIN_SINCE_ENV_VAR, str(time.time() + 60))
        patched.setattr(routers, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
        with pytest.raises(pytest.fail.Exception, match="trained again"):  # the checkpoint is older than the command
            load_or_train_router(recipe, network[1])
    with torch.no_grad():
        next(network[1].model.parameters()).add_(1e-3)
    assert recipe.identity(network[1])["network_weights"] != again.metadata["identity"]["network_weights"]


def test_an_interrupted_training_ends_alike(
    network: tuple[Recipe, TrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RouterRecipe("group", network[0], replace(ROUTER, epochs=2))
    whole = load_or_train_router(recipe, network[1])

    class Stop(ProgressTable):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            if trainer.global_step == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "ProgressTable", Stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            load_or_train_router(recipe, network[1], retrain=True)
    assert (recipe.work_folder(network[1]) / "last.ckpt").exists()
    assert same(load_or_train_router(recipe, network[1]).router, whole.router)


@pytest.mark.parametrize("estimator", ["self_critical", "gumbel", "soft", "choice"])
def test_every_estimator_is_saved_and_loaded(network: tuple[Recipe, TrainedModel], estimator: str) -> None:
    recipe = RouterRecipe(estimator, network[0], replace(ROUTER, estimator=estimator))
    trained = load_or_train_router(recipe, network[1])
    found = load_or_train_router(recipe, network[1]).router
    assert same(found, trained.router)
    data = network[1].data.dataset("validation")
    batch = collate([data[i] for i in range(4)])
    module = build_router_module(recipe, network[1], found)
    if isinstance(module, LitGates):
        network[1].model.space.check(module.route(batch), batch.present, batch.ids)


def test_routers_go_by_name(tiny_profile: Profile) -> None:
    recipe = get_router_recipe("choice_0.2", tiny_profile, seed=3)
    assert (recipe.router.estimator, recipe.router.penalty, recipe.seed) == ("choice", 0.2, 3)
    assert recipe.network.name == "emoji_routed" and recipe.network.seed == 0
    with pytest.raises(ValueError, match="unknown router 'grop_0.2'; .* is 'group_0.2'"):
        get_router_recipe("grop_0.2", tiny_profile)


def test_a_router_of_another_space_is_reported_and_not_used(
    network: tuple[Recipe, TrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    recipe, trained = network
    whole = load_or_train_router(RouterRecipe("group", recipe, ROUTER), trained)
    narrow = replace(recipe, model=replace(recipe.model, modalities=(Modality.TEXT, Modality.IMAGE)))
    data = narrow.data_module()
    other = TrainedModel(narrow.build_model(data).eval(), data, {}, "new")
    published = RouterRecipe("group", narrow, ROUTER)
    source = RouterRecipe("group", recipe, ROUTER).work_folder(trained)
    published.published_folder.parent.mkdir(parents=True)
    source.rename(published.published_folder)
    with caplog.at_level(logging.WARNING):
        found = load_or_train_router(published, other)
    assert "checkpoint from another configuration" in caplog.text and "space.modalities" in caplog.text
    assert found.router.space.modalities == (Modality.TEXT, Modality.IMAGE)
    assert found.router.space != whole.router.space


def test_the_best_weights_count_once_the_penalty_is_whole() -> None:
    router = torch.nn.Linear(1, 1)
    module = Mock(spec=LitRouter, router=router, columns={"reward": "validation/reward"})
    keep = RestoreBestWeights(module)
    for update, (reward, whole) in enumerate([(0.9, False), (0.5, True), (0.7, True), (0.6, True)]):
        router.weight.data.fill_(update)
        module.at_full_penalty = whole
        metrics = {"validation/reward": reward}
        trainer = Mock(spec=L.Trainer, callback_metrics=metrics, sanity_checking=False, global_step=update)
        keep.on_validation_end(trainer, module)
    keep.on_train_end(trainer, module)
    assert (float(router.weight), keep.step, keep.reward) == (2.0, 2, 0.7)
    assert [row["reward"] for row in keep.history] == [0.9, 0.5, 0.7, 0.6]
