"""Turns begin with voice and end with silence, wherever the pieces of sound are cut."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_lab.serving.turn_detection import FRAME, EnergyDetector, SileroDetector, Turn, TurnDetector, best_detector

LOUD = lambda frame: float(np.abs(frame).max() > 0.5)  # noqa: E731


def frames(pattern: str) -> np.ndarray:
    """A frame for each letter: loud where it is an x."""
    return np.concatenate([np.full(FRAME, float(letter == "x"), np.float32) for letter in pattern])


def turns(pattern: str, **options: float) -> list[tuple[str, int]]:
    detector = TurnDetector(LOUD, **{"silence": 0.096, "shortest": 0.064, **options})
    return [(kind, sample // FRAME) for kind, sample in detector.feed(frames(pattern))]


def test_turns_have_a_beginning_and_an_end() -> None:
    assert turns("...xxxx....") == [("started", 3), ("stopped", 10)]
    assert turns("..x..xx.x..xx....") == [("started", 5), ("stopped", 16)], "short pauses do not end a turn"
    assert turns("x.x.x.x.") == [], "clicks do not begin one"
    assert turns("xx...xx...") == [("started", 0), ("stopped", 5), ("started", 5), ("stopped", 10)]


def test_a_voice_may_weaken_before_it_ends() -> None:
    probabilities = iter([0.6, 0.6, 0.4, 0.36, 0.34, 0.34])
    detector = TurnDetector(lambda frame: next(probabilities), silence=0.064)
    assert detector.feed(frames("xxxxxx")) == [Turn("started", 0), Turn("stopped", 6 * FRAME)]


@settings(max_examples=50)
@given(st.text("x.", max_size=40), st.lists(st.integers(1, 3000), min_size=1, max_size=30))
def test_it_does_not_matter_how_sound_is_cut(pattern: str, sizes: list[int]) -> None:
    if not pattern:
        return
    whole, sound = TurnDetector(LOUD, silence=0.064), frames(pattern)
    cut, found, start = TurnDetector(LOUD, silence=0.064), [], 0
    for size in [*sizes, len(sound)]:
        found += cut.feed(sound[start : start + size])
        start += size
    assert found == whole.feed(sound)


def test_the_rule_hears_what_is_louder_than_before() -> None:
    rng, rule = np.random.default_rng(0), EnergyDetector()
    quiet = [rule(rng.normal(size=FRAME) * 0.01) for _ in range(50)]
    loud = [rule(rng.normal(size=FRAME) * 0.1) for _ in range(20)]
    assert sum(quiet) == 0 and sum(loud) == 20


@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="silero-vad is not installed")
def test_silero_hears_voices_and_no_noise() -> None:
    from omni_lab.worlds.espeak import Voice, synthesize

    speech = synthesize("where is the red apple", "en", Voice("f1")).waveform
    noise = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.02
    sound = np.concatenate([noise, speech + noise[0], noise])
    found = TurnDetector(SileroDetector(), silence=0.3).feed(sound.astype(np.float32))
    assert [turn.kind for turn in found] == ["started", "stopped"]
    assert abs(found[0].sample - 16_000) < 6000
    assert isinstance(best_detector(), SileroDetector)
