"""Map a function over many items, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import current_process
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MIN_PARALLEL_ITEMS = 1000  # fewer items are done before a second process has started


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, min_items: int | None = None, chunksize: int = 32
) -> Iterator[Result]:
    """Yields `function(item)` for each item, in order; for many items in one process per core.

    min_items: with so many, other processes do the work (default: MIN_PARALLEL_ITEMS); all must then be picklable.
    chunksize: items that a process takes at a time.
    Errors of the function are raised here. A DataLoader's workers, which may not start processes, do all themselves.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(items) < (MIN_PARALLEL_ITEMS if min_items is None else min_items) or cores == 1 or current_process().daemon:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(function, items, chunksize=chunksize)
    finally:
        pool.shutdown(cancel_futures=True)
