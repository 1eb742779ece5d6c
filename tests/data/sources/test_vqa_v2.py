from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omni_lab.data.datamodule import VQADataset
from omni_lab.data.sources.base import SourceError
from omni_lab.data.sources.vqa_v2 import VQAv2, normalize_answer, soft_scores
from omni_lab.data.store import ensure_store
from omni_lab.evaluation.predictions import predict
from omni_lab.training.fit import load_or_train
from omni_lab.training.recipes import Recipe
from tests.conftest import TINY_DATA, TINY_MODEL, TINY_TRAINING

PART = "train2014"


def write(folder: Path, part: str, questions: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    (folder / f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps({"annotations": annotations}))


def entries(first: int, pictures: list[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    said = [["yes"] * 7 + ["no"] * 2 + ["maybe"], ["no"] * 9 + ["never"]]  # of even and of odd questions
    questions = [
        {"question_id": first + i, "image_id": p, "question": f"Is it number {i}?"} for i, p in enumerate(pictures)
    ]
    annotations = [
        {
            "question_id": first + i,
            "image_id": p,
            "answer_type": "yes/no",
            "answers": [
                {"answer": a, "answer_confidence": "yes", "answer_id": k + 1} for k, a in enumerate(said[i % 2])
            ],
        }
        for i, p in enumerate(pictures)
    ]
    return questions, annotations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The official layout: five training pictures, two validation pictures."""
    root = tmp_path / "vqa"
    root.mkdir()
    for part, first, pictures in ((PART, 1000, [1, 1, 2, 3, 4, 5]), ("val2014", 5000, [9, 10])):
        write(root, part, *entries(first, pictures))
        (root / part).mkdir()
        for key in set(pictures):
            mode, size = ("L", (20, 10)) if key == 2 else ("RGB", (30, 40))
            Image.new(mode, size, 128).save(root / part / f"COCO_{part}_{key:012d}.jpg")
    return root


def source(folder: Path, **options: Any) -> VQAv2:
    return VQAv2(folder, image_size=16, validation_fraction=0.2, **options)


def test_the_official_files_become_a_store(folder: Path, tmp_path: Path) -> None:
    store = ensure_store(source(folder, max_answers=2), tmp_path)
    assert store.manifest["rows"]["image"] == 7
    assert store.manifest["rows"]["test"] == 2
    assert store.image(0).shape == (3, 16, 16)
    assert store.answers == ["no", "yes"], "each question's best answer"
    dataset = VQADataset(store, "test")
    expected = [[2 / 3, 1.0], [1.0, 0.0]]
    assert np.allclose(dataset.scores, expected), "answers outside the vocabulary earn nothing and break nothing"


def test_a_model_trains_on_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    trained = load_or_train(Recipe("vqa_v2", "tiny", source(folder), TINY_MODEL, TINY_DATA, TINY_TRAINING))
    result = predict(trained.model, trained.data.test_dataloader(), trained.data.dataset("test"))
    assert result.score[0] in (pytest.approx(2 / 3), 1.0) and result.score[1] in (0.0, 1.0)


@pytest.mark.parametrize(("count", "score"), [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (10, 1.0)])
def test_soft_accuracy(count: int, score: float) -> None:
    people = ["cat"] * count + [f"other {i}" for i in range(10 - count)]
    assert soft_scores(people)["cat"] == pytest.approx(score)


@pytest.mark.parametrize(("count", "score"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)])
def test_soft_accuracy_as_the_official_script_averages_it(count: int, score: float) -> None:
    people = ["cat"] * count + [f"other {i}" for i in range(10 - count)]
    assert soft_scores(people, leave_one_out=True)["cat"] == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two", "2"),
        ("the  Cat", "cat"),
        ("an apple", "apple"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("1,000", "1000"),
        ("yes, it is", "yes it is"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("e.g.", "eg"),
        ("3.5", "3.5"),
        ("what?", "what"),
        ("none", "0"),
    ],
)
def test_normalisation(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


def test_answers_that_agree_to_the_letter_are_left_alone() -> None:
    assert soft_scores(["The Two"] * 10) == {"The Two": 1.0}
    assert set(soft_scores(["The Two"] * 9 + ["cat"])) == {"2", "cat"}


def test_missing_and_truncated_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        VQAv2(tmp_path / "nowhere")
    annotations = folder / f"v2_mscoco_{PART}_annotations.json"
    text = annotations.read_text()
    annotations.write_text(text[:-20])
    with pytest.raises(SourceError, match="annotations.json: not complete JSON"):
        source(folder).questions()
    annotations.write_text('{"annotation": []}')
    with pytest.raises(SourceError, match="expected an object with a list 'annotations'"):
        source(folder).questions()
    annotations.unlink()
    with pytest.raises(SourceError, match="annotations.json: no such file"):
        source(folder).questions()


def test_a_missing_photograph_is_named(folder: Path, tmp_path: Path) -> None:
    store = ensure_store(source(folder), tmp_path)
    (folder / "val2014" / f"COCO_val2014_{9:012d}.jpg").unlink()
    assert store.image(0).any()
    with pytest.raises(SourceError, match=r"no image train2014/.*0009\.jpg or val2014/COCO_val2014_000000000009\.jpg"):
        store.image(5)


def test_inconsistent_files_are_named(folder: Path) -> None:
    questions, annotations = entries(1000, [1, 2])
    write(folder, PART, questions, annotations[:1])
    with pytest.raises(SourceError, match="1 annotations for 2 questions"):
        source(folder).questions()
    write(folder, PART, questions, [annotations[0], annotations[1] | {"question_id": 77}])
    with pytest.raises(SourceError, match="no annotation for question 1001"):
        source(folder).questions()
    write(folder, PART, questions, [annotations[0], annotations[1] | {"image_id": 5}])
    with pytest.raises(SourceError, match="question 1001 is about image 5"):
        source(folder).questions()
    write(folder, PART, questions, [annotations[0], annotations[1] | {"answers": []}])
    with pytest.raises(SourceError, match="question 1001 has no answers"):
        source(folder).questions()
    write(folder, PART, [{"question_id": 1}], annotations[:1])
    with pytest.raises(SourceError, match=r"questions\[0\] lacks \['image_id', 'question'\]"):
        source(folder).questions()
