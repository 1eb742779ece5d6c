"""The interface that every visual question answering set stands behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from omni_lab.config import nearest

SPLITS = ("train", "validation", "test")


class SourceError(ValueError):
    """A source file that is missing, truncated or inconsistent: the message names it."""


@dataclass(frozen=True)
class Question:
    """scores: soft accuracy in [0, 1] of every answer that earns any. picture: key into the source's pictures."""

    id: str
    text: str
    family: str
    picture: int
    scores: Mapping[str, float]


@runtime_checkable
class VqaSource(Protocol):
    """Pictures, questions about them, and the list of answers a model may give."""

    name: str
    image_size: int

    def fingerprint(self) -> dict[str, Any]:
        """What the built store depends on. A store built from another fingerprint is outdated."""
        ...

    def answers(self) -> Sequence[str]:
        """The answer vocabulary, in index order."""
        ...

    def questions(self) -> Mapping[str, Sequence[Question]]:
        """The questions of each split. Splits share no picture."""
        ...

    def pictures(self) -> Iterator[tuple[int, np.ndarray]]:
        """Every picture that a question asks about, once: key and pixels [3, image_size, image_size] uint8."""
        ...


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises SourceError naming the file if it is missing, cut short or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not complete JSON, perhaps cut short ({error})") from error


def split_by_picture(
    questions: Sequence[Question], *, fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Cuts a share of the *pictures*, with all their questions, off as a validation split: (train, validation)."""
    keys = sorted({q.picture for q in questions})
    held_out = set(np.random.default_rng(seed).permutation(keys)[: max(1, round(fraction * len(keys)))].tolist())
    train = [q for q in questions if q.picture not in held_out]
    return train, [q for q in questions if q.picture in held_out]


def check_answer(answer: str, known: Sequence[str], *, where: str) -> None:
    """Raises SourceError if `answer` is not among `known`, naming the nearest one."""
    if answer not in known:
        raise SourceError(
            f"{where}: unknown answer {answer!r}; the nearest of the {len(known)} known is {nearest(answer, known)!r}"
        )
