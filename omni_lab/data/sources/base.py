"""The interface that every visual question answering set implements."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from omni_lab.batch import Modality

SPLITS = ("train", "validation", "test")


class SourceError(ValueError):
    """A missing, truncated or inconsistent source file; the message names it."""


@dataclass(frozen=True)
class Question:
    """A question and the media that come with it."""

    id: str
    text: str | None  # None: the question is spoken, as this question's audio
    family: str
    scene: int  # questions of one scene (one image, say) share their media and their split
    scores: Mapping[str, float]  # soft accuracy in [0, 1] of every answer that earns any
    media: Mapping[Modality, int] | None = None  # keys of image, audio and video; None: one image, its key is the scene

    @property
    def media_keys(self) -> Mapping[Modality, int]:
        return {Modality.IMAGE: self.scene} if self.media is None else self.media


@dataclass(frozen=True)
class QuestionFamily:
    """What a family of questions needs to be answered."""

    required_modalities: tuple[Modality, ...]  # without any of them the answer cannot be known
    required_interactions: tuple[tuple[Modality, Modality], ...] = ()  # pairs of them that must be combined
    chance: float | None = None  # best accuracy without one required modality, if the rules are known; None: unknown


class MediaItem(NamedTuple):
    """One image [3, H, W] uint8, video [F, 3, H, W] uint8, or waveform [S] int16 at 16 kHz."""

    key: int  # unique within the modality
    values: np.ndarray
    annotations: Mapping[str, Any] = {}  # captions, boxes, word times ...: anything JSON can hold


@runtime_checkable
class VQASource(Protocol):
    """Media, questions about them, and the answers a model may choose from."""

    @property
    def name(self) -> str: ...

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]:
        """Shape of the media of each modality; () for audio, whose length varies."""

    def fingerprint(self) -> dict[str, Any]:
        """What the built store depends on. A store built from another fingerprint is outdated."""

    def answers(self) -> Sequence[str]:
        """The answer vocabulary, in index order."""

    def families(self) -> Mapping[str, QuestionFamily]:
        """Requirements by question family; a family may be missing."""

    def questions(self) -> Mapping[str, Sequence[Question]]:
        """The questions of each split. Splits share no scene."""

    def corpus(self) -> Iterable[str]:
        """Texts to train the tokenizer on, besides the training questions."""

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        """The items of a modality with these keys, in this order. A store asks for them as they are needed, also in
        worker processes: a source must be picklable, and should leave its caches out."""


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises SourceError naming the file if it is missing, truncated or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not complete JSON, perhaps truncated ({error})") from error


def split_keys(counts: Mapping[str, int]) -> dict[str, range]:
    """The keys of each split of a generated set, which are numbered through: train, validation, test."""
    ends = list(itertools.accumulate(counts[split] for split in SPLITS))
    return {split: range(end - counts[split], end) for split, end in zip(SPLITS, ends, strict=True)}


def split_by_scene(
    questions: Sequence[Question], *, fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Splits off a validation set by scene, with all questions of a scene: (train, validation)."""
    keys = sorted({q.scene for q in questions})
    held_out = set(np.random.default_rng(seed).permutation(keys)[: max(1, round(fraction * len(keys)))].tolist())
    train = [q for q in questions if q.scene not in held_out]
    return train, [q for q in questions if q.scene in held_out]
