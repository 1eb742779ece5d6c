"""Speech synthesis with the times of words and phonemes: eSpeak NG, called through ctypes.

The library and its voices ship in the package `espeakng-loader`. Synthesis is deterministic.
"""

from __future__ import annotations

import _ctypes
import ctypes
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise, product
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torchaudio.transforms import Resample

from omni_lab.batch import SAMPLE_RATE
from omni_lab.utils.parallel import parallel_map

ESPEAK_LANGUAGES = {"en": "en-us", "en-gb": "en-gb-x-rp", "de": "de", "zh": "cmn"}  # language -> eSpeak's name of it
WOMEN = ("f1", "f2", "f3", "f4", "f5", "Annie", "Andrea", "linda", "steph", "belinda")
MEN = ("m1", "m2", "m3", "m4", "m6", "m7", "m8", "Lee", "Gene", "max", "ed", "john")
HELD_OUT_VOICES = ("f2", "m3", "linda", "max")  # variants of the test split
RATES, PITCHES = (195, 225), (40, 55)  # of the voices of both
LATIN = r"[A-Za-z\u00c0-\u024f]"
# Constants of speak_lib.h
_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT, _UTF8 = 2, 1, 0x8000, 1
_WORD, _PHONEME = 1, 7
_RATE, _PITCH = 1, 3


class SpeechError(RuntimeError):
    """Speech cannot be synthesized: the message names what is missing, or the voice or text."""


@dataclass(frozen=True)
class Voice:
    variant: str = "m1"  # one of WOMEN or MEN
    rate: int = 175  # words per minute, 80 to 450
    pitch: int = 50  # 0 to 99; 50 is the variant's own

    @property
    def group(self) -> str:
        return "woman" if self.variant in WOMEN else "man"


@dataclass(frozen=True)
class TimedLabel:
    """A word, or a phoneme in eSpeak's notation, spoken from `start` to `end` in seconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Synthesized speech; words and phonemes in order of time."""

    waveform: np.ndarray  # [S] float32 in [-1, 1] at 16 kHz
    words: tuple[TimedLabel, ...]
    phonemes: tuple[TimedLabel, ...]

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


