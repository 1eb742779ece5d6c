from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from omni_lab.batch import Modality, OmniBatch
from omni_lab.build import build_model
from omni_lab.data.collate import collate
from omni_lab.evaluation.predictions import shuffle_images
from omni_lab.model import OmniModel
from omni_lab.routing.route import CrossModalPath
from omni_lab.training.recipes import Recipe
from tests.conftest import TINY_MODEL

BOTH = [Modality.TEXT, Modality.IMAGE]


def setup(recipe: Recipe, size: int = 6) -> tuple[OmniModel, OmniBatch, OmniBatch]:
    data = recipe.data_module()
    dataset = data.dataset("train")
    samples = [dataset[i] for i in range(size)]
    return recipe.build_model(data).eval(), collate(samples), collate(samples, dedup=[])


def counted(module: nn.Module) -> list[int]:
    """The number of entries of every call that the module gets from now on."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


def test_a_shared_image_is_encoded_once(recipe: Recipe) -> None:
    model, shared, separate = setup(recipe)
    calls = counted(model.encoders["image"])
    once, often = model(shared).head_outputs["answer"], model(separate).head_outputs["answer"]
    assert calls == [2, 6], "six questions about two images"
    assert (once - often).abs().max() < 1e-5


def test_only_the_heads_asked_for_run(recipe: Recipe) -> None:
    model, batch, _ = setup(recipe)
    calls = counted(model.heads["answer"])
    assert model(batch, heads=[]).head_outputs == {}
    assert calls == []
    assert model(batch).head_outputs["answer"].shape == (6, 4)
    with pytest.raises(ValueError, match="no head named 'detection'"):
        model(batch, heads=["detection"])


def test_a_sample_without_an_image_does_not_disturb_the_rest(recipe: Recipe) -> None:
    model, batch, _ = setup(recipe)
    rows = batch.inputs[Modality.IMAGE].entry_index.clone()
    rows[0] = -1
    whole, partly = (
        model(batch).head_outputs["answer"],
        model(batch.with_entry_index(Modality.IMAGE, rows)).head_outputs["answer"],
    )
    assert torch.isfinite(partly).all()
    assert torch.allclose(whole[1:], partly[1:], atol=1e-6)
    assert (whole[0] - partly[0]).abs().max() > 1e-4
    none = model(batch.with_entry_index(Modality.IMAGE, torch.full_like(rows, -1))).head_outputs["answer"]
    assert (none - model(batch.without(Modality.IMAGE)).head_outputs["answer"]).abs().max() < 1e-5


def test_attention_weights_belong_to_the_answer(recipe: Recipe) -> None:
    model, batch, _ = setup(recipe)
    shown = model(batch, need_weights=True)
    assert (shown.head_outputs["answer"] - model(batch).head_outputs["answer"]).abs().max() < 1e-5
    weights = shown.fusion.attention[-1][CrossModalPath(Modality.TEXT, Modality.IMAGE)]
    assert torch.allclose(weights.sum(dim=-1), torch.ones(weights.shape[:-1]), atol=1e-5)


def test_a_modality_without_an_encoder_is_named(recipe: Recipe) -> None:
    _, batch, _ = setup(recipe)
    text_only = build_model(replace(TINY_MODEL, modalities=(Modality.TEXT,)), vocab_size=400, answers=4)
    with pytest.raises(ValueError, match=r"no encoder for image: this model has \['text'\]"):
        text_only(batch)
    assert text_only(batch.without(Modality.IMAGE)).head_outputs["answer"].shape == (6, 4)


def test_shuffled_images_change_the_answers(recipe: Recipe) -> None:
    model, batch, _ = setup(recipe)
    assert (
        model(batch).head_outputs["answer"] - model(shuffle_images(batch)).head_outputs["answer"]
    ).abs().max() > 1e-4
    with pytest.raises(ValueError, match="at least two"):
        shuffle_images(setup(recipe, size=3)[1])


@pytest.mark.gpu
@pytest.mark.parametrize("move", [lambda b: b.to("cuda"), lambda b: b.pin_memory().to("cuda", non_blocking=True)])
def test_gpu_and_cpu_agree(recipe: Recipe, move: Callable[[OmniBatch], OmniBatch]) -> None:
    model, batch, _ = setup(recipe)
    here = model(batch).head_outputs["answer"]
    there = model.to("cuda")(move(batch)).head_outputs["answer"].cpu()
    assert (here - there).abs().max() < 1e-3
