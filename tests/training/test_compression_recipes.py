"""Models that are trained in the precision they will be stored in: made once, continued exactly, found again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from omni_lab.batch import Modality, OmniBatch
from omni_lab.compression.fake_quant import FakeQuantizer
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.config.schema import CompressionConfig, Profile, TrainingConfig
from omni_lab.data.collate import collate
from omni_lab.lightning_modules.qat import LitQAT
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from omni_lab.training import compression_recipes as recipes
from omni_lab.training import fit as fitting
from omni_lab.training.callbacks import ProgressTable
from omni_lab.training.checkpoint import weights_digest
from omni_lab.training.compression_recipes import (
    GRANULARITIES,
    CompressionRecipe,
    PruningSpec,
    compress,
    get_compression_recipe,
)
from omni_lab.training.recipes import Recipe, TrainedModel
from omni_lab.training.router_recipes import cache_latents_for_routing

Made = tuple[TrainedModel, Router, OmniBatch]
CONFIG = CompressionConfig(
    calibration=3,
    scenes=8,
    validation_scenes=2,
    training=TrainingConfig(
        epochs=1, learning_rate=1e-2, horizontal_flip=False, random_route_prob=0.5, checkpoint_every=1
    ),
)
FLOAT, INT8 = (PrecisionPolicy.uniform(p) for p in (Precision.FP32, Precision.INT8))


@pytest.fixture
def made(world_recipe: Recipe) -> Made:
    """An untrained network, its router, and examples of every modality."""
    tiny = world_recipe.model
    model = replace(
        tiny,
        vision=replace(tiny.vision, early_exit=True),
        audio=replace(tiny.audio, early_exit=True),
        fusion=replace(tiny.fusion, gated=True, depth=2),
    )
    recipe = replace(world_recipe, name="routed", model=model)
    data = recipe.data_module()
    network = TrainedModel(recipe.build_model(data).eval(), data, {}, "new")
    questions = data.dataset("train")
    chosen = [i for i in range(len(questions)) if questions.present[i].sum() >= 3][:6]
    batch = collate([questions[i] for i in [*chosen, *range(6)]])
    assert {*batch.inputs} == {*Modality}
    return network, Router(network.model.space, dim=model.dim, hidden_dim=8).eval(), batch


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


def weights(result: recipes.CompressedModel) -> dict[str, torch.Tensor]:
    return {f"{p.name}.{n}": w.detach() for p in result.parts for n, w in p.module.named_parameters()}


@pytest.mark.parametrize("ranges", ["average", "learned"])
def test_a_training_happens_once(made: Made, monkeypatch: pytest.MonkeyPatch, ranges: str) -> None:
    network, router, batch = made
    before = weights_digest(network.model)
    recipe = CompressionRecipe("int8", INT8, ranges, True, CONFIG)
    first = compress(recipe, network, router, batch)
    assert weights_digest(network.model) == before, "a copy is trained"
    calibrated = compress(replace(recipe, trained=False), network, router, batch)
    trained, untrained = weights(first), weights(calibrated)
    changed = {name for name, w in trained.items() if not torch.equal(w, untrained[name])}
    assert first.ranges != calibrated.ranges, "ranges move with the weights, averages as well"
    assert any(n.startswith("encoder.image") for n in changed) and any(n.startswith("path.0") for n in changed)
    assert not any(n.startswith("router") for n in changed), "the router is frozen"
    monkeypatch.setattr(recipes._Compressor, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    again = compress(recipe, network, router, batch)
    assert all(torch.equal(w, trained[n]) for n, w in weights(again).items()) and again.ranges == first.ranges


def test_encoders_are_trained_whatever_was_encoded_before(made: Made) -> None:
    network, router, batch = made
    cache_latents_for_routing(network)  # as training a router does
    trained = weights(compress(CompressionRecipe("int8", INT8, "average", True, CONFIG), network, router, batch))
    before = dict(network.model.named_parameters())["encoders.image.project.weight"]
    assert not torch.equal(trained["encoder.image.encoder.project.weight"], before)


def test_calibration_alone_changes_no_weight(made: Made) -> None:
    network, router, batch = made
    result = compress(CompressionRecipe("int8", INT8, "average", False, CONFIG), network, router, batch)
    expected = {id(w) for w in network.model.parameters()}
    assert result.ranges and all(id(w) not in expected for w in weights(result).values())
    model = dict(network.model.named_parameters())
    assert torch.equal(weights(result)["encoder.text.encoder.project.weight"], model["encoders.text.project.weight"])


def test_an_interrupted_training_ends_alike(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    network, router, batch = made
    recipe = CompressionRecipe("int8", INT8, "average", True, CONFIG)
    whole = weights(compress(recipe, network, router, batch))

    class Stop(ProgressTable):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            if trainer.global_step == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "ProgressTable", Stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            compress(recipe, network, router, batch, retrain=True)
    assert (recipe.work_folder(network, router) / "round1" / "last.ckpt").exists()
    again = weights(compress(recipe, network, router, batch))
    assert all(torch.equal(w, whole[name]) for name, w in again.items())


@pytest.mark.parametrize("what", GRANULARITIES)
def test_pruning_goes_on_where_it_stopped(made: Made, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    network, router, batch = made
    recipe = CompressionRecipe("p", FLOAT, "dynamic", True, CONFIG, pruning=PruningSpec(0.5, what, rounds=2, scenes=8))
    whole = weights(compress(recipe, network, router, batch))
    held = {w.data_ptr(): w for n, w in whole.items() if not n.startswith("router")}.values()
    if what != "weights":
        assert sum(w.numel() for w in held) < 0.8 * sum(w.numel() for w in network.model.parameters())
    else:
        many = [w for w in held if w.ndim > 1 and (w == 0).any()]
        zeros = sum(int((w == 0).sum()) for w in many) / sum(w.numel() for w in many)
        assert zeros == pytest.approx(0.5, abs=0.02)
    after = CompressionRecipe("q", INT8, "average", True, CONFIG, init_from=recipe)
    quantized = compress(after, network, router, batch)
    assert quantized.ranges and quantized.spec.space.pruned_paths == quantized.model.space.pruned_paths
    assert len(quantized.metadata) == 3
    for name, w in weights(quantized).items():
        assert w.shape == whole[name].shape
        if what == "weights" and w.ndim > 1:
            assert not w[whole[name] == 0].any(), "what was pruned stays so"
    assert any(not torch.equal(w, whole[name]) for name, w in weights(quantized).items())
    shutil.rmtree(recipe.work_folder(network, router) / "round2")
    first = recipe.work_folder(network, router) / "round1" / "model.safetensors"
    written = first.stat().st_mtime_ns
    again = weights(compress(recipe, network, router, batch))
    assert first.stat().st_mtime_ns == written, "the first round is not made again"
    assert all(torch.equal(w, whole[name]) for name, w in again.items())
    first.write_bytes(first.read_bytes()[:1000])
    retrained = weights(compress(recipe, network, router, batch))
    assert all(torch.equal(w, whole[name]) for name, w in retrained.items()), "broken: made again, from the whole model"


def test_pruning_once_trains_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    network, router, batch = made
    monkeypatch.setattr(recipes, "LitQAT", lambda *args, **kwargs: pytest.fail("trained"))
    once = CompressionRecipe(
        "o", FLOAT, "dynamic", False, CONFIG, pruning=PruningSpec(0.5, "channels", rounds=1, scenes=8)
    )
    first = compress(once, network, router, batch)
    assert "history" not in first.metadata[0] and first.metadata[0]["gone"]["shapes"]
    monkeypatch.setattr(PruningSpec, "prune", lambda *args: pytest.fail("pruned again"))
    again = compress(once, network, router, batch)
    assert same(first.model, again.model)


def test_what_is_left_learns_from_the_whole_model(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    network, router, batch = made
    untrained = CompressionRecipe("t", FLOAT, "dynamic", False, CONFIG)
    ready = compress(untrained, network, router, batch)
    fake = FakeQuantizer(ready.parts, FLOAT, ranges="dynamic")
    answers = len(network.data.store.answers)

    def loss(teacher: OmniModel | None, scores: torch.Tensor, chance: float = 0.0) -> torch.Tensor:
        config = replace(CONFIG.training, random_route_prob=chance)
        module = LitQAT(ready.model, ready.router, fake, config, answers=answers, teacher=teacher)
        monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
        return module.eval().training_step(replace(batch, targets={"answer_scores": scores}), 0).detach()

    right, wrong = (torch.eye(answers)[torch.full((len(batch),), place)] for place in (0, 1))
    assert loss(None, right) != loss(None, wrong)
    assert loss(network.model, right) == loss(network.model, wrong), "labels do not matter"
    logits = network.model(batch).head_outputs["answer"].detach()
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(loss(network.model, right, chance=1.0), entropy, atol=1e-4), "dense, it is its own teacher"


def test_recipes_go_by_name(tiny_profile: Profile) -> None:
    assert not get_compression_recipe("ptq_static", tiny_profile).trained
    assert (
        get_compression_recipe("qat_mixed", tiny_profile, seed=3).policy.precision_of("encoder.audio") is Precision.FP16
    )
    pruned = get_compression_recipe("smaller_70_int8", tiny_profile)
    assert pruned.rounds == 1 and pruned.policy == INT8
    assert pruned.init_from is not None and pruned.init_from.pruning is not None and pruned.init_from.rounds == 3
    assert pruned.init_from.pruning.sparsity == 0.7 and pruned.init_from.pruning.granularity == "channels"
    once = get_compression_recipe("heads_30_once", tiny_profile)
    assert once.rounds == 1 and not once.trained and once.pruning is not None and once.pruning.granularity == "heads"
    with pytest.raises(ValueError, match="must be one of .*: got 'head'"):
        PruningSpec(0.5, "head")
    with pytest.raises(ValueError, match="unknown compression 'qat_int'; the nearest .* is 'qat_int8'"):
        get_compression_recipe("qat_int", tiny_profile)
