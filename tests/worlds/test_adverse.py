from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.sources.base import VQASource
from omni_lab.data.store import ensure_store
from omni_lab.worlds import adverse
from omni_lab.worlds.adverse import DAMAGES, MEDIA, ORDERS, WORDINGS, AdverseExample, AdverseWorld, Damage
from omni_lab.worlds.espeak import HELD_OUT_VOICES
from omni_lab.worlds.question_families import DIGITS

TEXT, IMAGE, AUDIO, VIDEO = Modality
SMALL = {"train": 600, "validation": 60, "test": 300}
CLEAN = Damage("none", 0.0)
NOISE = np.random.default_rng(0)


@pytest.fixture(scope="module")
def examples() -> list[AdverseExample]:
    world = AdverseWorld(examples=SMALL)
    return [world.example(key) for key in range(sum(SMALL.values()))]


def make_example(
    family: str, spoken: str = "", sources: tuple[Modality, ...] = MEDIA, **damages: Damage
) -> AdverseExample:
    world = AdverseWorld(examples=SMALL)
    one = world.example(0)
    spoilt = {m: damages.get(m.value, CLEAN) for m in MEDIA}
    return AdverseExample(0, "train", family, "", "", sources, one.placed, one.moving, spoken, one.voice, spoilt)


def test_what_suffices_follows_from_the_damage() -> None:
    gone = Damage("dark", 1.0)
    assert make_example("what").sufficient == ((IMAGE,), (AUDIO,), (VIDEO,))
    assert make_example("what", image=gone, video=gone).sufficient == ((AUDIO,),)
    assert make_example("what", image=gone, video=gone, audio=Damage("silence", 1.0)).sufficient == ()
    told = make_example("told", ORDERS[IMAGE], (IMAGE,))
    assert told.sufficient == ((IMAGE, AUDIO),)
    assert make_example("told", ORDERS[IMAGE], (IMAGE,), image=gone).sufficient == ()
    assert make_example("told", ORDERS[IMAGE], (IMAGE,), audio=Damage("silence", 1.0)).sufficient == ()
    assert make_example("told", ORDERS[IMAGE], (IMAGE,), audio=Damage("clipping", 1.0)).sufficient == ((IMAGE, AUDIO),)


def test_a_clip_that_stands_still_tells_all_but_the_way() -> None:
    frozen = Damage("frozen", 0.1)
    assert make_example("told", ORDERS[VIDEO], (VIDEO,), video=frozen).sufficient == ((AUDIO, VIDEO),)
    assert make_example("told", ORDERS["way"], (VIDEO,), video=frozen).sufficient == ()


def test_the_three_media_agree(examples: list[AdverseExample]) -> None:
    for e in examples:
        shown, moved = ({p.thing.names["en"] for p in found} for found in (e.placed, e.moving))
        if e.family == "told":
            assert not shown & moved, "so that the sound has to say which is meant"
            expected = {ORDERS[IMAGE]: shown, ORDERS[VIDEO]: moved}.get(e.spoken, {"left", "right", "up", "down"})
            assert e.answer in expected
            continue
        assert shown == moved and e.sources == MEDIA
        if e.family == "how_many":
            assert len(e.placed) == len(e.moving) == DIGITS.index(e.answer) and e.spoken.split()[0] == e.answer
        elif e.family == "where":
            for found, side in ((e.placed, 64), (e.moving, 32)):
                (p,) = found
                place = f"{'bottom' if p.y > side / 2 else 'top'} {'right' if p.x > side / 2 else 'left'}"
                assert place == e.answer == e.spoken
        else:
            assert {e.answer} == shown and e.spoken == e.answer


