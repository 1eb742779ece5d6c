from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import time

import numpy as np
import pytest

from omni_lab.batch import SAMPLE_RATE
from omni_lab.worlds import espeak as speech
from omni_lab.worlds.espeak import (
    ESPEAK_LANGUAGES,
    HELD_OUT_VOICES,
    MEN,
    WOMEN,
    SpeechError,
    Utterance,
    Voice,
    runs_of_language,
    synthesize,
)

SIMPLE = "the quick brown frog"


def digest(utterance: Utterance) -> str:
    marks = repr((utterance.words, utterance.phonemes)).encode()
    return hashlib.sha256(utterance.waveform.tobytes() + marks).hexdigest()


def labels(utterance: Utterance) -> str:
    return " ".join(word.label for word in utterance.words)


@pytest.mark.parametrize("variant", ["m1", "f2", "Andrea", "john"])
def test_the_same_words_give_the_same_sound(variant: str) -> None:
    first = synthesize(SIMPLE, "en", Voice(variant))
    assert digest(synthesize(SIMPLE, "en", Voice(variant))) == digest(first)


def test_what_was_said_before_does_not_matter() -> None:
    alone = digest(synthesize("banana", "en", Voice("f3")))
    synthesize("something else entirely", "de", Voice("Lee", 300, 90))
    assert digest(synthesize("banana", "en", Voice("f3"))) == alone


def test_another_process_says_the_same() -> None:
    code = (
        "import hashlib\n"
        "from omni_lab.worlds.espeak import Voice, synthesize\n"
        "u = synthesize('a strawberry', 'en', Voice('linda', 225, 40))\n"
        "print(hashlib.sha256(u.waveform.tobytes() + repr((u.words, u.phonemes)).encode()).hexdigest())"
    )
    synthesize("hello")
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert there.stdout.strip() == digest(synthesize("a strawberry", "en", Voice("linda", 225, 40)))


@pytest.mark.parametrize("variant", WOMEN + MEN)
def test_every_variant_speaks(variant: str) -> None:
    said = synthesize("watermelon", "en", Voice(variant))
    assert said.waveform.ndim == 1 and said.waveform.dtype == np.float32
    assert said.seconds == len(said.waveform) / SAMPLE_RATE
    assert 0.3 < said.seconds < 1.2
    assert 0.1 < np.abs(said.waveform).max() <= 1.1
    assert Voice(variant).group == ("woman" if variant in WOMEN else "man")


def hertz(voice: Voice) -> float:
    """The pitch of a long vowel, if it is read at 16 kHz."""
    wave = synthesize("aaaa", "en", voice).waveform[2000:6000]
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 16 * len(wave)))
    likeness = np.fft.irfft(spectrum**2)
    lags = np.arange(SAMPLE_RATE // 400, SAMPLE_RATE // 50)
    return float(SAMPLE_RATE / lags[likeness[lags].argmax()])


def test_it_is_16_khz_speech() -> None:
    assert 130 < hertz(Voice("f1")) < 185, "a woman's voice, which at eSpeak's own rate it would not be"


@pytest.mark.parametrize(
    ("text", "language"), [(SIMPLE, "en"), ("Guten Morgen, liebe Leute", "de"), ("我有红色苹果", "zh")]
)
def test_marks_ascend_inside_the_sound(text: str, language: str) -> None:
    said = synthesize(text, language)
    for marks in (said.words, said.phonemes):
        assert all(0 <= mark.start <= mark.end <= said.seconds + 1e-3 for mark in marks)
        assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(marks))
    assert len(said.phonemes) > len(said.words) > 1
    assert all(mark.start < mark.end for mark in said.words)


def test_words_are_labelled_as_they_are_written() -> None:
    assert labels(synthesize(SIMPLE)) == SIMPLE
    assert labels(synthesize("what is two plus three?")) == "what is two plus three"
    assert labels(synthesize("ein schöner Löwe", "de")) == "ein schöner Löwe"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("what is in the clip but not in the picture", "en"),
        ("I can't stop", "en"),
        ("我喜欢苹果", "zh"),
        ("公交车", "zh"),
    ],
)
def test_no_part_of_a_text_is_left_without_a_word(text: str, language: str) -> None:
    """eSpeak says some words in one go ("in the", "苹果"): their label is then all of it."""
    said = labels(synthesize(text, language))
    assert said.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("language", ESPEAK_LANGUAGES)
def test_every_language_speaks(language: str) -> None:
    assert synthesize("Tomate" if language != "zh" else "苹果", language).seconds > 0.2


def test_british_is_not_american() -> None:
    american, british = (
        " ".join(p.label for p in synthesize("tomato", language).phonemes) for language in ("en", "en-gb")
    )
    assert american != british


def test_mixed_text_is_cut_into_runs() -> None:
    assert runs_of_language("我喜欢 ice cream 和 banana。", "zh") == [
        ("zh", "我喜欢 "),
        ("en", "ice cream "),
        ("zh", "和 "),
        ("en", "banana"),
    ]
    assert runs_of_language("3 个 apple's", "zh") == [("zh", "3 个 "), ("en", "apple's")]
    assert runs_of_language("banana 香蕉", "de") == [("de", "banana 香蕉")]
    assert runs_of_language("。!", "zh") == []


def test_mixed_text_is_one_sound_in_order() -> None:
    said = synthesize("我有 banana 和 apple", "zh")
    assert [w.label for w in said.words][-3:] == ["banana", "和", "apple"]
    starts = [word.start for word in said.words]
    assert starts == sorted(starts)
    english = synthesize("banana", "en").phonemes
    assert {p.label for p in english} <= {p.label for p in said.phonemes}, "spoken as English"


def test_rate_and_pitch_change_it() -> None:
    slow, fast = synthesize(SIMPLE, "en", Voice(rate=120)), synthesize(SIMPLE, "en", Voice(rate=300))
    assert slow.seconds > 1.6 * fast.seconds
    assert hertz(Voice("f1", pitch=90)) > 1.3 * hertz(Voice("f1", pitch=30))


def test_four_variants_are_held_out() -> None:
    assert len(HELD_OUT_VOICES) == len(set(HELD_OUT_VOICES)) == 4
    assert set(HELD_OUT_VOICES) <= set(WOMEN + MEN)
    assert len(set(HELD_OUT_VOICES) & set(WOMEN)) == len(set(HELD_OUT_VOICES) & set(MEN)) == 2
    assert len(set(WOMEN + MEN)) == len(WOMEN + MEN)


def test_what_cannot_be_said_is_named() -> None:
    with pytest.raises(SpeechError, match=r"language must be one of .*'zh'.*: got 'xx'"):
        synthesize("hello", "xx")
    with pytest.raises(SpeechError, match="voice variant must be one of .*: got 'nobody'"):
        synthesize("hello", "en", Voice("nobody"))
    for nothing in ("", "   ", "?!", "。"):
        for language in ("en", "zh"):
            with pytest.raises(SpeechError, match="there is nothing to say"):
                synthesize(nothing, language)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(speech, "_engine", speech._Engine)  # not the one that is running already
    with pytest.raises(SpeechError, match="needs the package espeakng-loader: install it"):
        synthesize("hello")


def test_names_are_spoken_fast_enough_to_build_a_world() -> None:
    synthesize("hello")
    names = ("frog", "banana", "watermelon", "house") * 10
    start = time.process_time()
    for i, name in enumerate(names):
        synthesize(name, "en", Voice("f1", 195 + i))
    assert len(names) / (time.process_time() - start) > 80
