"""Frozen encoders encode every image, audio and video once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.data.collate import collate
from omni_lab.training.fit import initial_model, load_or_train
from omni_lab.training.frozen_encoders import cache_latents
from omni_lab.training.recipes import Recipe
from tests.conftest import as_saved
from tests.training import test_emoji_world_training as training_tests
from tests.training.test_emoji_world_training import fit

TEXT, IMAGE, AUDIO, VIDEO = Modality
MEDIA = (IMAGE, AUDIO, VIDEO)


@pytest.fixture
def frozen(world_recipe: Recipe) -> Recipe:
    return replace(
        world_recipe,
        model=replace(world_recipe.model, latent_bits=8),
        training=replace(world_recipe.training, frozen_encoders=MEDIA),
    )


def test_latents_stand_for_their_media(frozen: Recipe) -> None:
    data = frozen.data_module()
    model = frozen.build_model(data).eval()
    dataset = data.dataset("validation")
    plain = collate([dataset[i] for i in range(len(dataset))])
    cache_latents(model, dataset, MEDIA)
    latent = collate([dataset[i] for i in range(len(dataset))])
    assert torch.equal(plain.present, latent.present)
    assert [latent.inputs[m].is_encoded for m in Modality] == [False, True, True, True]
    assert not any(given.is_encoded for given in plain.inputs.values())
    with torch.inference_mode():
        from_media, from_latents = (model(batch, heads=["answer"]).head_outputs["answer"] for batch in (plain, latent))
    assert torch.allclose(from_media, from_latents, atol=1e-5), "what 8-bit latents lose, the model never sees anyway"


def test_frozen_encoders_run_once_and_do_not_change(frozen: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = frozen.build_model(frozen.data_module())
    counts = dict.fromkeys(MEDIA, 0)
    for modality in MEDIA:
        kind = type(made.encoders[modality.value])
        plain = kind.forward

        def counted(self, values, mask, modality=modality, plain=plain):  # type: ignore[no-untyped-def]
            counts[modality] += len(values)
            return plain(self, values, mask)

        monkeypatch.setattr(kind, "forward", counted)
    trained = load_or_train(replace(frozen, training=replace(frozen.training, epochs=3)))
    store = trained.data.store
    for modality in MEDIA:
        used = {int(row) for split in ("train", "validation") for row in store.questions(split).column(modality.value)}
        assert counts[modality] == len(used)
    before, after = made.state_dict(), trained.model.state_dict()
    for name, value in after.items():
        if name.startswith(("encoders.image", "encoders.audio", "encoders.video")):
            assert torch.equal(value, as_saved(before[name])), name
    assert any(not torch.equal(after[n], as_saved(before[n])) for n in after if n.startswith("encoders.text"))
    assert not trained.data.dataset("validation").latents, "what is evaluated afterwards are the media themselves"


def test_a_resumed_training_goes_on_with_the_encoders_it_had(
    frozen: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model to start from has changed meanwhile: the latents are those of the checkpoint's encoders."""
    straight = fit(frozen, tmp_path / "straight")
    with pytest.raises(RuntimeError, match="plug"):
        fit(frozen, tmp_path / "stopped", stop_after=2)
    other = initial_model(replace(frozen, seed=7), frozen.data_module())
    monkeypatch.setattr(training_tests, "initial_model", lambda recipe, data: other)
    resumed = fit(frozen, tmp_path / "stopped")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_what_cannot_be_frozen_is_refused(frozen: Recipe) -> None:
    data, training = frozen.data_module(), frozen.training
    with pytest.raises(ValueError, match="frozen_encoders may hold image, audio and video"):
        replace(training, frozen_encoders=(TEXT,))
    with pytest.raises(ValueError, match="horizontal_flip must be off"):
        replace(training, horizontal_flip=True)
    model = frozen.build_model(data)
    with pytest.raises(ValueError, match="share weights: freeze both"):
        replace(frozen, training=replace(training, frozen_encoders=(VIDEO,))).lightning_module(model, data)
    model.latent_bits = 4
    with pytest.raises(ValueError, match="cached in 8 bits: got latent_bits 4"):
        frozen.lightning_module(model, data)
