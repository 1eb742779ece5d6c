"""How much memory a call needs while it runs."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omni_lab.metrics.bootstrap import Estimate


def peak_tensor_bytes(function: Callable[[], Any]) -> int:
    """Bytes of the tensors that a call made and had alive at once, at most, on any device; without gradients. What it
    was given, and the scratch memory of kernels, do not count.

    (PyTorch's own `MemTracker` counts weights too, and raises for a frozen module.)
    """
    with torch.no_grad(), _Alive() as alive:
        function()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts each storage from the operation that made it until nothing refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        returned = func(*args, **(kwargs or {}))
        known = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in known:
                known.add(id(storage))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return returned

    def _freed(self, size: int) -> None:
        self.now -= size


def time_interleaved(
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


def time_ratio(seconds: Mapping[str, np.ndarray], numerator: str, denominator: str) -> Estimate:
    """How many times as long `numerator` takes as `denominator`."""
    ratios = seconds[numerator] / seconds[denominator]
    drawn = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(ratios)), float(low), float(high))


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak_memory() -> None:
    """Peaks count from here on. Without a GPU that takes Linux; elsewhere they count from the start of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """Peak allocated memory of the GPU, else peak resident memory of this process, in MB (1e6 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
