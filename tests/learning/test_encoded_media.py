"""Encoders that stay as they are see every picture, sound and clip once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omni_lab.data import collate
from omni_lab.learning import Recipe, train
from omni_lab.learning.latents import encode_media
from omni_lab.modalities import Modality

TEXT, IMAGE, AUDIO, VIDEO = Modality
MEDIA = (IMAGE, AUDIO, VIDEO)


@pytest.fixture
def frozen(world_recipe: Recipe) -> Recipe:
    return replace(
        world_recipe,
        model=replace(world_recipe.model, latent_bits=8),
        training=replace(world_recipe.training, frozen=MEDIA),
    )


def test_latents_stand_for_their_media(frozen: Recipe) -> None:
    data = frozen.data_module()
    model = frozen.new_model(data).eval()
    dataset = data.dataset("validation")
    plain = collate([dataset[i] for i in range(len(dataset))])
    encode_media(model, dataset, MEDIA)
    latent = collate([dataset[i] for i in range(len(dataset))])
    assert torch.equal(plain.present, latent.present)
    assert [latent.inputs[m].encoded for m in Modality] == [False, True, True, True]
    assert not any(given.encoded for given in plain.inputs.values())
    with torch.inference_mode():
        from_media, from_latents = (model(batch, heads=["answer"]).heads["answer"] for batch in (plain, latent))
    assert torch.allclose(from_media, from_latents, atol=1e-5), "what 8-bit latents lose, the model never sees anyway"


def test_frozen_encoders_run_once_and_do_not_change(frozen: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = frozen.new_model(frozen.data_module())
    counts = dict.fromkeys(MEDIA, 0)
    for modality in MEDIA:
        kind = type(made.encoders[modality.value])
        plain = kind.forward

        def counted(self, values, mask, modality=modality, plain=plain):  # type: ignore[no-untyped-def]
            counts[modality] += len(values)
            return plain(self, values, mask)

        monkeypatch.setattr(kind, "forward", counted)
    trained = train(replace(frozen, training=replace(frozen.training, epochs=3)))
    store = trained.data.store
    for modality in MEDIA:
        used = {int(row) for split in ("train", "validation") for row in store.questions(split).column(modality.value)}
        assert counts[modality] == len(used)
    before, after = made.state_dict(), trained.model.state_dict()
    for name, value in after.items():
        if name.startswith(("encoders.image", "encoders.audio", "encoders.video")):
            assert torch.equal(value, before[name].half().float()), name
    assert any(not torch.equal(after[n], before[n].half().float()) for n in after if n.startswith("encoders.text"))
    assert not trained.data.dataset("validation").encoded, "what is evaluated afterwards are the media themselves"


def test_text_is_no_medium(frozen: Recipe) -> None:
    data = frozen.data_module()
    with pytest.raises(ValueError, match="only pictures, sounds and clips can be encoded beforehand: got text"):
        encode_media(frozen.new_model(data), data.dataset("validation"), [TEXT])


def test_frozen_pictures_cannot_be_augmented(frozen: Recipe) -> None:
    data = frozen.data_module()
    recipe = replace(frozen, training=replace(frozen.training, augment=True))
    with pytest.raises(ValueError, match="augment changes pictures in every epoch"):
        recipe.module(recipe.new_model(data), data)
