"""Training on questions about an EmojiWorld, all four modalities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from omni_lab.batch import Modality
from omni_lab.config.schema import Profile
from omni_lab.data.collate import collate
from omni_lab.training.callbacks import CacheFrozenLatents
from omni_lab.training.fit import build_trainer, initial_model, load_or_train
from omni_lab.training.recipes import Recipe, get_recipe
from tests.training.test_fit import StopAfter

TEXT = Modality.TEXT
NOTHING = torch.zeros(())


def fit(recipe: Recipe, folder: Path, *, stop_after: int | None = None) -> dict[str, Tensor]:
    """Trains, or goes on training, in `folder`, and returns the weights."""
    data = recipe.data_module()
    model = initial_model(recipe, data)
    callbacks: list[Callback] = [CacheFrozenLatents()] if recipe.training.frozen_encoders else []
    callbacks += [] if stop_after is None else [StopAfter(stop_after)]
    trainer = build_trainer(recipe.training, folder, callbacks=callbacks, accelerator="cpu")
    last = folder / "last.ckpt"
    trainer.fit(
        recipe.lightning_module(model, data), data, ckpt_path=last if last.exists() else None, weights_only=False
    )
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_a_stop_changes_nothing(recipe: Recipe, folder: Path, *, stop_after: int) -> None:
    """Trained straight through, or stopped and resumed: the same weights to the bit, and not the initial ones."""
    torch.manual_seed(1)
    straight = fit(recipe, folder / "straight")
    torch.manual_seed(2)  # whatever else the process has drawn does not matter
    with pytest.raises(RuntimeError, match="plug"):
        fit(recipe, folder / "stopped", stop_after=stop_after)
    torch.manual_seed(3)
    resumed = fit(recipe, folder / "stopped")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    first = initial_model(recipe, recipe.data_module()).state_dict()
    assert any(not torch.equal(value, first[name]) for name, value in straight.items())


@pytest.mark.parametrize("stop_after", [2, 5])
@pytest.mark.parametrize("frozen", [(), (Modality.IMAGE, Modality.VIDEO)])
def test_a_training_stopped_and_resumed_ends_with_the_same_bits(
    world_recipe: Recipe, tmp_path: Path, stop_after: int, frozen: tuple[Modality, ...]
) -> None:
    """Modalities are dropped at random, and so are activations."""
    model = replace(world_recipe.model, latent_bits=8, text=replace(world_recipe.model.text, dropout=0.2))
    training = replace(world_recipe.training, epochs=2, modality_dropout=0.5, frozen_encoders=frozen)
    recipe = replace(world_recipe, model=model, training=training)
    assert len(recipe.data_module().train_dataloader()) > stop_after
    assert_a_stop_changes_nothing(recipe, tmp_path, stop_after=stop_after)


def test_in_quiet_a_batch_is_of_one_kind_of_need(
    tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    quiet = get_recipe("emoji_quiet", tiny_profile)
    data = quiet.data_module()
    kinds = set()
    for batch in data.train_dataloader():
        needed = torch.tensor(
            [[m in data.store.families[f].required_modalities for m in Modality] for f in batch.families]
        )
        assert torch.equal(batch.present, needed)
        assert len(needed.unique(dim=0)) == 1
        kinds.add(tuple(needed[0].tolist()))
    assert len(kinds) >= 5


def test_reading_comes_before_listening(tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    quiet = get_recipe("emoji_quiet", tiny_profile)
    assert quiet.init_from is not None and quiet.init_from == get_recipe("emoji_reading", tiny_profile)
    data = quiet.init_from.data_module()
    families = {family for batch in data.train_dataloader() for family in batch.families}
    assert {"text_sum", "image_count", "video_way"} < families <= set(quiet.init_from.data.families or ())
    assert not any(Modality.AUDIO in data.store.families[family].required_modalities for family in families)
    seen = load_or_train(quiet.init_from).model
    first = initial_model(quiet, quiet.data_module())
    for name, value in first.state_dict().items():
        lender = name
        if not name.startswith("encoders."):
            for mark in ("cross.{}_from", "blocks.{}.", "summary.{}."):
                lender = lender.replace(mark.format("audio"), mark.format("text"))
        assert torch.equal(value, seen.state_dict()[lender]), name
    assert quiet.work_folder(data) != replace(quiet, modality_copy=None).work_folder(data)
    loans = {}
    for lost in ("text", "video"):
        quiet_too = get_recipe(f"emoji_world_without_{lost}", tiny_profile).init_from.init_from  # type: ignore[union-attr]
        assert quiet_too is not None and quiet_too.name == f"emoji_quiet_without_{lost}"
        loans[lost] = quiet_too.modality_copy
    assert loans == {"text": None, "video": quiet.modality_copy}


def test_matching_comes_after_quiet(tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    matching = get_recipe("emoji_world", tiny_profile).init_from
    assert matching is not None and matching == get_recipe("emoji_matching", tiny_profile)
    assert matching.init_from == get_recipe("emoji_quiet", tiny_profile)
    assert set(matching.data.families or ()) == {"audio_video_seen", "audio_video_side", "all_where"}
    assert {f for batch in matching.data_module().train_dataloader() for f in batch.families} <= {
        *(matching.data.families or ())
    }


def test_it_learns_a_handful_of_scenes(world_recipe: Recipe) -> None:
    """Sixty updates on twenty questions."""
    data = world_recipe.data_module()
    dataset = data.dataset("train")
    batch = collate([dataset[i] for i in range(20)])
    module = world_recipe.lightning_module(world_recipe.build_model(data), data)
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(module(batch), batch.targets["answer_scores"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = module(batch).argmax(dim=1) == batch.targets["answer_scores"].argmax(dim=1)
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_modality_dropout_drops_one(world_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, chance: float) -> None:
    data = world_recipe.data_module()
    dataset = data.dataset("train")
    config = replace(world_recipe.training, modality_dropout=chance)
    module = replace(world_recipe, training=config).lightning_module(world_recipe.build_model(data), data)
    kept = []
    monkeypatch.setattr(
        module, "_step", lambda batch, stage, route: (kept.append(set(batch.inputs)) or NOTHING, NOTHING)
    )
    full = collate([dataset[i] for i in range(3)])
    lone = replace(full, inputs={TEXT: full.inputs[TEXT]})
    torch.manual_seed(0)
    for step in range(60):
        module.training_step(full, step)
    assert {len(k) for k in kept} == {4 - int(chance)}
    assert chance == 0.0 or {m for k in kept for m in set(Modality) - k} == set(Modality), "any of them, in time"
    module.training_step(lone, 0)
    assert kept[-1] == {TEXT}, "never the only one"


def test_modality_dropout_is_drawn_as_often_as_it_says(world_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    data = world_recipe.data_module()
    config = replace(world_recipe.training, modality_dropout=0.25)
    module = replace(world_recipe, training=config).lightning_module(world_recipe.build_model(data), data)
    kept = []
    monkeypatch.setattr(
        module, "_step", lambda batch, stage, route: (kept.append(len(batch.inputs)) or NOTHING, NOTHING)
    )
    batch = collate([data.dataset("train")[0]])
    torch.manual_seed(0)
    for step in range(800):
        module.training_step(batch, step)
    assert 0.19 < kept.count(3) / 800 < 0.31


def test_encoders_learn_at_a_rate_of_their_own(world_recipe: Recipe, tmp_path: Path) -> None:
    before = world_recipe.build_model(world_recipe.data_module()).state_dict()
    slow = replace(world_recipe, training=replace(world_recipe.training, encoder_lr_scale=0.0))
    after = fit(slow, tmp_path)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("encoders.") for name in moved)


def test_questions_are_asked_in_quiet_first(world_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start a question comes with what its family needs alone, halfway about half of them do."""
    data = world_recipe.data_module()
    dataset = data.dataset("train")
    training = replace(world_recipe.training, epochs=2, modality_dropout=0.0, distractor_dropout=1.0)
    module = replace(world_recipe, training=training).lightning_module(world_recipe.build_model(data), data)
    batch = collate([dataset[i % len(dataset)] for i in range(200)])
    full = batch.present
    needed = full & torch.tensor(
        [[m in data.store.families[f].required_modalities for m in Modality] for f in batch.families]
    )
    seen: list[Tensor] = []
    monkeypatch.setattr(module, "_step", lambda batch, stage, route: (seen.append(batch.present) or NOTHING, NOTHING))
    module.training_step(batch, 0)
    assert torch.equal(seen[0], needed) and not torch.equal(needed, full)
    monkeypatch.setattr(type(module), "current_epoch", 1)
    module.training_step(batch, 0)
    differs = (needed != full).any(dim=1)
    quiet = (seen[1] == needed).all(dim=1)[differs]
    assert ((seen[1] == full).all(dim=1)[differs] ^ quiet).all(), "a question loses all distractors or none"
    assert 0.35 < quiet.float().mean() < 0.65
