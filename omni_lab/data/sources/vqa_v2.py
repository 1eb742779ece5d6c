r"""VQA v2 (Goyal et al. 2017) in its official files: questions and annotations JSON, COCO picture folders.

Nothing is downloaded; `data/README.md` says where the files go. The official test answers are not public, so the
official validation part serves as the test split here and a validation split is cut from train by picture.

The answer normalisation follows the official evaluation (`vqaEval.py`), quirks included: a punctuation mark is
deleted from the whole answer where it ever touches a space (or where the answer holds a number like 1,000) and turned
into a space otherwise; and nothing is normalised beyond white space where all annotators agree to the letter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omni_lab.batch import Modality
from omni_lab.data.media_io import read_image
from omni_lab.data.sources.base import MediaItem, Question, QuestionFamily, SourceError, read_json, split_by_scene

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
# The official pattern means "no '<=digit' before", which never happens: a period goes unless a digit follows.
PERIOD = re.compile(r"\.(?!\d)")
ARTICLES = {"a", "an", "the"}
NUMBERS = dict(
    zip(
        ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        ["0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"],
        strict=True,
    )
)
SIMPLE_CONTRACTIONS = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
DOUBLE_CONTRACTIONS = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""


@cache
def contractions() -> dict[str, str]:
    """The official table: each contraction without one of its apostrophes, or without its only one."""
    table = {full.replace("'", ""): full for full in SIMPLE_CONTRACTIONS.split()}
    for full in DOUBLE_CONTRACTIONS.split():
        head, middle, tail = full.split("'")
        table[f"{head}{middle}'{tail}"] = full
        table[f"{head}'{middle}{tail}"] = full
    for variant in ("ow's'at", "'ows'at", "'ow'sat"):
        table[variant] = "'ow's'at"
    for variant in ("yall'd've", "y'alld've", "y'all'dve"):
        table[variant] = "y'all'd've"
    return table | {"somebody'd": "somebodyd"}


def clean_answer(answer: str) -> str:
    """What the official evaluation does to every answer: line breaks and tabs to spaces, ends trimmed."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(answer: str) -> str:
    """What it does besides, wherever the annotators differ: punctuation, number words, articles, contractions."""
    kept = answer
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in answer or f" {mark}" in answer
        kept = kept.replace(mark, "" if touches_space or DIGIT_COMMA.search(answer) else " ")
    words = PERIOD.sub("", kept).lower().split()
    numbered = [NUMBERS.get(word, word) for word in words]
    return " ".join(contractions().get(word, word) for word in numbered if word not in ARTICLES)


def soft_scores(answers: Sequence[str], *, leave_one_out: bool = False) -> dict[str, float]:
    """Soft accuracy of every answer that an annotator gave: min(annotators who gave it / 3, 1).

    leave_one_out: average that over all ways to leave one annotator out, as the official script does.
    """
    cleaned = [clean_answer(a) for a in answers]
    if len(set(cleaned)) > 1:
        cleaned = [normalize_answer(a) for a in cleaned]
    counts = Counter(cleaned)
    n = len(cleaned)
    if not leave_one_out:
        return {a: min(c / 3, 1.0) for a, c in counts.items()}
    return {a: (c * min((c - 1) / 3, 1.0) + (n - c) * min(c / 3, 1.0)) / n for a, c in counts.items()}


class VQAv2:
    """folder: holds the official names, for part in train2014, val2014:

        v2_OpenEnded_mscoco_<part>_questions.json
        v2_mscoco_<part>_annotations.json
        <part>/COCO_<part>_<12 digits>.jpg

    max_answers: size of the answer vocabulary, the most frequent best-scored answers of the train split.
    """

    name = "vqa_v2"
    PARTS = ("train2014", "val2014")

    def __init__(
        self,
        folder: Path,
        *,
        image_size: int = 224,
        max_answers: int = 3129,
        validation_fraction: float = 0.05,
        seed: int = 0,
        leave_one_out: bool = False,
    ) -> None:
        if not folder.is_dir():
            raise SourceError(f"{folder}: no such folder: expected the official VQA v2 files there")
        self.folder = folder
        self.image_size = image_size
        self.shapes = {Modality.IMAGE: (3, image_size, image_size)}
        self.max_answers = max_answers
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.leave_one_out = leave_one_out
        self._parts: dict[str, list[Question]] = {}

    def _files(self, part: str) -> tuple[Path, Path]:
        return (
            self.folder / f"v2_OpenEnded_mscoco_{part}_questions.json",
            self.folder / f"v2_mscoco_{part}_annotations.json",
        )

    def fingerprint(self) -> dict[str, Any]:
        files = [path for part in self.PARTS for path in self._files(part)]
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
        train, validation = split_by_scene(self._read(self.PARTS[0]), fraction=self.validation_fraction, seed=self.seed)
        return {"train": train, "validation": validation, "test": self._read(self.PARTS[1])}

    def _read(self, part: str) -> list[Question]:
        if part not in self._parts:
            self._parts[part] = self._parse(part)
        return self._parts[part]

    def _parse(self, part: str) -> list[Question]:
        question_file, annotation_file = self._files(part)
        asked = _entries(question_file, "questions", ("question_id", "image_id", "question"))
        noted = _entries(annotation_file, "annotations", ("question_id", "image_id", "answers", "answer_type"))
        annotations = {a["question_id"]: a for a in noted}
        if len(asked) != len(noted):
            raise SourceError(f"{annotation_file}: {len(noted)} annotations for {len(asked)} questions")
        questions = []
        for q in asked:
            annotation = annotations.get(q["question_id"])
            if annotation is None:
                raise SourceError(f"{annotation_file}: no annotation for question {q['question_id']}")
            if annotation["image_id"] != q["image_id"]:
                raise SourceError(
                    f"{annotation_file}: question {q['question_id']} is about picture {annotation['image_id']}, "
                    f"but {question_file.name} says {q['image_id']}"
                )
            given = [a["answer"] for a in annotation["answers"]]
            if not given:
                raise SourceError(f"{annotation_file}: question {q['question_id']} has no answers")
            scores = soft_scores(given, leave_one_out=self.leave_one_out)
            questions.append(
                Question(str(q["question_id"]), q["question"], annotation["answer_type"], q["image_id"], scores)
            )
        return questions

    def corpus(self) -> Sequence[str]:
        return ()

    def media(self, modality: Modality) -> Iterator[MediaItem]:
        for part in self.PARTS:
            for key in sorted({q.scene for q in self._read(part)}):
                path = self.folder / part / f"COCO_{part}_{key:012d}.jpg"
                yield MediaItem(key, read_image(path, size=self.image_size, exact=False))


def _entries(path: Path, field: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(field), list):
        raise SourceError(f"{path}: expected an object with a list {field!r}")
    for i, entry in enumerate(content[field]):
        missing = [key for key in keys if key not in entry]
        if missing:
            raise SourceError(f"{path}: {field}[{i}] lacks {missing}")
    return content[field]
