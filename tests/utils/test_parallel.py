from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from omni_lab.batch import Modality
from omni_lab.utils import parallel as parallel_module
from omni_lab.utils.parallel import parallel_map
from omni_lab.worlds import emoji_world
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.talking_face import TalkingFace

FEW = {"train": 10, "validation": 2, "test": 2}


def with_process(number: int) -> tuple[int, int]:
    return number, os.getpid()


def picky(number: int) -> int:
    if number == 70:
        raise ValueError(f"expected anything but 70: got {number}")
    return number


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_module, "MIN_PARALLEL_ITEMS", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def test_few_items_stay_in_this_process() -> None:
    assert list(parallel_map(with_process, range(40))) == [(i, os.getpid()) for i in range(40)]


def test_many_items_go_to_others_and_come_back_in_order(many: None) -> None:
    numbers, processes = zip(*parallel_map(with_process, range(200)), strict=True)
    assert numbers == tuple(range(200))
    assert os.getpid() not in processes


def test_what_takes_long_is_many_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert {process for _, process in parallel_map(with_process, range(3), min_items=4)} == {os.getpid()}
    processes = [process for _, process in parallel_map(with_process, range(4), min_items=4, chunksize=2)]
    assert os.getpid() not in processes and processes[::2] == processes[1::2], "two at a time"


def test_an_error_there_is_raised_here(many: None) -> None:
    found = parallel_map(picky, range(200))
    assert list(islice(found, 64)) == list(range(64))
    with pytest.raises(ValueError, match="anything but 70: got 70"):
        list(found)


@pytest.mark.parametrize(
    ("world", "modality"),
    [
        *((EmojiWorld(things=8, scenes=FEW), m) for m in (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)),
        *((TalkingFace(clips=FEW), m) for m in (Modality.AUDIO, Modality.VIDEO)),
    ],
    ids=lambda value: value.name if isinstance(value, EmojiWorld | TalkingFace) else str(value),
)
def test_a_world_is_the_same_however_many_make_it(
    world: EmojiWorld | TalkingFace, modality: Modality, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    keys = list(dict.fromkeys(q.media_keys[modality] for questions in world.questions().values() for q in questions))
    alone = list(replace(world).media(modality, keys))
    assert [item.key for item in alone] == keys
    monkeypatch.setattr(parallel_module, "MIN_PARALLEL_ITEMS", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(emoji_world, "MANY_SCENES", 2)
    together = list(replace(world).media(modality, keys))
    assert [(m.key, m.annotations) for m in alone] == [(m.key, m.annotations) for m in together]
    assert all(np.array_equal(a.values, b.values) for a, b in zip(alone, together, strict=True))
