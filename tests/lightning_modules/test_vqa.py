"""Training under several routes at a time gives the losses that the routes have one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omni_lab.batch import Modality, OmniBatch
from omni_lab.lightning_modules.vqa import LitVQA, answer_loss
from omni_lab.training.recipes import Recipe


@pytest.fixture
def setting(world_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> tuple[LitVQA, OmniBatch]:
    model = replace(
        world_recipe.model,
        vision=replace(world_recipe.model.vision, early_exit=True, tiny_channels=(4, 4, 4)),
        audio=replace(world_recipe.model.audio, tiny_channels=(4, 4)),
    )
    training = replace(world_recipe.training, frozen_encoders=(), distractor_dropout=0.0, routes_per_batch=3)
    recipe = replace(world_recipe, name="levels", model=model, training=replace(training, modality_dropout=0.0))
    data = recipe.data_module()
    torch.manual_seed(0)
    module = recipe.lightning_module(recipe.build_model(data).eval(), data)
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    return module, next(iter(data.loader("train")))


def test_the_loss_is_the_mean_over_routes(setting: tuple[LitVQA, OmniBatch]) -> None:
    module, batch = setting
    torch.manual_seed(5)
    loss = module.training_step(batch, 0)
    torch.manual_seed(5)
    torch.rand(())  # which decides on modality dropout
    space = module.model.space
    routes = [space.dense(batch.present), *(space.sample(batch.present) for _ in range(3))]
    losses = [answer_loss(module(batch, route), batch.targets["answer_scores"]) for route in routes]
    assert float(loss) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    loss.backward()
    tiny = module.model.encoders["image"].tiny
    assert tiny.convolutions[0].weight.grad is not None, "lower levels learn"


def test_distillation_pulls_lower_routes_towards_the_dense_answer(setting: tuple[LitVQA, OmniBatch]) -> None:
    module, batch = setting
    module.config = replace(module.config, distill_weight=1.0, routes_per_batch=1, modality_dropout=0.0)
    torch.manual_seed(5)
    loss = module.training_step(batch, 0)
    torch.manual_seed(5)
    torch.rand(())
    space, scores = module.model.space, batch.targets["answer_scores"]
    dense, other = (module(batch, route) for route in (space.dense(batch.present), space.sample(batch.present)))
    target = dense.detach().softmax(1)
    distance = (target * (target.log() - other.log_softmax(1))).sum(1).mean()
    assert float(loss) == pytest.approx(float((answer_loss(dense, scores) + distance) / 2), abs=1e-5)


def test_tiny_encoders_alone_are_trained(setting: tuple[LitVQA, OmniBatch]) -> None:
    module, batch = setting
    config, answers = replace(module.config, tiny_only=True), batch.targets["answer_scores"].shape[1]
    alone = LitVQA(module.model, config, answers=answers, families=module.families).train()
    assert not alone.model.training and not alone.model.encoders["image"].training, "statistics stay"
    alone.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    alone.training_step(batch, 0).backward()
    learned = {name for name, parameter in alone.model.named_parameters() if parameter.grad is not None}
    assert learned and all(".tiny." in name for name in learned)


def test_probes_answer_from_one_encoder_alone(setting: tuple[LitVQA, OmniBatch]) -> None:
    module, batch = setting
    config = replace(module.config, probe_weight=2.0)
    probed = LitVQA(module.model, config, answers=batch.targets["answer_scores"].shape[1], families=module.families)
    assert {*probed.probes} == {
        "image_tiny",
        "image_early_exit",
        "image_full",
        "audio_tiny",
        "audio_full",
        "video_early_exit",
        "video_full",
    }
    encoded = {m: module.model.encode_levels(m, inputs) for m, inputs in batch.inputs.items()}
    loss = probed._probe_loss(batch, encoded)
    assert loss > 0
    loss.backward()
    asked = {f for f in batch.families if {*module.families[f].required_modalities} <= {Modality.TEXT, Modality.IMAGE}}
    gradient = probed.probes["image_full"].weight.grad
    assert (gradient is not None) == bool(asked), "of questions that need no second medium"
    assert not any("probe" in name for name in module.model.state_dict()), "they are thrown away"
