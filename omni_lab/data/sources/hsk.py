"""Chinese sentences with their English translations, graded by the levels of the HSK examination.

The sentences ship in the PyPI package `hsk-sentences-audio` (CC BY-SA 4.0), so nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from omni_lab.data.sources.base import SPLITS, SourceError

SPLIT_FRACTIONS = (0.8, 0.1, 0.1)  # of train, validation and test


@dataclass(frozen=True)
class SentencePair:
    """level: of the HSK, 1 (first words) to 6."""

    id: str
    chinese: str
    english: str
    level: int


def hsk_sentences() -> dict[str, list[SentencePair]]:
    """The pairs of each split. Splits share no Chinese sentence (an English one may translate several).

    Raises SourceError if the package is not installed.
    """
    try:
        from hsk_sentences_audio import load_sentences
    except ImportError as error:
        message = "the sentences need the package hsk-sentences-audio: install it with worlds.txt, see data/README.md"
        raise SourceError(message) from error
    pairs: dict[str, list[SentencePair]] = {split: [] for split in SPLITS}
    for s in load_sentences():
        pair = SentencePair(s["id"], s["chinese"], s["translation"]["en"], s["hsk_level"])
        pairs[split_of(pair.chinese)].append(pair)
    return pairs


def split_of(sentence: str) -> str:
    """The split that a sentence always falls into: its SHA-256 as a number in [0, 1), cut at the shares."""
    position = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") / 2**64
    train, validation, _ = SPLIT_FRACTIONS
    return SPLITS[(position >= train) + (position >= train + validation)]
