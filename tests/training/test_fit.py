from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from omni_lab.config.schema import TrainingConfig
from omni_lab.data.collate import collate
from omni_lab.lightning_modules.vqa import LitVQA, answer_loss, random_flips
from omni_lab.training.checkpoint import CheckpointError, from_blocks, load_model, save_model, to_blocks
from omni_lab.training.fit import build_trainer, load_or_train
from omni_lab.training.recipes import Recipe, get_recipe
from omni_lab.utils.env import RETRAIN_SINCE_ENV_VAR


class StopAfter(Callback):
    """Pulls the plug after so many updates, as Ctrl-C or a lost machine would."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.updates:
            raise RuntimeError("the plug was pulled")


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["loss"]))


def fit(recipe: Recipe, folder: Path, *, stop_after: int | None = None, **overrides: Any) -> dict[str, torch.Tensor]:
    """Trains, or goes on training, in `folder`, and returns the weights."""
    data = recipe.data_module()
    module = LitVQA(recipe.build_model(data), recipe.training, answers=4, seed=recipe.seed)
    callbacks: list[Callback] = [] if stop_after is None else [StopAfter(stop_after)]
    trainer = build_trainer(recipe.training, folder, callbacks=callbacks, accelerator="cpu", **overrides)
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
    return {k: v.clone() for k, v in module.model.state_dict().items()}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_a_training_stopped_and_resumed_ends_with_the_same_bits(
    recipe: Recipe, tmp_path: Path, accumulate: int, stop_after: int
) -> None:
    """Twelve images in batches of three: four batches an epoch, four or two updates; dropout and flips are on. A
    checkpoint is written after every update, so the one resumed from is of the update before the stop.
    """
    model = replace(recipe.model, fusion=replace(recipe.model.fusion, dropout=0.2))
    training = replace(recipe.training, accumulate=accumulate, epochs=3)
    recipe = replace(recipe, model=model, training=training)
    torch.manual_seed(1)
    straight = fit(recipe, tmp_path / "straight")
    torch.manual_seed(2)  # whatever else the process has drawn does not matter
    with pytest.raises(RuntimeError, match="plug"):
        fit(recipe, tmp_path / "stopped", stop_after=stop_after)
    assert (tmp_path / "stopped" / "last.ckpt").exists()
    torch.manual_seed(3)
    resumed = fit(recipe, tmp_path / "stopped")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_different_seeds_give_different_models(recipe: Recipe, tmp_path: Path) -> None:
    one, other = fit(recipe, tmp_path / "0"), fit(replace(recipe, seed=1), tmp_path / "1")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_it_learns_the_tiny_set(recipe: Recipe) -> None:
    trained = load_or_train(replace(recipe, training=replace(recipe.training, epochs=60, checkpoint_every=1000)))
    history = trained.metadata["history"]
    assert len(history) == 60
    assert history[-1]["train loss"] < 0.1 < history[0]["train loss"]
    assert history[-1]["validation accuracy"] == 1.0, "unseen images of the same two shades"
    assert trained.metadata["samples_per_second"] > 0


def test_micro_batches_give_the_update_of_one_batch(recipe: Recipe) -> None:
    data = recipe.data_module()
    dataset = data.dataset("train")
    gradients = []
    for pieces in ([range(12)], [range(4), range(4, 8), range(8, 12)]):
        model = recipe.build_model(data)
        for piece in pieces:
            batch = collate([dataset[i] for i in piece])
            loss = answer_loss(model(batch).head_outputs["answer"], batch.targets["answer_scores"])
            (loss / len(pieces)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6


class Gradients(Callback):
    """Keeps the gradient of every update, before clipping."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        grads = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        self.values.append(torch.cat(grads).clone())


def test_the_trainer_accumulates_to_the_update_of_one_batch(recipe: Recipe, tmp_path: Path) -> None:
    """Twelve images with all their questions: in one batch, or in four that are accumulated."""
    kept = {}
    for scenes, accumulate in ((12, 1), (3, 4)):
        training = replace(recipe.training, accumulate=accumulate, epochs=1, horizontal_flip=False)
        config = replace(recipe.data, max_batch_cost=scenes, questions_per_scene=4)
        data = replace(recipe, data=config).data_module()
        kept[accumulate] = Gradients()
        trainer = build_trainer(training, tmp_path / str(scenes), callbacks=[kept[accumulate]], accelerator="cpu")
        trainer.fit(LitVQA(recipe.build_model(data), training, answers=4), data)
        assert trainer.global_step == 1
    assert (kept[1].values[0] - kept[4].values[0]).abs().max() < 1e-6
    assert kept[1].values[0].abs().max() > 1e-3


