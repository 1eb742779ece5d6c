"""The interface that every question answering set stands behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from omni_lab.batch import Modality
from omni_lab.utils.lookup import closest_match

SPLITS = ("train", "validation", "test")


class SourceError(ValueError):
    """A source file that is missing, truncated or inconsistent: the message names it."""


@dataclass(frozen=True)
class Question:
    """scene: says which questions belong together (about one picture, say): they share media, and a split. scores: soft
    accuracy in [0, 1] of every answer that earns any. media: keys of the picture, sound and clip that it comes with;
    None for just the picture whose key is the scene.

    text: None where the question is spoken; the sound is then the question.
    """

    id: str
    text: str | None
    family: str
    scene: int
    scores: Mapping[str, float]
    media: Mapping[Modality, int] | None = None

    @property
    def media_keys(self) -> Mapping[Modality, int]:
        return {Modality.IMAGE: self.scene} if self.media is None else self.media


@dataclass(frozen=True)
class QuestionFamily:
    """What is known of a kind of question.

    needs: the modalities without any of which the answer cannot be known. interactions: which pairs of them must be
    brought together. chance: the best accuracy that anyone can reach who knows the rules but lacks one needed modality;
    None where that is not known.
    """

    required_modalities: tuple[Modality, ...]
    required_interactions: tuple[tuple[Modality, Modality], ...] = ()
    chance: float | None = None


class MediaItem(NamedTuple):
    """key: unique among the media of its modality. values: a picture [3, H, W] uint8, a clip [F, 3, H, W] uint8, or a
    sound [S] int16 at 16 kHz. facts: what is known of it (captions, boxes, word times): anything JSON can hold.
    """

    key: int
    values: np.ndarray
    annotations: Mapping[str, Any] = {}


@runtime_checkable
class VQASource(Protocol):
    """Media, questions about them, and the list of answers a model may give.

    shapes: of each modality's media; a sound's is (), as its length is free.
    """

    @property
    def name(self) -> str: ...

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]: ...

    def fingerprint(self) -> dict[str, Any]:
        """What the built store depends on. A store built from another fingerprint is outdated."""
        ...

    def answers(self) -> Sequence[str]:
        """The answer vocabulary, in index order."""
        ...

    def families(self) -> Mapping[str, QuestionFamily]:
        """What is known of each kind of question; a family may be missing."""
        ...

    def questions(self) -> Mapping[str, Sequence[Question]]:
        """The questions of each split. Splits share no scene."""
        ...

    def corpus(self) -> Iterable[str]:
        """Texts that the tokenizer learns from besides the training questions."""
        ...

    def media(self, modality: Modality) -> Iterator[MediaItem]:
        """Every picture, sound or clip that a question comes with, once."""
        ...


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises SourceError naming the file if it is missing, cut short or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not complete JSON, perhaps cut short ({error})") from error


def split_by_scene(
    questions: Sequence[Question], *, fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Cuts a share of the *scenes*, with all their questions, off as a validation split: (train, validation)."""
    keys = sorted({q.scene for q in questions})
    held_out = set(np.random.default_rng(seed).permutation(keys)[: max(1, round(fraction * len(keys)))].tolist())
    train = [q for q in questions if q.scene not in held_out]
    return train, [q for q in questions if q.scene in held_out]


def check_answer(answer: str, known: Sequence[str], *, where: str) -> None:
    """Raises SourceError if `answer` is not among `known`, naming the nearest one."""
    if answer not in known:
        raise SourceError(
            f"{where}: unknown answer {answer!r}; the nearest of the {len(known)} known is {closest_match(answer, known)!r}"
        )
