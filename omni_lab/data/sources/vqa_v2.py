"""VQA v2 (Goyal et al. 2017) from its official files: questions and annotations in JSON, COCO image folders.

Nothing is downloaded; `data/README.md` says where the files go. The official test answers are not public, so the
official validation part is the test split here, and a validation split is split off train by image.

The answer normalisation follows the official evaluation (`vqaEval.py`), quirks included: a punctuation mark is
deleted from the whole answer where it touches a space anywhere (or where the answer holds a number like 1,000) and
replaced by a space otherwise; and where all annotators agree to the letter, only white space is normalised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omni_lab.batch import Modality
from omni_lab.data.media_io import read_image
from omni_lab.data.sources.base import MediaItem, Question, QuestionFamily, SourceError, read_json, split_by_scene

PARTS = ("train2014", "val2014")
JSON_FILES = ("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
# The official pattern means "no '<=digit' before", which never happens: a period goes unless a digit follows.
PERIOD = re.compile(r"\.(?!\d)")
ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(n) for n, word in enumerate(NUMBER_WORDS)}
WITH_APOSTROPHES = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've 'ow's'at y'all'd've
"""
# The official table: each contraction without one of its apostrophes.
CONTRACTIONS = {
    full[:i] + full[i + 1 :]: full for full in WITH_APOSTROPHES.split() for i, c in enumerate(full) if c == "'"
} | {"somebody'd": "somebodyd"}


def normalize_answer(answer: str) -> str:
    """The official normalisation where annotators differ: punctuation, number words, articles, contractions."""
    text = answer
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if touches_space or DIGIT_COMMA.search(answer) else " ")
    words = [NUMBERS.get(word, word) for word in PERIOD.sub("", text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_scores(answers: Sequence[str], *, leave_one_out: bool = False) -> dict[str, float]:
    """Soft accuracy of every answer that an annotator gave: min(annotators who gave it / 3, 1).

    leave_one_out: average that over all ways to leave one annotator out, as the official script does.
    """
    cleaned = [a.replace("\n", " ").replace("\t", " ").strip() for a in answers]
    if len(set(cleaned)) > 1:
        cleaned = [normalize_answer(a) for a in cleaned]
    counts = Counter(cleaned)
    n = len(cleaned)
    if not leave_one_out:
        return {a: min(c / 3, 1.0) for a, c in counts.items()}
    return {a: (c * min((c - 1) / 3, 1.0) + (n - c) * min(c / 3, 1.0)) / n for a, c in counts.items()}


@dataclass(eq=False)
class VQAv2:
    """VQA v2 as a source; its question families are the official answer types."""

    folder: Path  # holds <part>/COCO_<part>_<12 digits>.jpg and the `JSON_FILES` of both parts
    _: KW_ONLY
    image_size: int = 224  # height and width that images are resized to, pixels
    max_answers: int = 3129  # size of the answer vocabulary: the most frequent best answers of the train split
    validation_fraction: float = 0.05
    seed: int = 0  # of the validation split
    leave_one_out: bool = False  # see `soft_scores`

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise SourceError(f"{self.folder}: no such folder: expected the official VQA v2 files there")
        self.name = "vqa_v2"
        self.shapes = {Modality.IMAGE: (3, self.image_size, self.image_size)}

    def _json_files(self, part: str) -> list[Path]:
        return [self.folder / name.format(part) for name in JSON_FILES]

    def fingerprint(self) -> dict[str, Any]:
        files = [path for part in PARTS for path in self._json_files(part)]
        return {
            "image_size": self.image_size,
            "max_answers": self.max_answers,
            "validation_fraction": self.validation_fraction,
            "split_seed": self.seed,
            "leave_one_out": self.leave_one_out,
            "bytes": {path.name: path.stat().st_size if path.exists() else None for path in files},
        }

    def answers(self) -> Sequence[str]:
        best = Counter(max(q.scores, key=lambda a: (q.scores[a], a)) for q in self.questions()["train"])
        return sorted(a for a, _ in best.most_common(self.max_answers))

    def families(self) -> Mapping[str, QuestionFamily]:
        return {}

    def questions(self) -> Mapping[str, Sequence[Question]]:
        train, test = (self._questions[part] for part in PARTS)
        train, validation = split_by_scene(train, fraction=self.validation_fraction, seed=self.seed)
        return {"train": train, "validation": validation, "test": test}

    @cached_property
    def _questions(self) -> dict[str, list[Question]]:
        return {part: self._parse(part) for part in PARTS}

    def _parse(self, part: str) -> list[Question]:
        question_file, annotation_file = self._json_files(part)
        questions = _entries(question_file, "questions", ("question_id", "image_id", "question"))
        annotations = _entries(annotation_file, "annotations", ("question_id", "image_id", "answers", "answer_type"))
        by_id = {a["question_id"]: a for a in annotations}
        if len(questions) != len(annotations):
            raise SourceError(f"{annotation_file}: {len(annotations)} annotations for {len(questions)} questions")
        parsed = []
        for q in questions:
            key, annotation = q["question_id"], by_id.get(q["question_id"])
            if annotation is None:
                raise SourceError(f"{annotation_file}: no annotation for question {key}")
            if annotation["image_id"] != q["image_id"]:
                raise SourceError(
                    f"{annotation_file}: question {key} is about image {annotation['image_id']}, "
                    f"but {question_file.name} says {q['image_id']}"
                )
            if not annotation["answers"]:
                raise SourceError(f"{annotation_file}: question {key} has no answers")
            scores = soft_scores([a["answer"] for a in annotation["answers"]], leave_one_out=self.leave_one_out)
            parsed.append(Question(str(key), q["question"], annotation["answer_type"], q["image_id"], scores))
        return parsed

    def corpus(self) -> Sequence[str]:
        return ()

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        for key in keys:
            paths = [self.folder / part / f"COCO_{part}_{key:012d}.jpg" for part in PARTS]
            found = [path for path in paths if path.exists()]
            if not found:
                raise SourceError(f"{self.folder}: no image {' or '.join(f'{p.parent.name}/{p.name}' for p in paths)}")
            yield MediaItem(key, read_image(found[0], size=self.image_size, exact=False))

    def __getstate__(self) -> dict[str, Any]:  # pickled without the parsed questions
        return {name: value for name, value in vars(self).items() if name != "_questions"}


def _entries(path: Path, field: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(field), list):
        raise SourceError(f"{path}: expected an object with a list {field!r}")
    for i, entry in enumerate(content[field]):
        missing = [key for key in keys if key not in entry]
        if missing:
            raise SourceError(f"{path}: {field}[{i}] lacks {missing}")
    return content[field]