def test_examples_are_balanced_and_nothing_of_the_test_split_is_in_training(examples: list[AdverseExample]) -> None:
    families = Counter(e.family for e in examples)
    assert families["told"] == pytest.approx(2 * len(examples) / 5, rel=0.2)
    assert {e.answer for e in examples} <= {*AdverseWorld().answers()}
    assert all((e.voice.variant in HELD_OUT_VOICES) == (e.split == "test") for e in examples)
    train, test = ({e.text for e in examples if e.split == split} for split in ("train", "test"))
    unseen = {text for _, held_out in WORDINGS.values() for text in held_out}
    assert unseen <= test and not unseen & train
    kinds = {m: {e.damages[m].kind for e in examples} for m in MEDIA}
    assert kinds == {m: {*DAMAGES[m], "none"} for m in MEDIA}
    spoilt = np.mean([e.damages[m].kind != "none" for e in examples for m in MEDIA])
    assert spoilt == pytest.approx(0.6, abs=0.05)
    with pytest.raises(KeyError, match="key must be from 0 to 959: got 960"):
        AdverseWorld(examples=SMALL).example(960)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severity": (0.9, 1.0), "spoilt": 1.0}, "no set of modalities answers any question: every medium is spoilt"),
        ({"severity": (0.5, 0.2)}, r"severity must be a range within 0 to 1.*: got severity \(0.5, 0.2\)"),
        ({"spoilt": 1.5}, "spoilt a probability: got .* and spoilt 1.5"),
    ],
)
def test_impossible_worlds_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdverseWorld(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dark", "blur", "occlusion", "scrambled"])
def test_more_severity_hides_more_of_a_picture(kind: str) -> None:
    clean = np.zeros((1, 3, 32, 32), dtype=np.uint8)
    clean[:, :, 9:15, 9:15] = 200

    def distance(severity: float) -> float:
        spoilt = [adverse.spoil_frames(clean, Damage(kind, severity), NOISE) for _ in range(30)]
        return float(np.mean([np.abs(s.astype(float) - clean).mean() for s in spoilt]))

    values = [distance(s) for s in (0.0, 0.5, 1.0)]
    assert values == sorted(values) and values[0] < 2 < values[-1]


def test_a_frozen_clip_repeats_its_first_frame() -> None:
    clip = np.arange(4, dtype=np.uint8)[:, None, None, None] * 60 + np.zeros((1, 3, 32, 32), dtype=np.uint8)
    frozen = adverse.spoil_frames(clip, Damage("frozen", 0.0), NOISE)
    assert frozen.max() < 20 and adverse.spoil_frames(clip, CLEAN, NOISE)[-1].min() > 150


@pytest.mark.parametrize("kind", DAMAGES[AUDIO])
def test_more_severity_hides_more_of_a_sound(kind: str) -> None:
    wave = np.sin(np.arange(32_000) / 5).astype(np.float32) * np.hanning(32_000).astype(np.float32)

    def similarity(severity: float) -> float:
        spoilt = adverse.spoil_sound(wave, Damage(kind, severity), NOISE, "train")
        assert spoilt.dtype == np.int16 and spoilt.shape == wave.shape
        return abs(float(np.corrcoef(spoilt, wave)[0, 1]))

    values = [similarity(s) for s in (0.0, 0.5, 1.0)]
    assert (
        values == sorted(values, reverse=True)
        and values[0] > 0.95
        and values[-1] < (0.95 if kind == "clipping" else 0.4)
    )


def test_media_and_store(tmp_path: Path) -> None:
    source = AdverseWorld(examples={"train": 8, "validation": 4, "test": 4})
    assert isinstance(source, VQASource)
    store = ensure_store(source, tmp_path)
    keys = [q.media_keys[IMAGE] for q in source.questions()["test"]]
    for modality in MEDIA:
        items = [*source.media(modality, keys)]
        for key, item in zip(keys, items, strict=True):
            damage = source.example(key).damages[modality]
            assert item.annotations == {"damage": damage.kind, "severity": round(damage.severity, 3)}
            if modality is not AUDIO:
                assert item.values.shape == source.shapes[modality]
            else:
                assert len(item.values) >= 2 * SAMPLE_RATE and np.abs(item.values).max() > 5000
        again = next(iter(source.media(modality, keys[:1])))
        assert np.array_equal(again.values, items[0].values)
    assert len(store.questions("test")) == 4 and store.answers == source.answers()