class _Event(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("type", "id", "text_position", "length", "audio_position", "sample")),
        ("user_data", ctypes.c_void_p),
        ("phoneme", ctypes.c_char * 8),  # a union of 8 bytes, of which phoneme events use this member
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Engine:
    """The one eSpeak of this process. Its state is global: hold `lock` while calling."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise SpeechError(
                "speech needs the package espeakng-loader: install it with worlds.txt, see data/README.md"
            ) from error
        self._paths = Path(espeakng_loader.get_library_path()), espeakng_loader.get_data_path().encode()
        self.library: Any = None
        self._callback = _Callback(self._receive)  # ctypes keeps no reference to it
        self.rate = self._restart()
        self.resample = Resample(self.rate, SAMPLE_RATE)  # caches its kernel, which costs more than its use
        self.lock = Lock()
        self._chunks: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, str]] = []

    def _restart(self) -> int:
        """Reloads the library, in about a millisecond, and returns its sample rate.

        Nothing less resets the phase of its flutter, its gain and its noise, which carry over to the next utterance.
        """
        library, data = self._paths
        if self.library is not None:
            self.library.espeak_Terminate()
            _ctypes.dlclose(self.library._handle)
        try:
            self.library = ctypes.CDLL(str(library))
        except OSError as error:
            raise SpeechError(f"{library}: the eSpeak NG library cannot be loaded ({error})") from error
        rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS | _DONT_EXIT)
        if rate <= 0:
            raise SpeechError(f"{data.decode()}: eSpeak NG does not start with this data")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self.library.espeak_SetSynthCallback(self._callback)
        return rate

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if count > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        i = 0
        while events[i].type != 0:
            e = events[i]
            if e.type in (_WORD, _PHONEME):
                self._events.append((e.type, e.sample, e.text_position, e.phoneme.decode("utf-8", "replace")))
            i += 1
        return 0

    def speak(self, text: str, language: str, voice: Voice) -> tuple[np.ndarray, list[tuple[int, int, int, str]]]:
        """The waveform [S] int16 at `self.rate`, and events as (type, sample, position in the text, phoneme)."""
        self._restart()
        if self.library.espeak_SetVoiceByName(f"{language}+{voice.variant}".encode()) != 0:
            raise SpeechError(f"eSpeak NG has no voice '{language}+{voice.variant}'")
        self.library.espeak_SetParameter(_RATE, voice.rate, 0)
        self.library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        self._chunks, self._events = [], []
        encoded = text.encode()
        status = self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        if status != 0 or not self._chunks:
            raise SpeechError(f"eSpeak NG made no audio of {text!r} (status {status})")
        return np.concatenate(self._chunks), self._events


_engine = cache(_Engine)
_prepared: dict[tuple[str, Voice], Utterance] = {}  # that nobody has asked for yet


def runs_of_language(text: str, language: str) -> list[tuple[str, str]]:
    """Splits mixed Chinese-English text into (language, part) runs; text of other languages stays whole."""
    if language != "zh":
        return [(language, text)]
    parts = re.findall(rf"{LATIN}(?:{LATIN}|[' -])*|(?:(?!{LATIN}).)+", text, flags=re.DOTALL)
    return [("en" if re.match(LATIN, p) else "zh", p) for p in parts if re.search(r"\w", p)]


def synthesize(text: str, language: str = "en", voice: Voice | None = None) -> Utterance:
    """Text to speech.

    language: a key of `ESPEAK_LANGUAGES`; English words in Chinese text are spoken as English.
    Raises SpeechError if the package is missing, the language or variant is unknown, or there is nothing to say.
    """
    voice = voice or Voice()
    if language not in ESPEAK_LANGUAGES:
        raise SpeechError(f"language must be one of {list(ESPEAK_LANGUAGES)}: got {language!r}")
    if voice.variant not in WOMEN + MEN:
        raise SpeechError(f"voice variant must be one of {WOMEN + MEN}: got {voice.variant!r}")
    if not re.search(r"\w", text):
        raise SpeechError(f"there is nothing to say in {text!r}")
    engine = _engine()
    waves: list[np.ndarray] = []
    labels: dict[int, list[TimedLabel]] = {_WORD: [], _PHONEME: []}
    offset = 0.0
    with engine.lock:
        for run_language, part in runs_of_language(text, language):
            wave, events = engine.speak(part, ESPEAK_LANGUAGES[run_language], voice)
            seconds = len(wave) / engine.rate
            for kind, found in labels.items():
                marks = [e for e in events if e[0] == kind]
                times = [*(min(e[1] / engine.rate, seconds) for e in marks), seconds]
                stops = [*(e[2] - 1 for e in marks[1:]), len(part)]
                for (_, _, position, phoneme), stop, (start, end) in zip(marks, stops, pairwise(times), strict=True):
                    label = re.sub(r"^\W+|\W+$", "", part[position - 1 : stop]) if kind == _WORD else phoneme
                    if label.strip():
                        found.append(TimedLabel(label, offset + start, offset + end))
            waves.append(wave)
            offset += seconds
    waveform = engine.resample(torch.from_numpy(np.concatenate(waves).astype(np.float32) / 32768.0))
    return Utterance(waveform.numpy().copy(), tuple(labels[_WORD]), tuple(labels[_PHONEME]))


@lru_cache(maxsize=4096)  # holds about all names by all voices, which recur
def synthesize_cached(words: str, voice: Voice) -> Utterance:
    """English speech."""
    return _prepared.pop((words, voice), None) or synthesize(words, "en", voice)


def prepare_speech(words: Sequence[str], split: str) -> None:
    """Synthesizes these words by all voices of a split, on all cores, for `synthesize_cached`."""
    _prepared.update(synthesize_by_all(words, split, known=_prepared))


def synthesize_by_all(
    words: Sequence[str], split: str, *, known: Collection[tuple[str, Voice]] = ()
) -> dict[tuple[str, Voice], Utterance]:
    """These words by all voices of a split, on all cores, except those that are known."""
    variants = [v for v in WOMEN + MEN if (v in HELD_OUT_VOICES) == (split == "test")]
    spoken = [(w, Voice(*voice)) for w in words for voice in product(variants, RATES, PITCHES)]
    missing = [pair for pair in spoken if pair not in known]
    return dict(zip(missing, parallel_map(_synthesize_english, missing), strict=True))


def _synthesize_english(spoken: tuple[str, Voice]) -> Utterance:
    return synthesize(spoken[0], "en", spoken[1])


def sample_voice(split: str, rng: np.random.Generator) -> Voice:
    """A woman's or a man's voice, equally often; the test split has the held-out variants, the others have the rest."""
    group = WOMEN if rng.random() < 0.5 else MEN
    variants = [v for v in group if (v in HELD_OUT_VOICES) == (split == "test")]
    variant = variants[int(rng.integers(len(variants)))]
    return Voice(variant, int(rng.choice(RATES)), int(rng.choice(PITCHES)))
