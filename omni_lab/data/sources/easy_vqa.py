"""easy-VQA (V. Zhou, 2019; MIT licence): pictures of one coloured shape, and questions about it.

The set ships in the PyPI package `easy-vqa`, so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omni_lab.batch import Modality
from omni_lab.data.media_io import read_image
from omni_lab.data.sources.base import (
    MediaItem,
    Question,
    QuestionFamily,
    SourceError,
    check_answer,
    read_json,
    split_by_scene,
)

SHAPES = ("circle", "rectangle", "triangle")
TEST_OFFSET = 1_000_000  # the official splits both count their pictures from 0; test keys start here


class EasyVQA:
    """The official train and test splits; validation is cut from train by picture.

    folder: where `train/`, `test/` and `answers.txt` lie (default: inside the installed package).
    """

    name = "easy_vqa"
    shapes: Mapping[Modality, tuple[int, ...]] = MappingProxyType({Modality.IMAGE: (3, 64, 64)})

    def __init__(self, folder: Path | None = None, *, validation_fraction: float = 0.1, seed: int = 0) -> None:
        self.packaged = folder is None
        if folder is None:
            spec = find_spec("easy_vqa")
            if spec is None or spec.origin is None:
                raise SourceError("the package easy-vqa is not installed: expected it from `pip install easy-vqa`")
            folder = Path(spec.origin).parent / "data"
        self.folder = folder
        self.validation_fraction = validation_fraction
        self.seed = seed

    def fingerprint(self) -> dict[str, Any]:
        """The package is known by its version; a folder of one's own by the sizes and dates of its files."""
        facts: dict[str, Any] = {"validation_fraction": self.validation_fraction, "split_seed": self.seed}
        if self.packaged:
            return facts | {"package": version("easy-vqa")}
        files = [f.stat() for f in self.folder.rglob("*") if f.is_file()]
        return facts | {
            "folder": str(self.folder.resolve()),
            "files": len(files),
            "bytes": sum(f.st_size for f in files),
            "newest": max((f.st_mtime_ns for f in files), default=0),
        }

    def answers(self) -> Sequence[str]:
        path = self.folder / "answers.txt"
        try:
            answers = path.read_text(encoding="utf-8").split()
        except FileNotFoundError as error:
            raise SourceError(f"{path}: no such file") from error
        if not answers:
            raise SourceError(f"{path}: expected one answer a line: the file is empty")
        return sorted(answers)

    def families(self) -> Mapping[str, QuestionFamily]:
        looking = QuestionFamily((Modality.TEXT, Modality.IMAGE), ((Modality.TEXT, Modality.IMAGE),))
        return dict.fromkeys(("yes/no", "shape", "colour"), looking)

    def questions(self) -> Mapping[str, Sequence[Question]]:
        train, validation = split_by_scene(self._read("train", 0), fraction=self.validation_fraction, seed=self.seed)
        return {"train": train, "validation": validation, "test": self._read("test", TEST_OFFSET)}

    def _read(self, part: str, offset: int) -> list[Question]:
        path = self.folder / part / "questions.json"
        known = self.answers()
        questions = []
        for i, entry in enumerate(read_json(path)):
            if not (isinstance(entry, list) and [type(e) for e in entry] == [str, str, int]):
                raise SourceError(f"{path}: entry {i} is {entry!r}: expected [question, answer, picture number]")
            text, answer, picture = entry
            check_answer(answer, known, where=f"{path}: entry {i}")
            questions.append(Question(f"{part}-{i}", text, _family(answer), picture + offset, {answer: 1.0}))
        return questions

    def corpus(self) -> Sequence[str]:
        return ()

    def media(self, modality: Modality) -> Iterator[MediaItem]:
        for part, offset in (("train", 0), ("test", TEST_OFFSET)):
            for key in sorted({q.scene for q in self._read(part, offset)}):
                path = self.folder / part / "images" / f"{key - offset}.png"
                yield MediaItem(key, read_image(path, size=64, exact=True))


def _family(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in SHAPES else "colour"