def test_a_resumed_training_keeps_its_logs_and_its_clock(recipe: Recipe) -> None:
    data = recipe.data_module()
    folder = recipe.work_folder(data)
    with pytest.raises(RuntimeError, match="plug"):
        fit(recipe, folder, stop_after=6)
    trained = load_or_train(recipe)
    assert len(list(folder.glob("logs/csv/*/metrics.csv"))) == 2
    assert 0 < trained.metadata["seconds"] < 60
    assert all(0 < row["seconds"] < 60 for row in trained.metadata["history"])


def test_fast_dev_run_and_bf16(recipe: Recipe, tmp_path: Path) -> None:
    """Mixed precision on a CPU is slow and pointless, but must be right."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        seen = Losses()
        data = recipe.data_module()
        training = replace(recipe.training, precision=precision)
        module = LitVQA(recipe.build_model(data), training, answers=4)
        build_trainer(training, tmp_path / precision, callbacks=[seen], accelerator="cpu", fast_dev_run=2).fit(
            module, data
        )
        losses[precision] = seen.values
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)
    assert losses["bf16-mixed"] != losses["32-true"], "autocast did nothing"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_on_a_gpu(recipe: Recipe, precision: str) -> None:
    training = replace(recipe.training, precision=precision, epochs=60, checkpoint_every=1000)
    trained = load_or_train(replace(recipe, training=training))
    assert trained.metadata["history"][-1]["train loss"] < 0.2


def test_precision_is_chosen_by_the_device(tmp_path: Path) -> None:
    auto = build_trainer(TrainingConfig(), tmp_path, callbacks=[]).precision
    assert auto == ("bf16-mixed" if torch.cuda.is_available() else "32-true")
    config = TrainingConfig(precision="bf16-mixed")
    assert build_trainer(config, tmp_path, callbacks=[], accelerator="cpu").precision == "bf16-mixed"


def test_the_schedule_warms_up_and_ends_at_zero(recipe: Recipe, tmp_path: Path) -> None:
    training = TrainingConfig(epochs=5, learning_rate=1e-3, warmup_fraction=0.2)
    rates: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    data = recipe.data_module()
    trainer = build_trainer(training, tmp_path, callbacks=[Watch()], accelerator="cpu")
    trainer.fit(LitVQA(recipe.build_model(data), training, answers=4), data)
    assert max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) <= 4
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_loss_of_soft_and_of_uncreditable_answers() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    hard = answer_loss(logits[:1], torch.tensor([[1.0, 0.0]]))
    assert hard == pytest.approx(torch.nn.functional.cross_entropy(logits[:1], torch.tensor([0])).item())
    assert answer_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx(hard.item() / 2)


def test_flips_mirror_whole_images() -> None:
    images = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2).to(torch.uint8).repeat(20, 1, 1, 1)
    torch.manual_seed(0)
    flipped = random_flips(images)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 5 < same.sum() < 35


def test_load_or_train_trains_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_or_train(recipe)
    assert first.origin.startswith("trained just now")
    monkeypatch.setattr(LitVQA, "training_step", lambda *a: pytest.fail("trained again"))
    again = load_or_train(recipe)
    assert again.origin.startswith("trained here earlier")
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


def test_retraining_a_series_trains_each_model_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_train(recipe)
    monkeypatch.setenv(RETRAIN_SINCE_ENV_VAR, str(time.time()))
    assert load_or_train(recipe).origin.startswith("trained just now")
    assert load_or_train(recipe).origin.startswith("trained here earlier")
    assert load_or_train(recipe, retrain=True).origin.startswith("trained just now")


def test_the_published_model_stands_in_and_can_be_declined(recipe: Recipe) -> None:
    trained = load_or_train(recipe)
    folder = recipe.work_folder(trained.data)
    recipe.published_folder.parent.mkdir(parents=True)
    folder.rename(recipe.published_folder)
    assert load_or_train(recipe).origin.startswith("published with the project")
    assert load_or_train(recipe, use_published=False).origin.startswith("trained just now")


def test_a_published_model_of_another_configuration_is_reported_and_retrained(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    trained = load_or_train(recipe)
    recipe.published_folder.parent.mkdir(parents=True)
    recipe.work_folder(trained.data).rename(recipe.published_folder)
    other = replace(recipe, training=replace(recipe.training, learning_rate=1e-4))
    assert load_or_train(other).origin.startswith("trained just now")
    assert "training.learning_rate: has 0.003, expected 0.0001" in caplog.text


def test_a_recipe_that_may_not_train_says_what_differs_and_what_trains_it(recipe: Recipe) -> None:
    trained = load_or_train(recipe)
    recipe.published_folder.parent.mkdir(parents=True)
    recipe.work_folder(trained.data).rename(recipe.published_folder)
    published = replace(recipe, may_train=False)
    assert load_or_train(published).origin.startswith("published with the project")
    other = replace(published, training=replace(recipe.training, learning_rate=1e-4))
    with pytest.raises(CheckpointError, match=r"training.learning_rate: has 0.003, expected 0.0001.*omni-lab train"):
        load_or_train(other)
    with pytest.raises(CheckpointError, match=r"seed1: no checkpoint there; .* --seed 1'"):
        load_or_train(replace(published, seed=1))
    assert not other.work_folder(trained.data).exists()
    assert load_or_train(other, retrain=True).origin.startswith("trained just now")


def test_checkpoints_are_refused_with_a_reason(recipe: Recipe, tmp_path: Path) -> None:
    data = recipe.data_module()
    model = recipe.build_model(data)
    identity = recipe.identity(data)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_model(tmp_path / "none", model, identity=identity)
    folder = tmp_path / "model"
    save_model(folder, model, identity=identity, metadata={"device": "cpu"})
    assert not list(folder.glob("*.part"))
    assert load_model(folder, model, identity=identity)["device"] == "cpu"
    with pytest.raises(CheckpointError, match=r"another configuration \(seed: has 0, expected 5\)"):
        load_model(folder, model, identity=identity | {"seed": 5})
    wider = replace(recipe, model=replace(recipe.model, dim=2 * recipe.model.dim)).build_model(data)
    with pytest.raises(CheckpointError, match=r"cannot be loaded \('.*' is \[.*\], expected \[.*\]\)"):
        load_model(folder, wider, identity=identity)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors: cannot be loaded"):
        load_model(folder, model, identity=identity)
    (folder / "model.json").write_text(json.dumps({"no": "identity"}))
    with pytest.raises(CheckpointError, match="model.json: broken"):
        load_model(folder, model, identity=identity)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 16), (2, 3, 43)])
def test_weights_in_blocks_of_a_byte_each(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.randint(-30, 2, shape[1:])
    steps, scales = to_blocks(weights)
    assert steps.dtype == torch.int8 and steps.shape == shape and scales.shape == (-(-weights.numel() // 64),)
    back = from_blocks(steps, scales)
    for some, kept in zip(weights.flatten().split(64), back.flatten().split(64), strict=True):
        assert (some - kept).abs().max() <= max(float(some.abs().max()) / 253, 4e-6)
    assert torch.equal(from_blocks(*to_blocks(back)), back), "saving once more changes nothing"


def test_blocks_of_zeros_and_of_what_is_no_number() -> None:
    assert torch.equal(from_blocks(*to_blocks(torch.zeros(2, 70))), torch.zeros(2, 70))
    with pytest.raises(ValueError, match="must be finite"):
        to_blocks(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"at most 8e6: got 1e\+07"):
        to_blocks(torch.tensor([[1.0, 1e7]]))


def test_a_saved_model_takes_little_more_than_a_byte_a_weight(recipe: Recipe, tmp_path: Path) -> None:
    model = recipe.build_model(recipe.data_module())
    save_model(tmp_path, model, identity={}, metadata={})
    count = sum(p.numel() for p in model.parameters())
    vectors = sum(p.numel() for p in model.parameters() if p.ndim < 2)
    header = 200 * len(list(model.parameters()))
    assert (tmp_path / "model.safetensors").stat().st_size < 1.07 * count + 2 * vectors + header


def test_unknown_recipes_are_named(tiny_profile: Any) -> None:
    with pytest.raises(ValueError, match="unknown recipe 'easy_vga'; the nearest of .* is 'easy_vqa'"):
        get_recipe("easy_vga", tiny_profile)
