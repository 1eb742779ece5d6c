"""Time and peak memory of calls."""

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

from omni_lab.metrics.bootstrap import Estimate, resample


def peak_tensor_bytes(function: Callable[[], Any]) -> int:
    """Peak bytes of the tensors that a call makes, on any device, without gradients; arguments and scratch memory of
    kernels do not count. (PyTorch's `MemTracker` counts weights, too, and raises for a frozen module.)"""
    with torch.no_grad(), _LiveStorages() as live:
        function()
    return live.peak


class _LiveStorages(TorchDispatchMode):
    """Sums the bytes of storages, each from the operation that made it until nothing refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        seen = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in seen:
                seen.add(id(storage))
                self.current += storage.nbytes()
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._free, storage.nbytes())
        return outputs

    def _free(self, size: int) -> None:
        self.current -= size


def time_interleaved(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> dict[str, np.ndarray]:
    """[rounds] seconds of each function. Each round runs every function once, so that a machine that slows down slows
    them all."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(warmup + rounds):
        for name, function in functions.items():
            _synchronize()
            start = time.perf_counter()
            function()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[warmup:]) for name, values in seconds.items()}


def time_ratio(seconds: Mapping[str, np.ndarray], numerator: str, denominator: str) -> Estimate:
    """Median over rounds of the time of `numerator` over that of `denominator`, with a bootstrap interval."""
    ratios = seconds[numerator] / seconds[denominator]
    medians = [np.median(ratios[i]) for (i,) in resample(len(ratios), resamples=2000)]
    return Estimate.from_resamples(np.median(ratios), medians, len(ratios))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak_memory() -> None:
    """Starts a new peak for `peak_memory_mb`. Without a GPU only on Linux; else the peak is of the whole process."""
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
