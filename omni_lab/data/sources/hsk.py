"""Chinese sentences with English translations, graded by the levels of the HSK examination.

The sentences ship in the PyPI package `hsk-sentences-audio` (CC BY-SA 4.0), so nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from omni_lab.data.sources.base import SPLITS, SourceError

SPLIT_FRACTIONS = (0.8, 0.1, 0.1)  # train, validation, test


@dataclass(frozen=True)
class SentencePair:
    """A Chinese sentence and its English translation."""

    id: str
    chinese: str
    english: str
    level: int  # of the HSK, from 1 (first words) to 6


def hsk_sentences() -> dict[str, list[SentencePair]]:
    """The pairs of each split. Splits share no Chinese sentence (an English one may translate several).

    Raises SourceError if the package is not installed.
    """
    try:
        from hsk_sentences_audio import load_sentences
    except ImportError as error:
        raise SourceError("hsk-sentences-audio is missing: install worlds.txt, see data/README.md") from error
    pairs: dict[str, list[SentencePair]] = {split: [] for split in SPLITS}
    for s in load_sentences():
        pair = SentencePair(s["id"], s["chinese"], s["translation"]["en"], s["hsk_level"])
        pairs[split_of(pair.chinese)].append(pair)
    return pairs


def split_of(sentence: str) -> str:
    """The fixed split of a sentence: its SHA-256 as a number in [0, 1), cut at the cumulated `SPLIT_FRACTIONS`."""
    position = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") / 2**64
    train, validation, _ = SPLIT_FRACTIONS
    return SPLITS[(position >= train) + (position >= train + validation)]
