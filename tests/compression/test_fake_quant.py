"""Rounding for training: the grids that are exported, a range for each part, gradients to values and ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_lab.compression.fake_quant import FakeQuantizer, calibrate, fake_quantize_uint8
from omni_lab.compression.parts import AssemblySpec, assemble_model, split_model
from omni_lab.compression.precision import Precision, PrecisionPolicy, QuantRange, int4_codes, int8_codes
from omni_lab.model import OmniModel
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]
INT8 = PrecisionPolicy.uniform(Precision.INT8)


@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_activations_fall_on_the_exported_grid(low: float, high: float) -> None:
    x = torch.linspace(-5, 5, 1001)
    ends = torch.tensor(low), torch.tensor(high)
    step, zero = QuantRange(low, high).grid()
    expected = (torch.clamp((x / step).round() + zero, 0, 255) - zero) * step
    for learns in (False, True):
        found = fake_quantize_uint8(x, *(end.clone().requires_grad_(learns) for end in ends)).detach()
        assert torch.allclose(found, expected, atol=1e-5)
    assert 0.0 in found, "zero is kept exactly"


def test_gradients_reach_what_is_inside_and_both_ends() -> None:
    x = torch.linspace(-4, 4, 81).requires_grad_()
    low, high = torch.tensor(-2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    y = fake_quantize_uint8(x, low, high)
    y.sum().backward()
    inside = (x > -2) & (x < 3)
    assert x.grad is not None and torch.equal(x.grad[inside], torch.ones(int(inside.sum())))
    assert not x.grad[~inside & (x.abs() > 3.1)].any()
    assert low.grad is not None and high.grad is not None
    assert low.grad.item() == pytest.approx(float((x < -2).sum()), abs=3.0), "what is clipped follows its end"
    assert high.grad.item() == pytest.approx(float((x > 3).sum()), abs=3.0)


def test_weights_round_to_steps_of_their_channel() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 70)).astype(np.float32)
    for axis in (0, 1):
        codes, steps = int8_codes(weights, axis=axis)
        shown = codes * np.expand_dims(steps, 1 - axis)
        assert codes.dtype == np.int8 and np.abs(shown - weights).max() <= steps.max() / 2 + 1e-6
    codes4, steps4 = int4_codes(weights)
    assert codes4.shape == (5, 3, 16) and steps4.shape == (5, 3)
    nibbles = np.stack([codes4 & 15, codes4 >> 4], axis=-1).reshape(5, 3, 32).astype(int) - 8
    shown = (nibbles * steps4[..., None]).reshape(5, 96)
    assert np.abs(shown[:, :70] - weights).max() <= steps4.max() / 2 + 1e-6 and not shown[:, 70:].any()


def test_what_modalities_share_has_a_range_for_each(routed: OmniModel, make_batch: MakeBatch) -> None:
    fake = FakeQuantizer(split_model(routed, make_batch(2)), INT8).eval()
    model = assemble_model(AssemblySpec.from_model(routed), fake.run)
    calibrate(fake, model, [make_batch(8, seed=s) for s in range(2)])
    ranges = fake.quant_ranges()
    assert ranges is not None
    layer = "swin.layers.0.blocks.0.mlp.fc2"
    seen, filmed = (ranges[f"encoder.{m}"][f"encoder.{n}"] for m, n in (("image", layer), ("video", f"vision.{layer}")))
    assert seen != filmed and seen.high > 0 and filmed.high > 0
    assert (
        "encoder.early_exit" not in ranges["encoder.image"]
        and "encoder.early_exit" in ranges["encoder.image.early_exit"]
    )
    model(make_batch(8, seed=5))
    assert fake.quant_ranges() == ranges, "they stay once they are known"
    fake.train()
    model(make_batch(8, seed=5))
    assert fake.quant_ranges() != ranges, "but move while training"


def test_the_policy_decides_which_parts_round(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    policy = PrecisionPolicy("one", {}, Precision.FP32, {"block.1.text": Precision.INT8})
    parts = split_model(routed, batch)
    fake = FakeQuantizer(parts, policy, ranges="dynamic")
    differs = set()
    for part in parts:
        pairs = zip(fake.run(part.name, *part.example), part.module(*part.example), strict=True)
        if not all(torch.equal(rounded, exact) for rounded, exact in pairs):
            differs.add(part.name)
    assert differs == {"block.1.text"}


def test_nonsense_is_refused(routed: OmniModel, make_batch: MakeBatch) -> None:
    parts = split_model(routed, make_batch(2))
    with pytest.raises(ValueError, match="ranges must be one of .* got 'guessed'"):
        FakeQuantizer(parts, INT8, ranges="guessed")
    fake = FakeQuantizer(parts, INT8)
    with pytest.raises(ValueError, match="calibration needs batches: got none"):
        calibrate(fake, assemble_model(AssemblySpec.from_model(routed), fake.run), [])
    with pytest.raises(ValueError, match=r"no part matches 'head\.\*'"):
        FakeQuantizer(parts, PrecisionPolicy("odd", {}, Precision.INT8, {"head.*": Precision.FP16}))
