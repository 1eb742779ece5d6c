"""An independent judge of speech: a recogniser that no model here was trained with, and that knows only a grammar.

PocketSphinx (Huggins-Daines et al. 2006) with the US-English model in its package, held to a JSGF grammar. What it
makes of a model's speech belongs beside what it makes of the reference voice: its own mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import numpy as np

from omni_lab.batch import SAMPLE_RATE
from omni_lab.data.media_io import prepare_audio
from omni_lab.utils.parallel import parallel_map

DITHER_DB = 30.0  # below the speech: it goes astray in digital silence
PAUSE = 0.2  # seconds of nothing but dither, in front and behind
LOUDNESS = 0.5  # of the loudest that can be: a quiet sound is judged as a loud one
WIDE_BEAMS = {"beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-50}  # keeps likelihoods that are so much lower than the best
PRONUNCIATIONS = MappingProxyType(  # of words that its dictionary lacks, in ARPABET
    {"cactuses": "K AE K T AH S IH Z", "octopuses": "AA K T AH P UH S IH Z"}
)
SOUNDS = 16  # so many are worth a second process, which gets half as many together
_NAME = "judge"


class RecognizerError(RuntimeError):
    """The judge is not there: the message says how to get it."""


def is_recognizer_available() -> bool:
    """Whether the package pocketsphinx is installed."""
    return find_spec("pocketsphinx") is not None


class GrammarRecognizer:
    """Hears which sentence of a grammar is said.

    grammar: JSGF with one public rule, or all the sentences that may be said, in lower case and without punctuation.
    pronunciations: in ARPABET, of words that the dictionary may lack. seed: of the dither. Raises JudgeError where the
    package is missing; ValueError for a grammar that is none, or has words that nobody says how to pronounce.
    """

    def __init__(
        self, grammar: str | Iterable[str], *, pronunciations: Mapping[str, str] = PRONUNCIATIONS, seed: int = 0
    ) -> None:
        if not is_recognizer_available():
            raise RecognizerError(
                "the judge needs the package pocketsphinx: "
                "pip install --no-deps --require-hashes --requirement worlds.txt"
            )
        if not isinstance(grammar, str):
            grammar = f"#JSGF V1.0;\ngrammar sentences;\npublic <sentence> = {' | '.join(grammar)};\n"
        self.grammar = grammar
        self.pronunciations = dict(pronunciations)
        self.seed = seed
        self._grammatical = self._decoder()

    def transcribe(self, wave: np.ndarray) -> str:
        """What is said, in the words of the grammar; "" where nothing like them is heard. wave: [S] float32 at 16 kHz.
        A sound is always heard alike: its dither depends on length and seed alone, and the decoder has heard nothing
        before. What seems to end amid a sentence is listened to once more with a wider search, which takes several
        times as long."""
        sound = np.pad(prepare_audio(wave, SAMPLE_RATE, name="wave"), round(PAUSE * SAMPLE_RATE))
        noise = np.random.default_rng(self.seed).standard_normal(len(sound)).astype(np.float32)
        power = (sound**2).sum() / len(wave)
        sound += noise * np.sqrt(power / 10 ** (DITHER_DB / 10))
        data = (sound * (LOUDNESS * 32767 / max(1e-9, np.abs(sound).max()))).astype("<i2").tobytes()
        heard = _heard(self._decoder(), data)  # a used one would remember noise
        return heard if self.accepts(heard) else _heard(self._decoder(**WIDE_BEAMS), data)

    def transcribe_all(self, waves: Sequence[np.ndarray]) -> list[str]:
        """Each as by `transcribe`; from 16 on, by all cores."""
        return list(parallel_map(self.transcribe, waves, many=SOUNDS, chunksize=SOUNDS // 2))

    def accepts(self, sentence: str) -> bool:
        """Whether it is a whole sentence of the grammar."""
        return bool(self._grammatical.get_fsg(_NAME).accept(sentence))

    def __reduce__(self) -> tuple[Any, ...]:
        """Decoders cannot be pickled: the copy builds its own."""
        return partial(GrammarRecognizer, self.grammar, pronunciations=self.pronunciations, seed=self.seed), ()

    def _decoder(self, **search: float) -> Any:
        import pocketsphinx

        decoder = pocketsphinx.Decoder(lm=None, loglevel="FATAL", **search)
        for word, sounds in self.pronunciations.items():
            if decoder.lookup_word(word) is None:
                decoder.add_word(word, sounds)
        rules, words = _symbols(self.grammar)
        if rules:
            raise ValueError(f"grammar must define every rule that it uses: lacks {rules}")
        try:
            decoder.add_jsgf_string(_NAME, self.grammar)
        except ValueError as error:
            unknown = [word for word in words if decoder.lookup_word(word) is None]
            why = f"pronunciations must tell how to say {unknown}: the dictionary lacks them" if unknown else ""
            raise ValueError(why or f"grammar must be JSGF with a public rule: got {self.grammar[:80]!r}") from error
        decoder.activate_search(_NAME)
        return decoder


def _heard(decoder: Any, data: bytes) -> str:
    """data: 16-bit samples of one sentence."""
    decoder.start_utt()
    decoder.process_raw(data, full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return "" if hypothesis is None else str(hypothesis.hypstr)


def _symbols(grammar: str) -> tuple[list[str], list[str]]:
    """Rules that are used in some JSGF but not defined, and all its words."""
    body = re.sub(
        r"//[^\n]*|/\*.*?\*/|\{.*?\}|/[\d.]+/|\b(?:grammar|import)\b[^;]*;|#JSGF[^;]*;", " ", grammar, flags=re.S
    )
    rules = set(re.findall(r"<([^>]+)>", body)) - set(re.findall(r"<([^>]+)>\s*=", body)) - {"NULL", "VOID"}
    words = set(re.findall(r"[^\s|()\[\]*+=;]+", re.sub(r"<[^>]+>", " ", body))) - {"public"}
    return sorted(rules), sorted(words)
