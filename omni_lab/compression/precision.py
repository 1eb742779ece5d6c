"""How weights and activations are rounded, and the policy that gives every part of a model its precision."""

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
    """The range of an activation; values outside are clipped."""

    low: float
    high: float

    def grid(self) -> tuple[float, int]:
        """Scale and zero point of a uint8 grid over the range that holds zero exactly (Jacob et al. 2018, eq. 1)."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max(high - low, 1e-8) / 255
        return scale, round(-low / scale)


def int8_codes(
    weights: Float[np.ndarray, "*shape"], *, axis: int
) -> tuple[Int8[np.ndarray, "*shape"], Float32[np.ndarray, " c"]]:
    """Symmetric per-channel int8: codes from -127 to 127, and a scale per output channel, those along `axis`."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    scales = np.maximum(np.abs(weights).max(others, keepdims=True), 1e-12) / 127
    codes = np.clip(np.rint(weights / scales), -127, 127).astype(np.int8)
    return codes, scales.reshape(-1).astype(np.float32)


def int4_codes(weights: Float[np.ndarray, "o w"]) -> tuple[UInt8[np.ndarray, "o b 16"], Float32[np.ndarray, "o b"]]:
    """Unsigned 4-bit codes around 8, two to a byte, and a scale per block of 32 weights of a row. The last block of a
    row is padded with zeros."""
    padding = -weights.shape[1] % INT4_BLOCK
    blocks = np.pad(weights, ((0, 0), (0, padding))).reshape(len(weights), -1, INT4_BLOCK)
    scales = np.maximum(np.abs(blocks).max(2, keepdims=True), 1e-12) / 7
    codes = (np.clip(np.rint(blocks / scales), -8, 7) + 8).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales[..., 0].astype(np.float32)


class Precision(enum.StrEnum):
    """How the weights of a part are stored.

    FP16: saves storage; saves time only on a processor with half-precision arithmetic.
    INT8: matrices with a scale per output channel, multiplied as integers; vectors in half precision.
    INT4: matrices with a scale per 32 weights, multiplied as floats; all else in half precision.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True)
class PrecisionPolicy:
    """The precision of every part of a model, by the part's name.

    name: shown in tables.
    encoders: precision of each modality's encoder.
    rest: precision of paths, blocks, heads and the router.
    exceptions: patterns of part names, such as "path.1.*", to a precision; the last match counts.
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
        """int8 for image and video, half precision for text and audio, as the literature advertises; int8 for the
        fusion, which holds most weights."""
        visual = {m: Precision.INT8 for m in (Modality.IMAGE, Modality.VIDEO)}
        others = {m: Precision.FP16 for m in (Modality.TEXT, Modality.AUDIO)}
        return cls("mixed", visual | others, Precision.INT8)

    def precision_of(self, part: str) -> Precision:
        """The precision of the part of that name."""
        matches = [precision for pattern, precision in self.exceptions.items() if fnmatchcase(part, pattern)]
        if matches:
            return matches[-1]
        kind, name, *_ = f"{part}.".split(".")
        return self.encoders.get(Modality(name), self.rest) if kind == "encoder" else self.rest

    def check(self, parts: Iterable[str]) -> None:
        """Raises ValueError for an exception that matches none of these part names."""
        names = list(parts)
        for pattern in self.exceptions:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"precision policy {self.name!r}: no part matches {pattern!r}; the parts are {names}")
