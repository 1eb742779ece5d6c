"""Speech for data: eSpeak NG, called through ctypes, with the time of every word and phoneme.

The library and its voices come in the package `espeakng-loader`. Synthesis is deterministic: the same words, voice,
rate and pitch give the same samples.
"""

from __future__ import annotations

import _ctypes
import ctypes
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torchaudio.transforms import Resample

from omni_lab.batch import SAMPLE_RATE

ESPEAK_LANGUAGES = {"en": "en-us", "en-gb": "en-gb-x-rp", "de": "de", "zh": "cmn"}  # ours: eSpeak's
WOMEN = ("f1", "f2", "f3", "f4", "f5", "Annie", "Andrea", "linda", "steph", "belinda")
MEN = ("m1", "m2", "m3", "m4", "m6", "m7", "m8", "Lee", "Gene", "max", "ed", "john")
HELD_OUT_VOICES = ("f2", "m3", "linda", "max")  # variants that no training ever hears
LATIN = r"[A-Za-z\u00c0-\u024f]"
_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT, _UTF8 = 2, 1, 0x8000, 1
_WORD, _PHONEME = 1, 7
_RATE, _PITCH = 1, 3


class SpeechError(RuntimeError):
    """Speech cannot be made: the message says what is missing, or which voice or text it was."""


@dataclass(frozen=True)
class Voice:
    """variant: one of WOMEN or MEN. rate: words a minute, 80 to 450. pitch: 0 to 99, 50 is the variant's own."""

    variant: str = "m1"
    rate: int = 175
    pitch: int = 50

    @property
    def group(self) -> str:
        return "woman" if self.variant in WOMEN else "man"


@dataclass(frozen=True)
class TimedLabel:
    """What is spoken from `start` to `end`, in seconds: a word, or a phoneme in eSpeak's notation."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """samples: [S] float32 in [-1, 1] at 16 kHz. words, phonemes: in order of time."""

    waveform: np.ndarray
    words: tuple[TimedLabel, ...]
    phonemes: tuple[TimedLabel, ...]

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Engine:
    """The one eSpeak of this process: its state is global, so calls take turns."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise SpeechError(
                "speech needs the package espeakng-loader: install it with worlds.txt, see data/README.md"
            ) from error
        self._paths = Path(espeakng_loader.get_library_path()), espeakng_loader.get_data_path().encode()
        self.library: Any = None
        self._callback = _Callback(self._receive)  # kept: ctypes does not
        self.rate = self._restart()
        self.resample = Resample(self.rate, SAMPLE_RATE)  # keeps its kernel, which takes longer to make than to use
        self.lock = Lock()
        self._chunks: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, int, str]] = []

    def _restart(self) -> int:
        """Loads the library afresh: the phase of its flutter, its gain and its noise go on from utterance to utterance
        otherwise, and nothing short of this resets them. About a millisecond."""
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
                label = e.id.string.decode("utf-8", "replace") if e.type == _PHONEME else ""
                self._events.append((e.type, e.sample, e.text_position, e.length, label))
            i += 1
        return 0

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> tuple[np.ndarray, list[Any]]:
        """Samples [S] int16 at `self.rate`, and the events as (type, sample, position, length, label)."""
        self._restart()
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SpeechError(f"eSpeak NG has no voice {voice!r}")
        self.library.espeak_SetParameter(_RATE, rate, 0)
        self.library.espeak_SetParameter(_PITCH, pitch, 0)
        self._chunks, self._events = [], []
        encoded = text.encode()
        status = self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        if status != 0 or not self._chunks:
            raise SpeechError(f"eSpeak NG made no sound of {text!r} (status {status})")
        return np.concatenate(self._chunks), self._events


@cache
def _engine() -> _Engine:
    return _Engine()


def runs_of_language(text: str, language: str) -> list[tuple[str, str]]:
    """Cuts mixed Chinese-English text into (language, part) runs; other languages stay whole."""
    if language != "zh":
        return [(language, text)]
    parts = re.findall(rf"{LATIN}(?:{LATIN}|[' -])*|(?:(?!{LATIN}).)+", text, flags=re.DOTALL)
    return [("en" if re.match(LATIN, p) else "zh", p) for p in parts if re.search(r"\w", p)]


def synthesize(text: str, language: str = "en", voice: Voice | None = None) -> Utterance:
    """The text as speech. language: a key of LANGUAGES; Chinese text may hold English words, which are spoken as such.

    Raises SpeechError where the package is missing, the language or variant unknown, or nothing can be said.
    """
    voice = voice or Voice()
    if language not in ESPEAK_LANGUAGES:
        raise SpeechError(f"language must be one of {list(ESPEAK_LANGUAGES)}: got {language!r}")
    if voice.variant not in WOMEN + MEN:
        raise SpeechError(f"voice variant must be one of {WOMEN + MEN}: got {voice.variant!r}")
    runs = runs_of_language(text, language)
    if not runs or not re.search(r"\w", text):
        raise SpeechError(f"there is nothing to say in {text!r}")
    engine = _engine()
    waves: list[np.ndarray] = []
    words: list[TimedLabel] = []
    phonemes: list[TimedLabel] = []
    offset = 0.0
    with engine.lock:
        for run_language, part in runs:
            wave, events = engine.speak(
                part, f"{ESPEAK_LANGUAGES[run_language]}+{voice.variant}", voice.rate, voice.pitch
            )
            seconds = len(wave) / engine.rate
            for kind, into in ((_WORD, words), (_PHONEME, phonemes)):
                marks = [e for e in events if e[0] == kind]
                starts = [min(e[1] / engine.rate, seconds) for e in marks]
                until = [*(e[2] - 1 for e in marks[1:]), len(part)]
                for (_, _, position, _, label), start, end, stop in zip(
                    marks, starts, [*starts[1:], seconds], until, strict=True
                ):
                    said = re.sub(r"^\W+|\W+$", "", part[position - 1 : stop]) if kind == _WORD else label
                    if said.strip():
                        into.append(TimedLabel(said, offset + start, offset + end))
            waves.append(wave)
            offset += seconds
    samples = engine.resample(torch.from_numpy(np.concatenate(waves).astype(np.float32) / 32768.0))
    return Utterance(samples.numpy().copy(), tuple(words), tuple(phonemes))
