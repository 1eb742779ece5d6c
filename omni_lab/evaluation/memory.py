"""How much memory a call needs while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker


def peak_bytes(function: Callable[[], Any]) -> int:
    """Bytes of the tensors that a call made and had alive at once, at most, on any device; without gradients. What it
    was given, and the scratch memory of kernels, do not count."""
    tracker = MemTracker()
    with torch.no_grad(), tracker:
        function()
    return sum(int(by_kind["Total"]) for by_kind in tracker.get_tracker_snapshot("peak").values())
