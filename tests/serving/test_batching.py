"""Requests of one kind are answered together, in order of priority, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import CancelledError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_lab.serving.batching import BatchingConfig, DeadlineExceededError, DynamicBatcher, QueueFullError


class Recorder:
    """Doubles numbers, and remembers its batches. The first batch waits for `go`, if it is held."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[tuple[Hashable, list[int]]] = []
        self.go, self.started = threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def __call__(self, key: Hashable, items: Sequence[int]) -> list[int]:
        self.batches.append((key, [*items]))
        self.started.set()
        assert self.go.wait(10)
        if 13 in items:
            raise ValueError("13 is unlucky")
        return [2 * item for item in items]


def held_batcher(**config: float) -> tuple[Recorder, DynamicBatcher[int, int]]:
    """Its only worker is busy with item 0."""
    run = Recorder(held=True)
    batcher = DynamicBatcher(run, BatchingConfig(**config))  # type: ignore[arg-type]
    batcher.submit("busy", 0)
    assert run.started.wait(10)
    return run, batcher


def test_what_waits_for_the_same_is_one_batch() -> None:
    run, batcher = held_batcher(preferred_batch_size=4, max_batch_size=4)
    futures = [batcher.submit("ab"[i % 2], i) for i in range(10)]
    assert batcher.waiting == 10 and batcher.busy == 1
    run.go.set()
    assert [f.result(10) for f in futures] == [2 * i for i in range(10)]
    assert run.batches[1:] == [("a", [0, 2, 4, 6]), ("b", [1, 3, 5, 7]), ("a", [8]), ("b", [9])]
    batcher.close()
    assert batcher.stats.sizes == {1: 3, 4: 2} and batcher.waiting == 0
    with pytest.raises(RuntimeError, match="is closed"):
        batcher.submit("a", 1)


def test_a_higher_priority_goes_first() -> None:
    run, batcher = held_batcher(preferred_batch_size=2, max_batch_size=2)
    futures = [batcher.submit("a", i, priority=i == 3) for i in range(1, 4)]
    futures.append(batcher.submit("b", 9, priority=2))
    run.go.set()
    assert [f.result(10) for f in futures] == [2, 4, 6, 18]
    assert run.batches[1:] == [("b", [9]), ("a", [1, 3]), ("a", [2])]


def test_a_batch_waits_for_company_but_not_for_long() -> None:
    run = Recorder()
    batcher = DynamicBatcher(run, BatchingConfig(preferred_batch_size=3, max_queue_delay=0.2))
    start = time.monotonic()
    first, second = batcher.submit("a", 1), batcher.submit("a", 2)
    assert (first.result(10), second.result(10)) == (2, 4)
    assert time.monotonic() - start >= 0.2 and run.batches == [("a", [1, 2])]
    start = time.monotonic()
    assert [f.result(10) for f in [batcher.submit("a", i) for i in range(3)]] == [0, 2, 4]
    assert time.monotonic() - start < 0.2, "enough of them wait for nothing"


def test_one_bad_item_fails_alone() -> None:
    run, batcher = held_batcher()
    futures = [batcher.submit("a", i) for i in (12, 13, 14)]
    run.go.set()
    assert (futures[0].result(10), futures[2].result(10)) == (24, 28)
    with pytest.raises(ValueError, match="unlucky"):
        futures[1].result(10)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    run, batcher = held_batcher(max_queue_size=2)
    kept = [batcher.submit("a", i) for i in (1, 2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting already") as caught:
        batcher.submit("b", 3)
    assert caught.value.retry_after >= 0.1 and batcher.stats.refused == 1
    run.go.set()
    assert [f.result(10) for f in kept] == [2, 4]


def test_what_nobody_waits_for_is_not_run() -> None:
    run, batcher = held_batcher()
    late, gone, kept = (batcher.submit("a", i, timeout=t) for i, t in ((1, 0.05), (2, None), (3, None)))
    assert gone.cancel()
    time.sleep(0.1)
    run.go.set()
    assert kept.result(10) == 6
    with pytest.raises(DeadlineExceededError, match=r"waited 0\.\d+ s"):
        late.result(10)
    with pytest.raises(CancelledError):
        gone.result()
    assert run.batches[1:] == [("a", [3])]
    batcher.close()
    assert (batcher.stats.expired, batcher.stats.cancelled) == (1, 1)


def test_a_deadline_passes_while_nothing_else_happens() -> None:
    run = Recorder()
    batcher = DynamicBatcher(run, BatchingConfig(preferred_batch_size=8, max_queue_delay=5.0))
    with pytest.raises(DeadlineExceededError):
        batcher.submit("a", 1, timeout=0.05).result(2)


def test_a_wrong_number_of_results_is_an_error() -> None:
    batcher = DynamicBatcher(lambda key, items: [], BatchingConfig())
    with pytest.raises(RuntimeError, match="0 results for a batch of 1"):
        batcher.submit("a", 1).result(10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preferred_batch_size": 0}, "preferred_batch_size must be from 1 to max_batch_size: got 0 and 32"),
        ({"preferred_batch_size": 9, "max_batch_size": 8}, "got 9 and 8"),
        ({"max_queue_delay": -1.0}, "max_queue_delay must be at least 0"),
        ({"default_timeout": 0.0}, "default_timeout must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchingConfig(**options)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    items=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.integers(0, 2)), max_size=40),
    preferred=st.integers(1, 5),
    workers=st.integers(1, 3),
)
def test_everything_is_answered_once_whatever_comes(
    items: list[tuple[str, int, int]], preferred: int, workers: int
) -> None:
    run = Recorder()
    config = BatchingConfig(preferred_batch_size=preferred, max_batch_size=preferred)
    batcher = DynamicBatcher(run, config, workers=workers)
    futures = [batcher.submit(key, item, priority=priority) for key, item, priority in items]
    batcher.close()
    assert [f.result(0) for f in futures] == [2 * item for _, item, _ in items]
    ran = [(key, item) for key, batch in run.batches for item in batch]
    assert sorted(ran) == sorted((key, item) for key, item, _ in items)
    assert all(len(batch) <= preferred for _, batch in run.batches)
