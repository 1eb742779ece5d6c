"""The grids that weights and activations are rounded to."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8

from omni_lab.batch import Modality

INT4_BLOCK = 32


@dataclass(frozen=True)
class QuantRange:
    """The values that an activation is expected to take; what lies outside is clipped."""

    low: float
    high: float

    def grid(self) -> tuple[float, int]:
        """Step and zero point of the uint8 grid that holds the range, and zero exactly (Jacob et al. 2018, eq. 1)."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        step = max(high - low, 1e-8) / 255
        return step, round(-low / step)


def int8_codes(
    weights: Float[np.ndarray, "*shape"], *, axis: int
) -> tuple[Int8[np.ndarray, "*shape"], Float32[np.ndarray, " c"]]:
    """Weights as int8 with a step per output channel, those along `axis`; symmetric, from -127 to 127."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    steps = np.maximum(np.abs(weights).max(others, keepdims=True), 1e-12) / 127
    codes = np.clip(np.rint(weights / steps), -127, 127).astype(np.int8)
    return codes, steps.reshape(-1).astype(np.float32)


def int4_codes(
    weights: Float[np.ndarray, "out width"],
) -> tuple[UInt8[np.ndarray, "out blocks half"], Float32[np.ndarray, "out blocks"]]:
    """Weights as unsigned 4-bit codes around 8, two to a byte, with a step for every 32 of a row. The last block of a
    row is filled up with zeros."""
    lacking = -weights.shape[1] % INT4_BLOCK
    blocks = np.pad(weights, ((0, 0), (0, lacking))).reshape(len(weights), -1, INT4_BLOCK)
    steps = np.maximum(np.abs(blocks).max(2, keepdims=True), 1e-12) / 7
    codes = (np.clip(np.rint(blocks / steps), -8, 7) + 8).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, steps[..., 0].astype(np.float32)


class Precision(enum.StrEnum):
    """How the weights of a part are stored. INT8: matrices in a byte per weight, a scale per output channel, and
    products of integers; vectors in half precision. INT4: half a byte, a scale for every 32 weights, and products of
    floats. FP16: half precision; on a processor without half-precision arithmetic it saves storage, not time."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True)
class PrecisionPolicy:
    """A precision for every part of a model, by its name.

    name: for tables. encoders: of each modality's encoder. rest: of paths, blocks, heads and the controller.
    exceptions: from patterns of parts' names, such as "path.1.*", to a precision; the last that fits counts.
    """

    name: str
    encoders: Mapping[Modality, Precision]
    rest: Precision
    exceptions: Mapping[str, Precision] = field(default_factory=dict)

    @classmethod
    def uniform(cls, precision: Precision) -> PrecisionPolicy:
        return cls(precision.value, {m: precision for m in Modality}, precision)

    @classmethod
    def mixed(cls) -> PrecisionPolicy:
        """int8 for pictures and clips, half precision for text and sound, as the literature advertises; int8 for what
        joins them, where most weights are."""
        seen = {m: Precision.INT8 for m in (Modality.IMAGE, Modality.VIDEO)}
        heard = {m: Precision.FP16 for m in (Modality.TEXT, Modality.AUDIO)}
        return cls("mixed", seen | heard, Precision.INT8)

    def precision_of(self, part: str) -> Precision:
        """The precision of the part of that name."""
        kind, _, rest = part.partition(".")
        chosen = self.rest
        if kind == "encoder":
            chosen = self.encoders.get(Modality(rest.partition(".")[0]), self.rest)
        for pattern, precision in self.exceptions.items():
            if fnmatchcase(part, pattern):
                chosen = precision
        return chosen

    def check(self, parts: Iterable[str]) -> None:
        """Raises ValueError for an exception that fits none of these parts."""
        known = list(parts)
        for pattern in self.exceptions:
            if not any(fnmatchcase(part, pattern) for part in known):
                raise ValueError(
                    f"the precision policy {self.name!r} names {pattern!r}: no part is called so ({known})"
                )
