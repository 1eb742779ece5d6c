"""Dynamic batching: requests that run the same things wait briefly for each other and are answered together."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


class QueueFullError(RuntimeError):
    """No more requests are accepted for now. retry_after: seconds after which one may be."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already: try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class DeadlineExceededError(TimeoutError):
    """A request waited longer than it wanted to."""


@dataclass(frozen=True)
class BatchingConfig:
    """When waiting requests become a batch, by the names that Triton Inference Server uses.

    preferred_batch_size: run as soon as so many wait.
    max_batch_size: of one batch.
    max_queue_delay: seconds after which the oldest runs, alone if need be; 0 waits only while all workers are busy.
    max_queue_size: requests that may wait; a further one is refused.
    default_timeout: seconds that a request may wait before it is dropped; None: for ever.
    """

    preferred_batch_size: int = 8
    max_batch_size: int = 32
    max_queue_delay: float = 0.0
    max_queue_size: int = 256
    default_timeout: float | None = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.preferred_batch_size <= self.max_batch_size:
            raise ValueError(
                "preferred_batch_size must be from 1 to max_batch_size: got "
                f"{self.preferred_batch_size} and {self.max_batch_size}"
            )
        if self.max_queue_delay < 0 or self.max_queue_size < 1:
            raise ValueError(
                f"max_queue_delay must be at least 0, max_queue_size at least 1: got {self.max_queue_delay} and "
                f"{self.max_queue_size}"
            )
        if self.default_timeout is not None and self.default_timeout <= 0:
            raise ValueError(f"default_timeout must be above 0, or None: got {self.default_timeout}")


@dataclass
class _Waiting(Generic[T, R]):
    item: T
    future: Future[R]
    priority: int
    arrived: float
    deadline: float


@dataclass
class BatchingStats:
    """What a batcher did so far. sizes: how many batches had each size."""

    batches: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    sizes: dict[int, int] = field(default_factory=dict)


