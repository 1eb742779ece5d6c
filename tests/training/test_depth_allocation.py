"""The baseline that gives each question the same number of layers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_lab.config import get_profile
from omni_lab.data.collate import collate
from omni_lab.evaluation.flops import count_flops
from omni_lab.layers.layer_drop import allocate_layers
from omni_lab.training.content_study import ContentStudy
from omni_lab.training.depth_allocation import (
    depth_operating_point,
    droppable_layers,
    evaluate_depth,
    own_entries,
    top_layers,
    train_depth_allocator,
)
from omni_lab.training.fit import load_or_train
from omni_lab.training.recipes import get_recipe

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the package mlxtend")


def test_the_largest_logits_are_kept() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 4.0, -1.0]], requires_grad=True)
    assert top_layers(logits, 2, noise=False).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    noisy = top_layers(logits, 2, noise=True)
    assert torch.allclose(noisy.sum(1), torch.full((2,), 2.0)) and set(noisy.flatten().round(decimals=4).tolist()) <= {
        0,
        1,
    }
    (noisy * torch.arange(4.0)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0
    torch.manual_seed(0)
    often = torch.stack([top_layers(logits.detach(), 1, noise=True)[0] for _ in range(500)]).mean(0)
    assert torch.allclose(often, logits.detach()[0].softmax(0), atol=0.07), "as often as the softmax says"


@pytest.mark.slow
def test_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    profile = get_profile("smoke")
    network = load_or_train(get_recipe("digits_layer_drop", profile))
    layers = droppable_layers(network.model)
    assert len(layers) > 4
    allocator = train_depth_allocator(network, 2, steps=3)
    assert all(p.requires_grad for p in network.model.parameters()), "as before"
    with pytest.raises(ValueError, match=f"budget must be from 1 to the {len(layers)} layers of the encoders: got 0"):
        train_depth_allocator(network, 0, steps=3)
    test = network.data.dataset("test")
    allocated, whole = (evaluate_depth(network.model, test, range(12), policy) for policy in (allocator, None))
    assert (allocated.flops < whole.flops).all() and np.allclose(whole.flops, whole.dense_flops)
    one = own_entries(collate([test[0]]))
    keep = allocator(network.model, one)
    assert keep.sum() == 2
    dense = count_flops(lambda: network.model(one, heads=["answer"]))
    with allocate_layers(layers, keep):
        saved = dense - count_flops(lambda: network.model(one, heads=["answer"]))
    charged = whole.flops[0] - allocated.flops[0] + float(allocator.flops(one)[0])
    # the last token of a sound is charged as a whole one
    assert saved == pytest.approx(charged, rel=0.15) and saved <= charged
    study = ContentStudy("digits", profile)
    chosen, dense, fraction = depth_operating_point(study, [0.5, 1.0], kept=0.5, steps=2)
    assert fraction in (0.5, 1.0) and chosen.correct.shape == dense.correct.shape
