"""Times that can be compared: measured in turn, in one process, after a warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch


class Ratio(NamedTuple):
    """Median of the round-by-round ratios, and a 95 % bootstrap interval of that median over the rounds."""

    median: float
    low: float
    high: float


def interleaved_seconds(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> dict[str, np.ndarray]:
    """Seconds of each function in each round, [rounds]. In every round each function runs once, in turn, so that a
    machine that slows down slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            _wait_for_gpu()
            start = time.perf_counter()
            function()
            _wait_for_gpu()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, np.ndarray], numerator: str, denominator: str) -> Ratio:
    """How many times as long `numerator` takes as `denominator`."""
    ratios = seconds[numerator] / seconds[denominator]
    drawn = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
