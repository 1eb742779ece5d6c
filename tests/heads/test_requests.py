"""The requested heads run, and no others."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import Modality, OmniBatch
from omni_lab.evaluation.flops import count_flops, head_flops, unused_flops
from omni_lab.heads.context import ContextEncoder, HeadError
from omni_lab.heads.detection import DetectionHead, DetectionOutput
from omni_lab.heads.restoration import RestorationHead
from omni_lab.heads.text import GenerationConfig, GenerationOutput, TextHead
from omni_lab.model import OmniModel
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]


@pytest.fixture
def model(routed: OmniModel) -> OmniModel:
    torch.manual_seed(0)
    model, dim = copy.deepcopy(routed), 16
    width = next(layer for layer in model.fusion.modules() if isinstance(layer, nn.LayerNorm)).normalized_shape[0]
    model.context_encoder = ContextEncoder(modalities=tuple(Modality), dim=width, out_dim=dim, depth=1)
    model.heads["text"] = TextHead(vocab_size=56, eos_id=50, dim=dim)
    model.heads["detection"] = DetectionHead(classes=["frog", "key"], dim=dim)
    model.heads["restoration"] = RestorationHead(dim=dim, size=32, widths=(8, 8))
    return model.eval()


def requests_of(model: OmniModel, batch: OmniBatch) -> dict[str, dict[str, Any]]:
    pictures = torch.zeros(len(batch), 3, 32, 32, dtype=torch.uint8)
    prompt = torch.full((len(batch), 1), 51)
    return {
        "answer": {},
        "text": {"prompt": prompt, "generation": GenerationConfig(max_new_tokens=4)},
        "detection": {},
        "restoration": {"image": pictures},
    }


@torch.no_grad()
def test_several_results_at_once_are_those_of_each_alone(model: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(3)
    requests = requests_of(model, batch)
    calls: list[int] = []
    assert model.context_encoder is not None
    model.context_encoder.register_forward_hook(lambda *_: calls.append(1))
    together = model(batch, heads=requests).head_outputs
    assert list(together) == list(requests) and len(calls) == 1, "the context is computed once for all heads"
    assert isinstance(together["text"], GenerationOutput) and isinstance(together["detection"], DetectionOutput)
    for name, want in requests.items():
        alone = model(batch, heads={name: want}).head_outputs
        assert list(alone) == [name]
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (alone[name], together[name])), strict=True):
            assert torch.equal(a, b)
    assert isinstance(model(batch, heads=["answer", "detection"]).head_outputs["detection"], DetectionOutput), (
        "by name where nothing is requests"
    )
    assert len(calls) == 1 + 3 + 1, "the answer reads the streams themselves"


def test_a_head_that_is_not_requested_costs_nothing(model: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    requests = requests_of(model, batch)
    counted = head_flops(model, batch, requests)
    assert all(counted[name] > 0 for name in (*requests, "context"))
    assert count_flops(lambda: model(batch, heads=requests)) == sum(counted.values())
    lone = {"answer": requests["answer"]}
    both = head_flops(model, batch, lone)
    assert set(both) == {"encoders and fusion", "answer"}
    assert unused_flops(model, batch, lone) == 0
    paint: Any = cast(Any, model.heads["restoration"]).paint

    def meddle(*_: Any) -> None:
        paint(torch.zeros(1, 8, 4, 4))

    meddling = model.heads["detection"].register_forward_hook(meddle)
    assert unused_flops(model, batch, {"detection": {}}) == 2 * 64 * 8 * 16, "a head that works unasked is seen"
    meddling.remove()
    whole = dict(model.heads.items())
    model.heads, model.context_encoder = nn.ModuleDict({"answer": whole["answer"]}), None
    assert sum(both.values()) == count_flops(lambda: model(batch, heads=lone)), "as if there were no others"


def test_gradients_reach_what_is_requested_and_nothing_else(model: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    found: DetectionOutput = model(batch, heads=["detection"]).head_outputs["detection"]
    (found.logits.sum() + found.boxes.sum()).backward()
    touched = {name.split(".")[1] for name, p in model.named_parameters() if "heads." in name and p.grad is not None}
    assert touched == {"detection"}
    assert model.context_encoder is not None and all(
        p.grad is not None for p in model.context_encoder.blocks.parameters()
    )


def test_invalid_requests_are_errors(model: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    with pytest.raises(
        HeadError, match=r"no head named 'smell': this model has \['answer', 'text', 'detection', 'restoration'\]"
    ):
        model(batch, heads=["smell"])
    with pytest.raises(HeadError, match="detection: every sample needs image"):
        model(batch.without(Modality.IMAGE), heads=["detection"])
    model.context_encoder = None
    with pytest.raises(HeadError, match=r"the heads \['detection'\] need a model with a context encoder"):
        model(batch, heads=["answer", "detection"])


def test_a_head_with_no_finite_output_is_named(
    model: OmniModel, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture
) -> None:
    pixels: Any = model.heads["restoration"]
    with torch.no_grad():
        pixels.paint.bias.fill_(float("nan"))
    restored: Tensor = model(
        make_batch(2), heads={"restoration": requests_of(model, make_batch(2))["restoration"]}
    ).head_outputs["restoration"]
    assert restored.isnan().all() and "non-finite output of the restoration head" in caplog.text
