"""Sentences spoken once and kept, and how long each letter lasts."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omni_lab.batch import SAMPLE_RATE
from omni_lab.layers.mel import HOP_LENGTH
from omni_lab.worlds import utterances
from omni_lab.worlds.espeak import TimedLabel, Voice, synthesize
from omni_lab.worlds.utterances import SpeechLine, ensure_utterances, letter_durations

LINES = [
    SpeechLine("a green frog", "en", Voice("f1"), "en"),
    SpeechLine("我有苹果", "zh", Voice("m1", 195, 55), "zh"),
    SpeechLine("a key", "en", Voice("m1", 225), "en"),
]


def marks(*words: tuple[str, float, float]) -> list[TimedLabel]:
    return [TimedLabel(*word) for word in words]


def test_a_word_is_dealt_out_to_its_letters_and_the_pause_before_it() -> None:
    """Two letters of 40 ms together, a pause and two more of 60 ms, then 20 ms of nothing."""
    words = marks(("ab", 0.0, 0.04), ("cd", 0.05, 0.10))
    assert letter_durations("ab cd", words, 12) == [2, 2, 2, 2, 4]
    assert letter_durations("ab", words[:1], 4) == [2, 2]
    late = marks(("ab", 0.03, 0.06))
    assert letter_durations("ab", late, 6) == [3, 3], "what stands before a word is its own"
    assert letter_durations("ab, ", late, 11) == [3, 6, 1, 1], "what stands behind the last, its last letter's"


def test_every_letter_lasts_a_frame_however_fast_it_is_said() -> None:
    assert letter_durations("abcdefgh", marks(("abcdefgh", 0.0, 0.01)), 8) == [1] * 8
    assert letter_durations("abc defg", marks(("abc", 0.0, 0.09), ("defg", 0.09, 0.1)), 10) == [3, 1, 1, 1, 1, 1, 1, 1]
    assert letter_durations("abcd", [], 7) == [4, 1, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_together_letters_last_as_long_as_the_sound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice([*"abc"], size=rng.integers(1, 7))) for _ in range(rng.integers(1, 6))]
    times = np.sort(rng.uniform(0, 1, size=2 * len(words))).tolist()
    text = " ".join(words)
    frames = int(rng.integers(len(text), 130))
    said = [TimedLabel(word, *times[2 * i : 2 * i + 2]) for i, word in enumerate(words)]
    lasts = letter_durations(text, said, frames)
    assert len(lasts) == len(text) and min(lasts) >= 1 and sum(lasts) == frames


def test_letters_follow_the_voice() -> None:
    said = synthesize("a green frog", "en", Voice("f1"))
    frames = -(-len(said.waveform) // HOP_LENGTH)
    ends = np.cumsum(letter_durations("a green frog", said.words, frames))
    for word, letter in zip(said.words, (0, 6, 11), strict=True):
        expected = frames if letter == 11 else word.end * SAMPLE_RATE / HOP_LENGTH
        assert abs(ends[letter] - expected) <= 1, word.label


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("abcdef", [], "a text of 6 characters needs as many frames: got 5: 'abcdef'"),
        ("ab", marks(("x", 0.0, 0.1)), "'x' is not in 'ab'"),
        ("b a", marks(("a", 0.0, 0.02), ("b", 0.02, 0.04)), "'b' is not in ''"),
    ],
)
def test_what_does_not_fit_is_named(text: str, words: list[TimedLabel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        letter_durations(text, words, 5)


def test_sounds_are_what_was_spoken(tmp_path: Path) -> None:
    kept = ensure_utterances(LINES, tmp_path)
    assert len(kept.lines) == 3 and kept.lines is LINES
    for i, line in enumerate(LINES):
        said = synthesize(line.text, line.language, line.voice)
        sound = kept.waveform(i)
        assert sound.dtype == np.float32 and sound.shape == said.waveform.shape
        assert np.abs(sound - said.waveform.clip(-1, 1)).max() < 2.1 / 32768
        assert kept.words(i) == list(said.words)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts of the lines that are spoken from here on."""
    spoken: list[str] = []
    speaks = utterances._synthesize

    def count(line: SpeechLine) -> Any:
        spoken.append(line.text)
        return speaks(line)

    monkeypatch.setattr(utterances, "_synthesize", count)
    return spoken


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if not path.name.startswith("."))


def test_they_are_spoken_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = counted(monkeypatch)
    root = tmp_path / "not" / "there yet"
    first = ensure_utterances(LINES, root)
    again = ensure_utterances(list(LINES), root)
    assert spoken == [line.text for line in LINES]
    assert all(
        np.array_equal(first.waveform(i), again.waveform(i)) and first.words(i) == again.words(i) for i in range(3)
    )
    (folder,) = folders(root)
    assert not list(root.glob(".*.part")) and {p.name for p in folder.iterdir()} == {"sounds.npy", "words.json"}


@pytest.mark.parametrize(
    "other",
    [
        LINES[:2],
        LINES[::-1],
        [*LINES[:2], SpeechLine("a key", "en", Voice("f5", 225), "en")],
        [*LINES[:2], SpeechLine("a bus", "en", Voice("m1", 225), "en")],
    ],
    ids=["fewer", "in another order", "by another voice", "of other words"],
)
def test_another_list_is_another_folder(tmp_path: Path, other: list[SpeechLine]) -> None:
    ensure_utterances(LINES, tmp_path)
    kept = ensure_utterances(other, tmp_path)
    assert len(folders(tmp_path)) == 2 and len(kept.lines) == len(other)
    last = other[-1]
    assert (
        np.abs(kept.waveform(len(other) - 1) - synthesize(last.text, last.language, last.voice).waveform).max() < 1e-3
    )


def stops_speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    speaks = utterances._synthesize

    def stop(line: SpeechLine) -> Any:
        if line is LINES[2]:
            raise KeyboardInterrupt
        return speaks(line)

    monkeypatch.setattr(utterances, "_synthesize", stop)


def stops_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stop)


@pytest.mark.parametrize("stops", [stops_speaking, stops_writing])
def test_an_interruption_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with monkeypatch.context() as broken:
        stops(broken)
        with pytest.raises(KeyboardInterrupt):
            ensure_utterances(LINES, tmp_path)
    assert not folders(tmp_path)
    kept = ensure_utterances(LINES, tmp_path)
    (folder,) = folders(tmp_path)
    assert len(json.loads((folder / "words.json").read_text())["lengths"]) == 3 and len(kept.waveform(2)) > 1000
    assert not list(tmp_path.glob(".*.part"))


def test_of_two_who_want_them_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = counted(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: ensure_utterances(LINES, tmp_path), range(2))
    assert len(spoken) == 3 and np.array_equal(one.waveform(1), two.waveform(1))