class DynamicBatcher(Generic[T, R]):
    """Queues by key, and threads that run their batches.

    run: maps a key and a batch of items to a result for each. If it fails for several items, each is run again alone,
        so that one bad item fails only its own request.
    config: of every key; `configs` has those of some keys. max_queue_size counts the requests of all keys.
    workers: batches that run at a time.
    on_batch: called with key, size and the seconds that the oldest waited, before each batch.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[T]], Sequence[R]],
        config: BatchingConfig | None = None,
        *,
        configs: Mapping[Hashable, BatchingConfig] | None = None,
        workers: int = 1,
        on_batch: Callable[[Any, int, float], Any] = lambda key, size, waited: None,
        name: str = "batches",
    ) -> None:
        self._run, self.config, self._configs = run, config or BatchingConfig(), dict(configs or {})
        self._on_batch, self.stats = on_batch, BatchingStats()
        self._queues: dict[Hashable, deque[_Waiting[T, R]]] = {}
        self._changed = threading.Condition()
        self._closing, self._running, self._seconds = False, 0, 0.05  # seconds: of a batch, smoothed
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(max(1, workers))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, key: Hashable, item: T, *, priority: int = 0, timeout: float | None = None) -> Future[R]:
        """The result, once it is there. A future that is cancelled before its batch runs is not run.

        priority: a batch with a higher one runs first. timeout: seconds; see `BatchingConfig.default_timeout`.
        Raises QueueFullError, and RuntimeError after `close`. The future raises DeadlineExceededError if the request
        waits too long, and what `run` raises.
        """
        now = time.monotonic()
        allowed = timeout if timeout is not None else self.config.default_timeout
        entry = _Waiting(item, Future[R](), priority, now, now + allowed if allowed is not None else float("inf"))
        with self._changed:
            if self._closing:
                raise RuntimeError("this batcher is closed")
            if self.waiting >= self.config.max_queue_size:
                self._drop(now)
            waiting = self.waiting
            if waiting >= self.config.max_queue_size:
                self.stats.refused += 1
                raise QueueFullError(waiting, self._estimate(waiting))
            self._queues.setdefault(key, deque()).append(entry)
            self._changed.notify()
        return entry.future

    @property
    def waiting(self) -> int:
        """Requests that are in no batch yet."""
        return sum(map(len, self._queues.values()))

    @property
    def busy(self) -> int:
        """Batches that run now."""
        return self._running

    def close(self) -> None:
        """Accepts nothing more, and returns when all that waited is done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _estimate(self, waiting: int) -> float:
        """Seconds until the queue is half empty."""
        batches = waiting / 2 / self.config.preferred_batch_size
        return max(0.1, batches * self._seconds / len(self._threads))

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._next()
                while batch is None:
                    if self._closing and not self.waiting:
                        return
                    self._changed.wait(self._until_ready())
                    batch = self._next()
                key, entries = batch
                self._running += 1
            start = time.monotonic()
            try:
                self._on_batch(key, len(entries), start - entries[0].arrived)
                self._answer(key, entries)
            finally:
                with self._changed:
                    self._running -= 1
                    self._seconds += 0.1 * (time.monotonic() - start - self._seconds)
                    self.stats.batches += 1
                    self.stats.sizes[len(entries)] = self.stats.sizes.get(len(entries), 0) + 1

    def _answer(self, key: Hashable, entries: Sequence[_Waiting[T, R]]) -> None:
        try:
            results = self._run(key, [entry.item for entry in entries])
            if len(results) != len(entries):
                raise RuntimeError(f"{len(results)} results for a batch of {len(entries)}")
        except Exception as error:  # whatever it was belongs to whoever waits for it
            if len(entries) == 1:
                entries[0].future.set_exception(error)
                return
            log.warning("a batch of %d failed (%r): each request is run alone", len(entries), error)
            for entry in entries:
                self._answer(key, [entry])
            return
        for entry, result in zip(entries, results, strict=True):
            entry.future.set_result(result)

    def _config(self, key: Hashable) -> BatchingConfig:
        return self._configs.get(key, self.config)

    def _drop(self, now: float) -> None:
        """Takes out what nobody waits for any more, and what waited too long."""
        for key, queue in [*self._queues.items()]:
            kept: deque[_Waiting[T, R]] = deque()
            for entry in queue:
                if entry.future.cancelled():
                    self.stats.cancelled += 1
                elif now >= entry.deadline:
                    self.stats.expired += 1
                    if entry.future.set_running_or_notify_cancel():
                        waited = now - entry.arrived
                        entry.future.set_exception(DeadlineExceededError(f"waited {waited:.2f} s: its time is over"))
                else:
                    kept.append(entry)
            if kept:
                self._queues[key] = kept
            else:
                del self._queues[key]

    def _next(self) -> tuple[Hashable, list[_Waiting[T, R]]] | None:
        """The batch that runs next, if one is ready: of the highest priority, then the oldest."""
        now = time.monotonic()
        self._drop(now)
        ready = [key for key, queue in self._queues.items() if self._closing or now >= self._ready_at(key, queue)]
        if not ready:
            return None

        def rank(key: Hashable) -> tuple[int, float]:
            queue = self._queues[key]
            return -max(entry.priority for entry in queue), queue[0].arrived

        key = min(ready, key=rank)
        queue = sorted(self._queues.pop(key), key=lambda entry: -entry.priority)  # stable: first come, first served
        limit = self._config(key).max_batch_size
        batch, rest = queue[:limit], queue[limit:]
        if rest:
            self._queues[key] = deque(sorted(rest, key=lambda entry: entry.arrived))
        running = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
        self.stats.cancelled += len(batch) - len(running)
        return (key, sorted(running, key=lambda entry: entry.arrived)) if running else self._next()

    def _ready_at(self, key: Hashable, queue: deque[_Waiting[T, R]]) -> float:
        config = self._config(key)
        full = len(queue) >= config.preferred_batch_size
        return queue[0].arrived + (0.0 if full else config.max_queue_delay)

    def _until_ready(self) -> float | None:
        """Seconds until something is ready or too late; None if nothing waits."""
        times = [self._ready_at(key, queue) for key, queue in self._queues.items()]
        times += [entry.deadline for queue in self._queues.values() for entry in queue]
        return max(0.0, min(times) - time.monotonic()) if times else None
