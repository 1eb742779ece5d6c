"""Rounding in float32 exactly as the exported int8 model rounds: for calibration, and for training with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    """Carries parts out (its `run` is what `assemble` wants) with their weights, and what their linear layers are
    given, rounded to the grids of a policy; gradients pass straight through (Jacob et al. 2018, section 3).

    The range of what a layer is given is held per part: what pictures and clips have in common has a range for each.

    ranges: "average", a moving average of each batch's least and greatest value; "learned", begun there, then trained
    by gradient descent (after learned step size quantization, Esser et al. 2020, section 2.1; here both ends of the
    range are the parameters); "dynamic", each input's own. momentum: of the average. Raises ValueError for another.
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
        self.rounding = True
        self.parts = {part.name: part for part in parts}
        self.precision = {name: policy.precision_of(name) for name in self.parts}
        self.layers = {name: part.layers() for name, part in self.parts.items()}
        self.places: dict[tuple[str, int], int] = {}
        self.names: list[tuple[str, str]] = []
        self._hooks: list[Any] = []
        hooked: set[int] = set()
        for name, part in self.parts.items():
            if self.precision[name] is not Precision.INT8:
                continue
            for layer_name, layer in part.module.named_modules():
                if isinstance(layer, nn.Linear):
                    self.places[name, id(layer)] = len(self.names)
                    self.names.append((name, layer_name))
                    if id(layer) not in hooked:
                        hooked.add(id(layer))
                        self._hooks.append(layer.register_forward_pre_hook(self._before))
        unknown = torch.full((len(self.names),), torch.nan)
        for end in ("low", "high"):
            if ranges == "learned":
                setattr(self, end, nn.Parameter(unknown.clone()))
            else:
                self.register_buffer(end, unknown.clone())
        self._running: str | None = None

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One part."""
        module, precision = self.parts[name].module, self.precision[name]
        weights: dict[str, Tensor] = dict(module.named_parameters())
        if self.rounding and precision is not Precision.FP32:
            weights = {n: self._rounded(n, w, precision, self.layers[name]) for n, w in weights.items()}
        self._running = name
        try:
            return torch.func.functional_call(module, weights, inputs)
        finally:
            self._running = None

    @contextmanager
    def observe_only(self) -> Iterator[None]:
        """Floats stay as they are, and ranges are noted."""
        self.rounding = False
        try:
            yield
        finally:
            self.rounding = True

    def known_ranges(self) -> Ranges | None:
        """The range of what every layer is given, as far as any part reached it, for `Exporter.write`; None if ranges
        are dynamic."""
        if self.ranges == "dynamic":
            return None
        known: dict[str, dict[str, QuantRange]] = {part: {} for part in self.parts}
        for (part, layer), low, high in zip(self.names, self.low.tolist(), self.high.tolist(), strict=True):
            if not math.isnan(low):
                known[part][layer] = QuantRange(low, high)
        return known

    def remove(self) -> None:
        """Lets go of the layers: they are as before."""
        for hook in self._hooks:
            hook.remove()

    def _rounded(self, name: str, weight: Tensor, precision: Precision, layers: dict[str, str]) -> Tensor:
        if precision is Precision.INT8 and name in layers:
            steps = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            zeros = torch.zeros_like(steps, dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -127, 127)
        return weight + (weight.detach().half().float() - weight.detach())

    def _before(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor] | None:
        """What a linear layer is given, on its grid."""
        if self._running is None or (self._running, id(layer)) not in self.places:
            return None
        x, place = given[0], self.places[self._running, id(layer)]
        unknown = self.ranges == "dynamic" or bool(self.low[place].isnan())
        noting = not self.rounding or (self.training and self.ranges == "average")
        own = x.detach().aminmax() if unknown or noting else None
        if own is not None and noting and self.ranges != "dynamic":
            self._note(place, own, first=unknown)
        if not self.rounding:
            return None
        ends = own if own is not None and unknown else (self.low[place], self.high[place])
        return (fake_quantize_uint8(x, *ends),)

    def _note(self, place: int, own: Sequence[Tensor], *, first: bool) -> None:
        with torch.no_grad():
            for end, now in zip((self.low, self.high), own, strict=True):
                end[place] = now if first else end[place] + self.momentum * (now - end[place])


def round_ste(value: Tensor) -> Tensor:
    """Rounded; the gradient passes as if it were not."""
    return value + (value.round() - value).detach()


def fake_quantize_uint8(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values rounded to the uint8 grid of a range, which always holds zero; gradients reach the values inside of it and
    both ends of the range. The same arithmetic as `Range.grid` and ONNX's QuantizeLinear."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = (high - low).clamp(min=1e-8) / 255
    if not (low.requires_grad or high.requires_grad):
        return torch.fake_quantize_per_tensor_affine(x, step, (-low / step).round().int(), 0, 255)
    zero = round_ste(-low / step)
    return ((round_ste(x / step) + zero).clamp(0, 255) - zero) * step


def calibrate(
    fake: FakeQuantizer,
    model: OmniModel,
    batches: Iterable[OmniBatch],
    *,
    controller: Router | None = None,
    seed: int = 0,
) -> int:
    """Notes the ranges that occur when a float model answers, each batch once in full and once under random routes, so
    that every part is reached, and when its controller decides, under random penalties if it is conditioned; returns
    how many batches there were. model, controller: put together from `fake.run`. Raises ValueError if there is none.

    Post-training quantization (Jacob et al. 2018) is this, and no training.
    """
    generator = torch.Generator().manual_seed(seed)
    knots, count = penalty_knots(), 0
    with fake.observe_only(), torch.inference_mode():
        for batch in batches:
            for route in (model.space.dense(batch.present), model.space.sample(batch.present, generator=generator)):
                model(batch, route=route)
            if controller is not None:
                for modality, tokens in model.encode(batch).items():  # as if each carried the question
                    some = tokens.present.nonzero().squeeze(1)
                    drawn = knots[torch.randint(len(knots), (len(some),), generator=generator)]
                    told = penalty_to_knots(drawn) if controller.penalty_conditioned else None
                    controller.modality_logits(modality, tokens.mean_pool()[some], batch.present[some].float(), told)
            count += 1
    if not count:
        raise ValueError("calibration wants batches: got none")
    return count
