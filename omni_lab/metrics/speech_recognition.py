"""An independent speech recogniser for evaluation: no model here was trained with it, and it knows only a grammar.

PocketSphinx (Huggins-Daines et al. 2006) with the US-English model of its package, restricted to a JSGF grammar. Report
its error rate on a model's speech beside that on the reference voice, which shows its own mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from omni_lab.batch import SAMPLE_RATE
from omni_lab.data.media_io import prepare_audio
from omni_lab.utils.parallel import parallel_map

DITHER_DB = 30.0  # below the speech; PocketSphinx fails on digital silence
PADDING_SECONDS = 0.2  # of dither alone, before and after
PEAK = 0.5  # of full scale; the recogniser's result would depend on loudness
WIDE_BEAMS = {"beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-50}  # hypotheses down to so small a fraction of the best
PRONUNCIATIONS = {"cactuses": "K AE K T AH S IH Z", "octopuses": "AA K T AH P UH S IH Z"}  # ARPABET
MIN_PARALLEL_WAVES = 16  # from which a second process pays; each gets half as many at a time
_SEARCH = "grammar"


def is_recognizer_available() -> bool:
    """Whether the package pocketsphinx is installed."""
    return find_spec("pocketsphinx") is not None


class GrammarRecognizer:
    """Recognises which sentence of a grammar is spoken. Raises ImportError without pocketsphinx.

    grammar: JSGF with one public rule, or all possible sentences, in lower case and without punctuation.
    pronunciations: ARPABET of words that the dictionary may lack.
    """

    def __init__(self, grammar: str | Iterable[str], *, pronunciations: Mapping[str, str] = PRONUNCIATIONS) -> None:
        if not is_recognizer_available():
            install = "pip install --no-deps --require-hashes --requirement worlds.txt"
            raise ImportError(f"GrammarRecognizer needs the package pocketsphinx: {install}")
        if not isinstance(grammar, str):
            grammar = f"#JSGF V1.0;\ngrammar sentences;\npublic <sentence> = {' | '.join(grammar)};\n"
        self.grammar = grammar
        self.pronunciations = dict(pronunciations)
        self._grammar_checker = self._build_decoder()

    def transcribe(self, waveform: np.ndarray) -> str:
        """The recognised sentence, or part of one; "" if nothing matches. waveform: [S] float32 at 16 kHz.

        It depends on nothing else: the dither is fixed, and each call builds a new decoder. If it is no whole sentence,
        a wider search follows, which takes several times as long.
        """
        padded = np.pad(prepare_audio(waveform, SAMPLE_RATE, name="waveform"), round(PADDING_SECONDS * SAMPLE_RATE))
        noise = np.random.default_rng(0).standard_normal(len(padded)).astype(np.float32)
        power = (padded**2).sum() / len(waveform)
        padded += noise * np.sqrt(power / 10 ** (DITHER_DB / 10))
        data = (padded * (PEAK * 32767 / max(1e-9, np.abs(padded).max()))).astype("<i2").tobytes()
        text = _decode(self._build_decoder(), data)  # a used decoder would have adapted to other noise
        return text if self.accepts(text) else _decode(self._build_decoder(**WIDE_BEAMS), data)

    def transcribe_all(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """`transcribe` of each, on all cores from `MIN_PARALLEL_WAVES` on."""
        count = MIN_PARALLEL_WAVES
        return list(parallel_map(self.transcribe, waveforms, min_items=count, chunksize=count // 2))

    def accepts(self, sentence: str) -> bool:
        """Whether the text is a whole sentence of the grammar."""
        return bool(self._grammar_checker.get_fsg(_SEARCH).accept(sentence))

    def __reduce__(self) -> tuple[Any, ...]:
        """Decoders cannot be pickled: the copy builds its own."""
        return partial(GrammarRecognizer, self.grammar, pronunciations=self.pronunciations), ()

    def _build_decoder(self, **search: float) -> Any:
        import pocketsphinx

        decoder = pocketsphinx.Decoder(lm=None, loglevel="FATAL", **search)
        for word, phones in self.pronunciations.items():
            if decoder.lookup_word(word) is None:
                decoder.add_word(word, phones)
        undefined, words = _undefined_rules_and_words(self.grammar)
        if undefined:
            raise ValueError(f"grammar must define every rule that it uses: lacks {undefined}")
        try:
            decoder.add_jsgf_string(_SEARCH, self.grammar)
        except ValueError as error:
            unknown = [word for word in words if decoder.lookup_word(word) is None]
            if unknown:
                raise ValueError(f"pronunciations must cover {unknown}: the dictionary lacks them") from error
            raise ValueError(f"grammar must be JSGF with a public rule: got {self.grammar[:80]!r}") from error
        decoder.activate_search(_SEARCH)
        return decoder


def _decode(decoder: Any, data: bytes) -> str:
    """data: one utterance, 16-bit samples."""
    decoder.start_utt()
    decoder.process_raw(data, full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return "" if hypothesis is None else str(hypothesis.hypstr)


def _undefined_rules_and_words(grammar: str) -> tuple[list[str], list[str]]:
    body = re.sub(
        r"//[^\n]*|/\*.*?\*/|\{.*?\}|/[\d.]+/|\b(?:grammar|import)\b[^;]*;|#JSGF[^;]*;", " ", grammar, flags=re.S
    )
    rules = set(re.findall(r"<([^>]+)>", body)) - set(re.findall(r"<([^>]+)>\s*=", body)) - {"NULL", "VOID"}
    words = set(re.findall(r"[^\s|()\[\]*+=;]+", re.sub(r"<[^>]+>", " ", body))) - {"public"}
    return sorted(rules), sorted(words)
