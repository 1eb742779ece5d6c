"""A set of one's own: media in folders, and a CSV file of questions and answers.

`omni-lab new` checks both and writes `data/sets/<name>/set.yaml`, which says where they are, and a copy of the
questions. The media stay where they are.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from omni_lab.batch import Modality
from omni_lab.config.profiles import parse_config
from omni_lab.data.media_io import AudioError, ImageError, read_audio, read_image
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily, SourceError
from omni_lab.data.uploads import UploadError, read_frames
from omni_lab.utils.env import project_root
from omni_lab.utils.lookup import lookup

SETTINGS, QUESTIONS = "set.yaml", "questions.csv"
MEDIA = (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)  # each a column of the CSV file
COLUMNS = ("question", "answer", *(m.value for m in MEDIA), "split", "kind")
SCORE_SEPARATOR = "|"  # between answers that are all right
MAX_ANSWERS = 1000


@dataclass(frozen=True)
class OwnSetConfig:
    """What `set.yaml` holds."""

    images: str | None = None  # folder of the files that the column image names; None: the set has none
    audio: str | None = None
    video: str | None = None  # animations: GIF, PNG or WebP
    image_size: int = 64  # pixels; images are resized to squares
    frames: int = 8  # of each video, evenly spaced
    frame_size: int = 32  # pixels
    max_seconds: float = 10.0  # of audio
    start_from: str = "emoji_routed"  # the published model whose weights training starts from; empty: none
    train_encoders: bool = False  # else they stay as they are there
    backbone: str = ""  # timm's name of an image encoder with weights from the internet, in place of that model's
    steps: int = 600  # of training
    made_by: str = ""  # the command that wrote this file

    def folder(self, modality: Modality) -> str | None:
        return {Modality.IMAGE: self.images, Modality.AUDIO: self.audio, Modality.VIDEO: self.video}[modality]


class OwnSet:
    """The set in a folder that `omni-lab new` made.

    The questions that share a file are a scene, which belongs to one split: the column split decides, or, where it is
    empty for all of a scene's questions, chance (80 % train, 10 % validation, 10 % test).
    """

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        """Raises SourceError for a folder that `omni-lab new` did not make, or whose files were altered to nonsense."""
        self.directory, self.seed = Path(folder), seed
        self.name = self.directory.name
        try:
            content = yaml.safe_load((self.directory / SETTINGS).read_text(encoding="utf-8"))
            self.config: OwnSetConfig = parse_config(OwnSetConfig, content, where=str(self.directory / SETTINGS))
        except FileNotFoundError as error:
            raise SourceError(f"{self.directory}: no set there (no {SETTINGS}); `omni-lab new` makes one") from error
        except yaml.YAMLError as error:
            raise SourceError(f"{self.directory / SETTINGS}: not YAML ({error})") from error

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return (Modality.TEXT, *(m for m in MEDIA if self.config.folder(m) is not None))

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]:
        size, frame = self.config.image_size, self.config.frame_size
        every = {
            Modality.IMAGE: (3, size, size),
            Modality.AUDIO: (),
            Modality.VIDEO: (self.config.frames, 3, frame, frame),
        }
        return {m: every[m] for m in self.modalities[1:]}

    def fingerprint(self) -> dict[str, Any]:
        """The questions by their bytes, the media by size and date of each file that a question names."""
        try:
            stats = [(name, (stat := self._file(m, name).stat()).st_size, stat.st_mtime_ns) for m, name in self._media]
        except OSError as error:
            raise SourceError(f"{self.directory / SETTINGS}: its media are not where it says ({error})") from error
        digest = hashlib.sha256((self.directory / QUESTIONS).read_bytes() + repr(stats).encode()).hexdigest()
        return {"digest": digest, "split_seed": self.seed, "max_seconds": self.config.max_seconds}

    def answers(self) -> Sequence[str]:
        return sorted({answer for row in self._rows for answer in row["answers"]})

    def families(self) -> Mapping[str, QuestionFamily]:
        return {}

    def corpus(self) -> Sequence[str]:
        return ()

    def questions(self) -> Mapping[str, Sequence[Question]]:
        split, keys = self._splits(), {file: key for key, file in enumerate(self._media)}
        found: dict[str, list[Question]] = {name: [] for name in SPLITS}
        for number, row in enumerate(self._rows):
            media = {m: keys[m, row[m.value]] for m in MEDIA if row[m.value]}
            scores, scene = dict.fromkeys(row["answers"], 1.0), self._scenes[number]
            found[split[scene]].append(Question(f"{number}", row["question"], row["kind"], scene, scores, media))
        return found

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        for key in keys:
            path = self._file(*self._media[key])
            try:
                yield MediaItem(key, self._read(modality, path))
            except (ImageError, AudioError, UploadError, OSError) as error:
                raise SourceError(f"{error} (named by {self._first_line(key)})") from error

    def _read(self, modality: Modality, path: Path) -> np.ndarray:
        if modality is Modality.IMAGE:
            return read_image(path, size=self.config.image_size, exact=False)
        if modality is Modality.AUDIO:
            return (read_audio(path, max_seconds=self.config.max_seconds).clip(-1, 1) * 32767).astype(np.int16)
        content = path.read_bytes()
        try:
            with Image.open(io.BytesIO(content)) as image:
                count = getattr(image, "n_frames", 1)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UploadError(f"{path}: not an animation ({error}): expected a GIF, PNG or WebP file") from error
        return read_frames(str(path), content, count, self.shapes[modality]).numpy()

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return read_questions(self.directory / QUESTIONS, self.modalities[1:])

    @property
    def files(self) -> list[str]:
        """The names of all files; the place of a name is its file's key."""
        return [name for _, name in self._media]

    @cached_property
    def _media(self) -> list[tuple[Modality, str]]:
        """Every file that a question names, once; its place is its key."""
        return list(dict.fromkeys((m, row[m.value]) for row in self._rows for m in MEDIA if row[m.value]))

    @cached_property
    def _scenes(self) -> list[int]:
        """Of each row: rows that share a file, directly or by way of others, have the same number."""
        scene: dict[Any, Any] = {}

        def root(node: Any) -> Any:
            while scene.setdefault(node, node) != node:
                node = scene[node]
            return node

        for number, row in enumerate(self._rows):
            for m in MEDIA:
                if row[m.value]:
                    scene[root((m, row[m.value]))] = root(number)
        numbers: dict[Any, int] = {}
        return [numbers.setdefault(root(number), len(numbers)) for number in range(len(self._rows))]

    def _splits(self) -> dict[int, str]:
        """The split of each scene. Raises SourceError for a scene in two splits, and for a split without questions."""
        said: dict[int, str] = {}
        for row, scene in zip(self._rows, self._scenes, strict=True):
            if row["split"] and said.setdefault(scene, row["split"]) != row["split"]:
                raise SourceError(
                    f"{self.directory / QUESTIONS}: line {row['line']} is in the split {row['split']!r}, but shares a "
                    f"file with a line in {said[scene]!r}: expected all questions about a file in one split"
                )
        free = [scene for scene in dict.fromkeys(self._scenes) if scene not in said]
        shuffled = np.random.default_rng(self.seed).permutation(free).tolist()
        tenth = max(1, round(len(shuffled) / 10)) if shuffled else 0
        said |= {
            s: ("validation" if i < tenth else "test" if i < 2 * tenth else "train") for i, s in enumerate(shuffled)
        }
        counts = Counter(said.values())
        if empty := [name for name in SPLITS if not counts[name]]:
            raise SourceError(
                f"{self.directory / QUESTIONS}: {len(self._rows)} questions about {len(said)} scenes leave the split "
                f"{empty[0]!r} empty: expected at least three scenes, or a column split that names all three"
            )
        return said

    def _file(self, modality: Modality, name: str) -> Path:
        return Path(str(self.config.folder(modality))) / name

    def _first_line(self, key: int) -> str:
        modality, name = self._media[key]
        line = next(row["line"] for row in self._rows if row[modality.value] == name)
        return f"line {line} of {self.directory / QUESTIONS}"


