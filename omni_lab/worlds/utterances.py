"""Sentences that are synthesized once and cached, for transcription and for speech synthesis."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock

from omni_lab.batch import SAMPLE_RATE
from omni_lab.layers.mel import HOP_LENGTH
from omni_lab.utils.parallel import parallel_map
from omni_lab.utils.progress import track_progress
from omni_lab.worlds.espeak import TimedLabel, Voice, synthesize


@dataclass(frozen=True)
class SpeechLine:
    """A text and who speaks it."""

    text: str
    language: str  # a key of `ESPEAK_LANGUAGES`
    voice: Voice
    kind: str  # label in tables of results


class Utterances:
    """The speech of some lines, in one memory-mapped file that `ensure_utterances` writes."""

    def __init__(self, path: Path, lines: Sequence[SpeechLine]) -> None:
        self.lines = lines
        index = json.loads((path / "words.json").read_text(encoding="utf-8"))
        self._ends = np.cumsum([0, *index["lengths"]])
        self._words = index["words"]
        self._samples = np.load(path / "sounds.npy", mmap_mode="r")

    def waveform(self, i: int) -> np.ndarray:
        """[S] float32 in [-1, 1] at 16 kHz."""
        return self._samples[self._ends[i] : self._ends[i + 1]].astype(np.float32) / 32768.0

    def words(self, i: int) -> list[TimedLabel]:
        return [TimedLabel(*word) for word in self._words[i]]


def ensure_utterances(lines: Sequence[SpeechLine], root: Path) -> Utterances:
    """The speech of the lines, from a folder under `root` that is named after all of them and made if it is missing.

    Several processes may call this at once: one synthesizes, on all cores, and the others wait.
    """
    identity = {"lines": [asdict(line) for line in lines], "espeakng-loader": version("espeakng-loader"), "rules": 1}
    name = f"utterances-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"
    path = root / name
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not path.exists():
            part = root / f".{name}.{os.getpid()}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            spoken = [*track_progress(parallel_map(_synthesize, lines), "speaking", total=len(lines), unit="sentence")]
            np.save(part / "sounds.npy", np.concatenate([samples for samples, _ in spoken]))
            index = {"lengths": [len(samples) for samples, _ in spoken], "words": [words for _, words in spoken]}
            (part / "words.json").write_text(json.dumps(index), encoding="utf-8")
            part.rename(path)
    return Utterances(path, lines)


def _synthesize(line: SpeechLine) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """The waveform [S] int16, and the words with their start and end in seconds."""
    speech = synthesize(line.text, line.language, line.voice)
    words = [(word.label, word.start, word.end) for word in speech.words]
    return (speech.waveform * 32767).clip(-32768, 32767).astype(np.int16), words


def letter_durations(text: str, words: Sequence[TimedLabel], frames: int) -> list[int]:
    """The number of 10 ms frames of each character; they sum to `frames`, and each is at least one.

    The time of a word is divided evenly among its letters and the characters before it; the time after the last word
    belongs to the last letter. Raises ValueError if the words are not in the text, in order, or there are fewer frames
    than characters.
    """
    if len(text) > frames:
        raise ValueError(f"a text of {len(text)} characters needs as many frames: got {frames}: {text[:40]!r}")
    edges, position, start = [0.0] * len(text), 0, 0.0  # edges: end of each character, in frames
    for word in words:
        first = text.find(word.label, position)
        if first < 0:
            raise ValueError(f"{word.label!r} is not in {text[position:]!r}")
        end = first + len(word.label)
        edges[position:end] = (np.linspace(start, word.end, end - position + 1)[1:] * SAMPLE_RATE / HOP_LENGTH).tolist()
        position, start = end, word.end
    rest = max(position - 1, 0)
    edges[rest:] = [float(frames)] * (len(text) - rest)
    ends, last = [], 0
    for k, edge in enumerate(edges):
        last = min(max(round(edge), last + 1), frames - (len(text) - 1 - k))
        ends.append(last)
    return np.diff([0, *ends[:-1], frames]).tolist()
