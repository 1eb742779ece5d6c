"""The grids that weights and activations are rounded to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8

INT4_BLOCK = 32


@dataclass(frozen=True)
class Range:
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
