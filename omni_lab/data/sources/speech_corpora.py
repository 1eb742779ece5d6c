"""Recorded speech with its words: sets that you have, in their official layouts, and a few vendored recordings.

torchaudio's classes say what is in a set (Speech Commands: Warden 2018, LibriSpeech: Panayotov et al. 2015); the sounds
themselves are read by `read_sound`. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torchaudio.datasets import LIBRISPEECH, SPEECHCOMMANDS

from omni_lab.data.media_io import read_audio
from omni_lab.data.sources.base import SPLITS, SourceError, read_json
from omni_lab.utils.env import project_root

COMMAND_SPLITS = dict(zip(SPLITS, ("training", "validation", "testing"), strict=True))
COMMAND_LAYOUT = "SpeechCommands/speech_commands_v0.02/ with validation_list.txt, testing_list.txt, <word>/*_nohash_*"
PARTS = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other")
LIBRI_LAYOUT = "LibriSpeech/<part>/<speaker>/<chapter>/ with <speaker>-<chapter>.trans.txt and the FLAC files"


@dataclass(frozen=True)
class Recording:
    """A recording, the words said in it as the set writes them, and who says them."""

    id: str
    path: Path
    transcript: str
    speaker: str

    def sound(self, *, max_seconds: float = 30.0) -> np.ndarray:
        """[S] float32 at 16 kHz. Raises SoundError (some utterances of LibriSpeech last longer than 30 s)."""
        return read_audio(self.path, max_seconds=max_seconds)


def speech_commands(folder: Path, split: str) -> list[Recording]:
    """Speech Commands v0.02, split by the official lists; the transcript is the one word.

    folder: holds SpeechCommands/speech_commands_v0.02/. Raises SourceError if it does not.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}: got {split!r}")

    def clip(entry: tuple[Any, ...]) -> Recording:
        path, _, word, speaker, _ = entry
        return Recording(f"{word}/{Path(path).stem}", folder / "SpeechCommands" / path, word, speaker)

    return _clips(lambda: SPEECHCOMMANDS(folder, subset=COMMAND_SPLITS[split]), clip, folder, COMMAND_LAYOUT)


def librispeech(folder: Path, part: str) -> list[Recording]:
    """One official part of LibriSpeech, such as "test-clean"; transcripts are in capitals.

    folder: holds LibriSpeech/<part>/. Raises SourceError if it does not.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}: got {part!r}")

    def clip(entry: tuple[Any, ...]) -> Recording:
        path, _, transcript, speaker, _, _ = entry
        return Recording(Path(path).stem, folder / "LibriSpeech" / path, transcript, str(speaker))

    return _clips(lambda: LIBRISPEECH(folder, url=part), clip, folder, LIBRI_LAYOUT.replace("<part>", part))


def human_recordings(folder: Path | None = None) -> list[Recording]:
    """The vendored recordings of people that come with a transcript; the speaker is "man" or "woman".

    For testing only: nothing may be trained on them. folder: holds recordings.json (default: data/recordings).
    """
    folder = folder or project_root() / "data" / "recordings"
    path = folder / "recordings.json"
    content = read_json(path)
    try:
        spoken = [e for e in content["recordings"] if e["transcript"] is not None]
        return [Recording(Path(e["file"]).stem, folder / e["file"], e["transcript"], e["speaker"]) for e in spoken]
    except (KeyError, TypeError) as error:
        raise SourceError(f"{path}: expected a list 'recordings' with file, transcript and speaker of each") from error


def _clips(
    opened: Callable[[], Any], clip: Callable[[tuple[Any, ...]], Recording], folder: Path, layout: str
) -> list[Recording]:
    """The clips of a torchaudio set; whatever trips it over the folder becomes a SourceError."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder: expected {layout} in it")
    try:
        entries = opened()
        clips = [clip(entries.get_metadata(i)) for i in range(len(entries))]
    except (RuntimeError, OSError, ValueError) as error:
        raise SourceError(f"{folder}: expected {layout} in it ({error})") from error
    if not clips:
        raise SourceError(f"{folder}: no clips there: expected {layout} in it")
    return clips
