"""Work that is the same for many items, by all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MIN_PARALLEL_ITEMS = 1000  # fewer items are done before a second process has begun
CHUNK_SIZE = 32


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, many: int | None = None, chunksize: int = CHUNK_SIZE
) -> Iterator[Result]:
    """function(item) of each item, in order. Where there are `many` (a thousand) or more, by one process per core; each
    takes some `together`. Function and items are then pickled, and what the function raises is raised here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(items) < (MIN_PARALLEL_ITEMS if many is None else many) or cores == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(function, items, chunksize=chunksize)
    finally:
        pool.shutdown(cancel_futures=True)
