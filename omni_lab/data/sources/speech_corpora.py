"""Recorded speech with transcripts: corpora that you have, in their official layouts, and a few vendored recordings.

torchaudio's classes list a corpus (Speech Commands: Warden 2018, LibriSpeech: Panayotov et al. 2015), and `read_audio`
reads the files. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torchaudio.datasets import LIBRISPEECH, SPEECHCOMMANDS

from omni_lab.data.media_io import read_audio
from omni_lab.data.sources.base import SPLITS, SourceError, read_json
from omni_lab.utils.env import project_root
from omni_lab.utils.lookup import lookup

COMMAND_SPLITS = dict(zip(SPLITS, ("training", "validation", "testing"), strict=True))
COMMAND_LAYOUT = "SpeechCommands/speech_commands_v0.02/ with validation_list.txt, testing_list.txt, <word>/*_nohash_*"
PARTS = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other")
LIBRI_LAYOUT = "LibriSpeech/<part>/<speaker>/<chapter>/ with <speaker>-<chapter>.trans.txt and the FLAC files"


@dataclass(frozen=True)
class Recording:
    """A recording of speech on disk."""

    id: str
    path: Path
    transcript: str  # as the corpus writes it
    speaker: str

    def waveform(self, *, max_seconds: float = 30.0) -> np.ndarray:
        """[S] float32 at 16 kHz. Raises AudioError (some utterances of LibriSpeech last longer than 30 s)."""
        return read_audio(self.path, max_seconds=max_seconds)


def speech_commands(folder: Path, split: str) -> list[Recording]:
    """Speech Commands v0.02, split by the official lists; the transcript is the one word.

    folder: holds SpeechCommands/speech_commands_v0.02/. Raises SourceError if it does not.
    """
    subset = lookup(split, COMMAND_SPLITS, "split")
    recordings = _recordings(lambda: SPEECHCOMMANDS(folder, subset=subset), folder, "SpeechCommands", COMMAND_LAYOUT)
    return [replace(r, id=f"{r.transcript}/{r.id}") for r in recordings]


def librispeech(folder: Path, part: str) -> list[Recording]:
    """One official part of LibriSpeech, such as "test-clean"; transcripts are in capitals.

    folder: holds LibriSpeech/<part>/. Raises SourceError if it does not.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}: got {part!r}")
    layout = LIBRI_LAYOUT.replace("<part>", part)
    return _recordings(lambda: LIBRISPEECH(folder, url=part), folder, "LibriSpeech", layout)


def human_recordings(folder: Path | None = None) -> list[Recording]:
    """The vendored recordings of people; the speaker is "man" or "woman".

    For testing only: nothing may be trained on them. folder: holds recordings.json (default: data/recordings).
    """
    folder = folder or project_root() / "data" / "recordings"
    path = folder / "recordings.json"
    content = read_json(path)
    try:
        entries = content["recordings"]
        return [Recording(Path(e["file"]).stem, folder / e["file"], e["transcript"], e["speaker"]) for e in entries]
    except (KeyError, TypeError) as error:
        raise SourceError(f"{path}: expected a list 'recordings' with file, transcript and speaker of each") from error


def _recordings(load: Callable[[], Any], folder: Path, corpus: str, layout: str) -> list[Recording]:
    """All recordings of a torchaudio dataset; whatever it raises about the folder becomes a SourceError."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder: expected {layout} in it")
    try:
        dataset = load()
        entries = [dataset.get_metadata(i) for i in range(len(dataset))]
    except (RuntimeError, OSError, ValueError) as error:
        raise SourceError(f"{folder}: expected {layout} in it ({error})") from error
    if not entries:
        raise SourceError(f"{folder}: no recordings there: expected {layout} in it")
    return [
        Recording(Path(path).stem, folder / corpus / path, transcript, str(speaker))
        for path, _, transcript, speaker, *_ in entries
    ]
