"""Sentences that are spoken once and kept: for models that write down what they hear, and for those that speak."""

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
    """What is said, in what language (a key of `speech.LANGUAGES`), and by whom. kind: for tables."""

    text: str
    language: str
    voice: Voice
    kind: str


class Utterances:
    """The sounds of some lines, in one memory-mapped file. path: see `ensure_utterances`."""

    def __init__(self, path: Path, lines: Sequence[SpeechLine]) -> None:
        self.lines = lines
        facts = json.loads((path / "words.json").read_text(encoding="utf-8"))
        self._ends = np.cumsum([0, *facts["lengths"]])
        self._words = facts["words"]
        self._samples = np.load(path / "sounds.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.lines)

    def sound(self, i: int) -> np.ndarray:
        """[S] float32 in [-1, 1] at 16 kHz."""
        return self._samples[self._ends[i] : self._ends[i + 1]].astype(np.float32) / 32768.0

    def words(self, i: int) -> list[TimedLabel]:
        return [TimedLabel(*word) for word in self._words[i]]


def ensure_utterances(lines: Sequence[SpeechLine], root: Path) -> Utterances:
    """The lines as they are spoken, from a folder under `root` that depends on every line; made there by all cores if
    it is not there yet. Safe to call from several processes at once: one makes it, the others wait."""
    asked = {"lines": [asdict(line) for line in lines], "espeakng-loader": version("espeakng-loader"), "rules": 1}
    name = f"utterances-{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]}"
    path = root / name
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not path.exists():
            part = root / f".{name}.{os.getpid()}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            spoken = [*track_progress(parallel_map(_spoken, lines), "speaking", total=len(lines), unit="sentence")]
            np.save(part / "sounds.npy", np.concatenate([samples for samples, _ in spoken]))
            facts = {"lengths": [len(samples) for samples, _ in spoken], "words": [words for _, words in spoken]}
            (part / "words.json").write_text(json.dumps(facts), encoding="utf-8")
            part.rename(path)
    return Utterances(path, lines)


def _spoken(line: SpeechLine) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Samples [S] int16, and who says what from when to when."""
    said = synthesize(line.text, line.language, line.voice)
    return (said.waveform * 32767).clip(-32768, 32767).astype(np.int16), [(w.label, w.start, w.end) for w in said.words]


def letter_durations(text: str, words: Sequence[TimedLabel], frames: int) -> list[int]:
    """How many of the `frames` of 10 ms each character of a text lasts: those of a word are dealt out evenly to its
    letters and to what stands before it; what stands behind the last word belongs to its last letter. Every character
    lasts a frame at least, and together they last all of them. Raises ValueError for words that are not in the text, in
    order, or more characters than frames."""
    if len(text) > frames:
        raise ValueError(f"a text of {len(text)} characters wants as many frames: got {frames}: {text[:40]!r}")
    edges, at, since = [0.0] * len(text), 0, 0.0
    for word in words:
        first = text.find(word.label, at)
        if first < 0:
            raise ValueError(f"{word.label!r} is not in {text[at:]!r}")
        until = first + len(word.label)
        edges[at:until] = (np.linspace(since, word.end, until - at + 1)[1:] * SAMPLE_RATE / HOP_LENGTH).tolist()
        at, since = until, word.end
    edges[max(at - 1, 0) :] = [float(frames)] * (len(text) - max(at - 1, 0))
    ends, last = [], 0
    for k, edge in enumerate(edges):
        last = min(max(round(edge), last + 1), frames - (len(text) - 1 - k))
        ends.append(last)
    return np.diff([0, *ends[:-1], frames]).tolist()