def read_questions(path: Path, modalities: Sequence[Modality]) -> list[dict[str, Any]]:
    """The rows of a CSV file of questions: a dictionary by `COLUMNS`, with the answers as a list, and the line.

    modalities: those that the set has a folder for. Raises SourceError naming the line for whatever is wrong.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            if len(header) == 1 and (mark := next((m for m in ";\t" if m in header[0]), "")):
                raise SourceError(f"{path}: its columns are separated by {mark!r}: expected commas")
            for name in header:
                lookup(name, dict.fromkeys(COLUMNS), f"column of {path}", error=SourceError)
            if missing := [name for name in ("question", "answer") if name not in header]:
                raise SourceError(
                    f"{path}: no column {missing[0]!r}: its columns are {header}, expected {list(COLUMNS)}"
                )
            reader.fieldnames = header
            rows = [_check_row(row, reader.line_num, path, modalities) for row in reader]
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: not a CSV file in UTF-8 ({error}): save it as such") from error
    if not rows:
        raise SourceError(f"{path}: no questions: expected a line for each, below the names of the columns")
    answers = {answer for row in rows for answer in row["answers"]}
    if not 2 <= len(answers) <= MAX_ANSWERS:
        raise SourceError(
            f"{path}: {len(answers)} different answers: expected 2 to {MAX_ANSWERS} that a model can choose from"
        )
    return rows


def _check_row(row: Mapping[Any, Any], line: int, path: Path, modalities: Sequence[Modality]) -> dict[str, Any]:
    place = f"{path}: line {line}"
    if None in row:
        raise SourceError(f"{place} has more values than columns: expected quotes around a value that holds a comma")
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    for name in ("question", "answer"):
        if not values[name]:
            raise SourceError(f"{place} has no {name}")
    named = [m for m in MEDIA if values[m.value]]
    values |= {m.value: os.path.normpath(values[m.value]) for m in named}  # one file has one name
    if not named:
        raise SourceError(f"{place} names no file: expected one in a column of {[m.value for m in modalities]}")
    if unknown := [m.value for m in named if m not in modalities]:
        raise SourceError(f"{place} names a file in the column {unknown[0]!r}, of which no folder was given")
    if values["split"] and values["split"] not in SPLITS:
        raise SourceError(f"{place} has the split {values['split']!r}: expected one of {list(SPLITS)}, or nothing")
    answers = [answer.strip() for answer in values["answer"].split(SCORE_SEPARATOR) if answer.strip()]
    if not answers:
        raise SourceError(f"{place} has no answer: got {values['answer']!r}")
    return {**values, "answers": answers, "kind": values["kind"] or "question", "line": line}


def sets_folder() -> Path:
    """Where sets of one's own are kept."""
    return project_root() / "data" / "sets"


def list_own_sets() -> list[str]:
    """The names of all sets of one's own."""
    return sorted(file.parent.name for file in sets_folder().glob(f"*/{SETTINGS}"))
