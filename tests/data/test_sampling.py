from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_lab.data.sampling import SharedImageBatchSampler

ROWS = st.lists(st.integers(0, 9), min_size=1, max_size=60)


@given(ROWS, st.integers(1, 4), st.integers(1, 3), st.booleans())
@settings(deadline=None)
def test_every_picture_comes_once_an_epoch(rows: list[int], images: int, questions: int, shuffle: bool) -> None:
    sampler = SharedImageBatchSampler(
        rows, images_per_batch=images, questions_per_image=questions, shuffle=shuffle, seed=1
    )
    batches = list(sampler)
    assert len(batches) == len(sampler)
    seen: list[int] = []
    for batch in batches:
        pictures = [rows[i] for i in batch]
        assert len(set(pictures)) <= images
        assert len(batch) == len(set(batch)), "no question twice"
        assert all(pictures.count(p) == min(questions, rows.count(p)) for p in pictures)
        seen += sorted(set(pictures))
    assert sorted(seen) == sorted(set(rows))


@given(ROWS, st.integers(0, 5))
@settings(deadline=None)
def test_an_epoch_can_be_continued_at_any_batch(rows: list[int], start: int) -> None:
    sampler = SharedImageBatchSampler(rows, images_per_batch=2, questions_per_image=2, shuffle=True, seed=5)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.start_batch = start
    assert list(sampler) == whole[start:]
    assert list(sampler) == whole, "the next pass starts at the beginning again"


def test_epochs_and_seeds_differ_and_repeat() -> None:
    rows = np.repeat(np.arange(20), 5)

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = SharedImageBatchSampler(rows, images_per_batch=4, questions_per_image=2, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_weights_decide_which_questions_are_drawn() -> None:
    rows = np.repeat(np.arange(200), 4)
    weights = np.tile([10.0, 1.0, 1.0, 1.0], 200)
    sampler = SharedImageBatchSampler(
        rows, images_per_batch=10, questions_per_image=1, weights=weights, shuffle=True, seed=0
    )
    first = np.mean([i % 4 == 0 for batch in sampler for i in batch])
    assert 0.65 < first < 0.88, "expected about 10 of 13"


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="at least 1: got 0 and 2"):
        SharedImageBatchSampler([0, 1], images_per_batch=0, questions_per_image=2)
