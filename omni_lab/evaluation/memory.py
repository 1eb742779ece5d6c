"""How much memory a call needs while it runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(function: Callable[[], Any]) -> int:
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
