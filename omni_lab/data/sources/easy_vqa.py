"""easy-VQA (V. Zhou, 2019; MIT licence): images of one coloured shape, and questions about it.

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
from omni_lab.data.sources.base import MediaItem, Question, QuestionFamily, SourceError, read_json, split_by_scene
from omni_lab.utils.lookup import lookup

IMAGE_SIZE = 64
# Question families by answer; all other answers are colours.
FAMILIES = dict.fromkeys(("yes", "no"), "yes/no") | dict.fromkeys(("circle", "rectangle", "triangle"), "shape")
KEY_OFFSETS = {"train": 0, "test": 1_000_000}  # both official splits number their images from 0; keys are unique


class EasyVQA:
    """The official train and test splits; validation is split off train by image."""

    name = "easy_vqa"
    shapes: Mapping[Modality, tuple[int, ...]] = MappingProxyType({Modality.IMAGE: (3, IMAGE_SIZE, IMAGE_SIZE)})

    def __init__(self, folder: Path | None = None, *, validation_fraction: float = 0.1, seed: int = 0) -> None:
        """folder: holds `train/`, `test/` and `answers.txt` (default: inside the installed package)."""
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
        """Identifies the package by its version, another folder by the sizes and dates of its files."""
        split = {"validation_fraction": self.validation_fraction, "split_seed": self.seed}
        if self.packaged:
            return {**split, "package": version("easy-vqa")}
        files = [f.stat() for f in self.folder.rglob("*") if f.is_file()]
        return {
            **split,
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
        pair = (Modality.TEXT, Modality.IMAGE)
        return dict.fromkeys(("yes/no", "shape", "colour"), QuestionFamily(pair, (pair,)))

    def questions(self) -> Mapping[str, Sequence[Question]]:
        train, validation = split_by_scene(self._read("train"), fraction=self.validation_fraction, seed=self.seed)
        return {"train": train, "validation": validation, "test": self._read("test")}

    def _read(self, part: str) -> list[Question]:
        path = self.folder / part / "questions.json"
        families = {answer: FAMILIES.get(answer, "colour") for answer in self.answers()}
        questions = []
        for i, entry in enumerate(read_json(path)):
            if not (isinstance(entry, list) and [type(e) for e in entry] == [str, str, int]):
                raise SourceError(f"{path}: entry {i} is {entry!r}: expected [question, answer, image number]")
            text, answer, image = entry
            family = lookup(answer, families, f"answer (entry {i} of {path})", error=SourceError)
            questions.append(Question(f"{part}-{i}", text, family, image + KEY_OFFSETS[part], {answer: 1.0}))
        return questions

    def corpus(self) -> Sequence[str]:
        return ()

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        for key in keys:
            part = "test" if key >= KEY_OFFSETS["test"] else "train"
            path = self.folder / part / "images" / f"{key - KEY_OFFSETS[part]}.png"
            yield MediaItem(key, read_image(path, size=IMAGE_SIZE, exact=True))
