from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import time

import numpy as np
import pytest

from omni_lab.data import speech
from omni_lab.data.sounds import SAMPLE_RATE
from omni_lab.data.speech import HELD_OUT, LANGUAGES, MEN, WOMEN, SpeechError, Utterance, Voice, runs_of_language, speak

SIMPLE = "the quick brown frog"


def digest(utterance: Utterance) -> str:
    marks = repr((utterance.words, utterance.phonemes)).encode()
    return hashlib.sha256(utterance.samples.tobytes() + marks).hexdigest()


def labels(utterance: Utterance) -> str:
    return " ".join(word.label for word in utterance.words)


@pytest.mark.parametrize("variant", ["m1", "f2", "Andrea", "john"])
def test_the_same_words_give_the_same_sound(variant: str) -> None:
    first = speak(SIMPLE, "en", Voice(variant))
    assert digest(speak(SIMPLE, "en", Voice(variant))) == digest(first)


def test_what_was_said_before_does_not_matter() -> None:
    alone = digest(speak("banana", "en", Voice("f3")))
    speak("something else entirely", "de", Voice("Lee", 300, 90))
    assert digest(speak("banana", "en", Voice("f3"))) == alone


def test_another_process_says_the_same() -> None:
    code = (
        "import hashlib\n"
        "from omni_lab.data.speech import Voice, speak\n"
        "u = speak('a strawberry', 'en', Voice('linda', 225, 40))\n"
        "print(hashlib.sha256(u.samples.tobytes() + repr((u.words, u.phonemes)).encode()).hexdigest())"
    )
    speak("hello")
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert there.stdout.strip() == digest(speak("a strawberry", "en", Voice("linda", 225, 40)))


@pytest.mark.parametrize("variant", WOMEN + MEN)
def test_every_variant_speaks(variant: str) -> None:
    said = speak("watermelon", "en", Voice(variant))
    assert said.samples.ndim == 1 and said.samples.dtype == np.float32
    assert said.seconds == len(said.samples) / SAMPLE_RATE
    assert 0.3 < said.seconds < 1.2
    assert 0.1 < np.abs(said.samples).max() <= 1.1
    assert Voice(variant).group == ("woman" if variant in WOMEN else "man")


def hertz(voice: Voice) -> float:
    """The pitch of a long vowel, if it is read at 16 kHz."""
    wave = speak("aaaa", "en", voice).samples[2000:6000]
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
    said = speak(text, language)
    for marks in (said.words, said.phonemes):
        assert all(0 <= mark.start <= mark.end <= said.seconds + 1e-3 for mark in marks)
        assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(marks))
    assert len(said.phonemes) > len(said.words) > 1
    assert all(mark.start < mark.end for mark in said.words)


def test_words_are_labelled_as_they_are_written() -> None:
    assert labels(speak(SIMPLE)) == SIMPLE
    assert labels(speak("what is two plus three?")) == "what is two plus three"
    assert labels(speak("ein schöner Löwe", "de")) == "ein schöner Löwe"


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
    said = labels(speak(text, language))
    assert said.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_speaks(language: str) -> None:
    assert speak("Tomate" if language != "zh" else "苹果", language).seconds > 0.2


def test_british_is_not_american() -> None:
    american, british = (" ".join(p.label for p in speak("tomato", language).phonemes) for language in ("en", "en-gb"))
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
    said = speak("我有 banana 和 apple", "zh")
    assert [w.label for w in said.words][-3:] == ["banana", "和", "apple"]
    starts = [word.start for word in said.words]
    assert starts == sorted(starts)
    english = speak("banana", "en").phonemes
    assert {p.label for p in english} <= {p.label for p in said.phonemes}, "spoken as English"


def test_rate_and_pitch_change_it() -> None:
    slow, fast = speak(SIMPLE, "en", Voice(rate=120)), speak(SIMPLE, "en", Voice(rate=300))
    assert slow.seconds > 1.6 * fast.seconds
    assert hertz(Voice("f1", pitch=90)) > 1.3 * hertz(Voice("f1", pitch=30))


def test_four_variants_are_held_out() -> None:
    assert len(HELD_OUT) == len(set(HELD_OUT)) == 4
    assert set(HELD_OUT) <= set(WOMEN + MEN)
    assert len(set(HELD_OUT) & set(WOMEN)) == len(set(HELD_OUT) & set(MEN)) == 2
    assert len(set(WOMEN + MEN)) == len(WOMEN + MEN)


def test_what_cannot_be_said_is_named() -> None:
    with pytest.raises(SpeechError, match=r"language must be one of .*'zh'.*: got 'xx'"):
        speak("hello", "xx")
    with pytest.raises(SpeechError, match="voice variant must be one of .*: got 'nobody'"):
        speak("hello", "en", Voice("nobody"))
    for nothing in ("", "   ", "?!", "。"):
        for language in ("en", "zh"):
            with pytest.raises(SpeechError, match="there is nothing to say"):
                speak(nothing, language)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(speech, "_engine", speech._Engine)  # not the one that is running already
    with pytest.raises(SpeechError, match="needs the package espeakng-loader: install it"):
        speak("hello")


def test_names_are_spoken_fast_enough_to_build_a_world() -> None:
    speak("hello")
    names = ("frog", "banana", "watermelon", "house") * 10
    start = time.process_time()
    for i, name in enumerate(names):
        speak(name, "en", Voice("f1", 195 + i))
    assert len(names) / (time.process_time() - start) > 80
