"""Fake quantization: rounds in float32 exactly as the exported int8 model does, for calibration and for
quantization-aware training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omni_lab.batch import OmniBatch
from omni_lab.compression.export import Ranges
from omni_lab.compression.parts import ModelPart
from omni_lab.compression.precision import Precision, PrecisionPolicy, QuantRange
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router, penalty_knots, penalty_to_knots

RANGE_MODES = ("average", "learned", "dynamic")


class FakeQuantizer(nn.Module):
    """Runs parts with their weights, and the inputs of their linear layers, rounded as a policy says; gradients pass
    straight through (Jacob et al. 2018, section 3). `run` is the runner for `assemble_model`.

    ranges: one per part and layer (image and video share weights, but not ranges). "average": a moving average of each
        batch's minimum and maximum; "learned": initialised so, then trained by gradient descent (after learned step
        size quantization, Esser et al. 2020, section 2.1; here both ends of the range are parameters); "dynamic": each
        input's own.
    momentum: of the moving average.
    Raises ValueError for other `ranges`.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, parts: Sequence[ModelPart], policy: PrecisionPolicy, *, ranges: str = "average", momentum: float = 0.05
    ) -> None:
        if ranges not in RANGE_MODES:
            raise ValueError(f"ranges must be one of {RANGE_MODES}: got {ranges!r}")
        policy.check(part.name for part in parts)
        super().__init__()
        self.ranges = ranges
        self.momentum = momentum
        self.rounding = True  # False while ranges are only observed
        self.parts = {part.name: part for part in parts}
        self.precision = {name: policy.precision_of(name) for name in self.parts}
        self._layers = {name: part.layers() for name, part in self.parts.items()}
        self._indices: dict[tuple[str | None, nn.Module], int] = {}  # (part, layer) -> index into low and high
        self._names: list[tuple[str, str]] = []
        for name, part in self.parts.items():
            for layer_name, layer in part.module.named_modules():
                if isinstance(layer, nn.Linear) and self.precision[name] is Precision.INT8:
                    self._indices[name, layer] = len(self._names)
                    self._names.append((name, layer_name))
        layers = {layer for _, layer in self._indices}  # parts may share them
        self._hooks = [layer.register_forward_pre_hook(self._quantize_input) for layer in layers]
        for end in ("low", "high"):
            unknown = torch.full((len(self._names),), torch.nan)
            if ranges == "learned":
                setattr(self, end, nn.Parameter(unknown))
            else:
                self.register_buffer(end, unknown)
        self._running: str | None = None

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs one part."""
        module, precision = self.parts[name].module, self.precision[name]
        weights: dict[str, Tensor] = dict(module.named_parameters())
        if self.rounding and precision is not Precision.FP32:
            weights = {n: self._quantize_weight(w, precision, n in self._layers[name]) for n, w in weights.items()}
        self._running = name
        try:
            return torch.func.functional_call(module, weights, inputs)
        finally:
            self._running = None

    def quant_ranges(self) -> Ranges | None:
        """The input ranges found so far, by part and layer, for `Exporter.write`; None if ranges are dynamic."""
        if self.ranges == "dynamic":
            return None
        ranges: dict[str, dict[str, QuantRange]] = {part: {} for part in self.parts}
        for (part, layer), low, high in zip(self._names, self.low.tolist(), self.high.tolist(), strict=True):
            if not math.isnan(low):
                ranges[part][layer] = QuantRange(low, high)
        return ranges

    def remove(self) -> None:
        """Removes the hooks from the layers."""
        for hook in self._hooks:
            hook.remove()

    def _quantize_weight(self, weight: Tensor, precision: Precision, per_channel: bool) -> Tensor:
        if precision is Precision.INT8 and per_channel:
            scale = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            zero_point = torch.zeros_like(scale, dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -127, 127)
        return weight + (weight.detach().half().float() - weight.detach())

    def _quantize_input(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
        index = self._indices.get((self._running, layer))
        if index is None:
            return None
        x, dynamic = inputs[0], self.ranges == "dynamic"
        own_range = dynamic or bool(self.low[index].isnan())
        observing = not dynamic and (not self.rounding or (self.training and self.ranges == "average"))
        ends: Sequence[Tensor] = x.detach().aminmax() if own_range or observing else ()
        if observing:
            with torch.no_grad():
                for bound, new in zip((self.low, self.high), ends, strict=True):
                    bound[index] = new if own_range else bound[index] + self.momentum * (new - bound[index])
        if not self.rounding:
            return None
        return (fake_quantize_uint8(x, *(ends if own_range else (self.low[index], self.high[index]))),)


def round_ste(value: Tensor) -> Tensor:
    """Rounds with a straight-through gradient."""
    return value + (value.round() - value).detach()


def fake_quantize_uint8(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Rounds values to the uint8 grid of a range, with the arithmetic of `QuantRange.grid` and ONNX's QuantizeLinear.
    Gradients reach the values inside the range, and both of its ends."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low).clamp(min=1e-8) / 255
    if not (low.requires_grad or high.requires_grad):
        return torch.fake_quantize_per_tensor_affine(x, scale, (-low / scale).round().int(), 0, 255)
    zero_point = round_ste(-low / scale)
    return ((round_ste(x / scale) + zero_point).clamp(0, 255) - zero_point) * scale


@torch.inference_mode()
def calibrate(
    fake: FakeQuantizer, model: OmniModel, batches: Iterable[OmniBatch], *, router: Router | None = None, seed: int = 0
) -> int:
    """Post-training calibration (Jacob et al. 2018): observes ranges while the float model answers each batch on dense
    and on random routes, so that every part is reached, and while the router computes logits, under random penalties if
    it is conditioned on them; returns the number of batches.

    model, router: assembled around `fake.run`.
    Raises ValueError if there are no batches.
    """
    generator = torch.Generator().manual_seed(seed)
    knots, count, fake.rounding = penalty_knots(), 0, False
    try:
        for batch in batches:
            count += 1
            for route in (model.space.dense(batch.present), model.space.sample(batch.present, generator=generator)):
                model(batch, route=route)
            if router is None:
                continue
            for modality, tokens in model.encode(batch).items():  # as if each modality held the question
                rows = tokens.present.nonzero().squeeze(1)
                penalties = knots[torch.randint(len(knots), (len(rows),), generator=generator)]
                condition = penalty_to_knots(penalties) if router.penalty_conditioned else None
                router.modality_logits(modality, tokens.mean_pool()[rows], batch.present[rows].float(), condition)
    finally:
        fake.rounding = True
    if not count:
        raise ValueError("calibration needs batches: got none")
    return count
