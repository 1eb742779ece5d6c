from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omni_lab.batch import Modality
from omni_lab.data.media_io import ImageError, read_image
from omni_lab.data.sources.base import SourceError
from omni_lab.data.sources.easy_vqa import EasyVQA
from omni_lab.data.store import ensure_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The official layout with three training pictures and one test picture."""
    root = tmp_path / "easy"
    (root / "answers.txt").parent.mkdir()
    (root / "answers.txt").write_text("yes\nno\nred\n")
    for part, count in (("train", 3), ("test", 1)):
        (root / part / "images").mkdir(parents=True)
        questions = [["is it red?", "yes", i] for i in range(count)] + [["what color is it?", "red", 0]]
        (root / part / "questions.json").write_text(json.dumps(questions))
        for i in range(count):
            Image.fromarray(np.full((64, 64, 3), i, dtype=np.uint8)).save(root / part / "images" / f"{i}.png")
    return root


def test_the_official_counts() -> None:
    source = EasyVQA()
    questions = source.questions()
    assert len(questions["train"]) + len(questions["validation"]) == 38575
    assert len(questions["test"]) == 9673
    assert len(source.answers()) == 13
    pictures = {split: {q.scene for q in qs} for split, qs in questions.items()}
    assert [len(pictures[s]) for s in ("train", "validation", "test")] == [3600, 400, 1000]
    assert not pictures["train"] & pictures["validation"]
    assert not (pictures["train"] | pictures["validation"]) & pictures["test"]
    assert {q.family for q in questions["test"]} == {"yes/no", "shape", "colour"}


def test_the_validation_cut_depends_on_its_seed_alone() -> None:
    cut = [{q.scene for q in EasyVQA(seed=s).questions()["validation"]} for s in (0, 0, 1)]
    assert cut[0] == cut[1] != cut[2]


def test_a_small_set_in_the_official_layout(folder: Path, tmp_path: Path) -> None:
    store = ensure_store(EasyVQA(folder), tmp_path)
    assert store.manifest["rows"]["image"] == 4
    assert store.image(2).max() == 2


def test_an_edited_folder_makes_the_store_outdated(folder: Path, tmp_path: Path) -> None:
    before = EasyVQA(folder).fingerprint()
    Image.new("RGB", (64, 64), "red").save(folder / "train" / "images" / "2.png")
    assert EasyVQA(folder).fingerprint() != before
    assert ensure_store(EasyVQA(folder), tmp_path).image(2)[0].min() == 255


def test_corrupt_and_missing_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    victim = folder / "train" / "images" / "1.png"
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"1\.png: not a readable image"):
        ensure_store(EasyVQA(folder), tmp_path).build(Modality.IMAGE)
    victim.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"1\.png: not a readable image"):
        ensure_store(EasyVQA(folder), tmp_path).build(Modality.IMAGE)
    victim.unlink()
    with pytest.raises(ImageError, match=r"1\.png: no such image file"):
        ensure_store(EasyVQA(folder), tmp_path).build(Modality.IMAGE)


@pytest.mark.parametrize(("mode", "size"), [("L", (64, 64)), ("RGBA", (64, 64)), ("RGB", (32, 64))])
def test_a_picture_of_the_wrong_mode_or_size_is_named(folder: Path, mode: str, size: tuple[int, int]) -> None:
    path = folder / "train" / "images" / "0.png"
    Image.new(mode, size).save(path)
    with pytest.raises(ImageError, match=r"0\.png: got mode .* expected RGB, \(64, 64\)"):
        read_image(path, size=64, exact=True)
    assert read_image(path, size=64, exact=False).shape == (3, 64, 64)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", size=8, exact=False) == 255).all()


def test_an_unknown_answer_is_named(folder: Path) -> None:
    (folder / "train" / "questions.json").write_text(json.dumps([["is it red?", "yess", 0]]))
    with pytest.raises(SourceError, match=r"unknown answer \(entry 0 of .*questions.json\) 'yess'; .* is 'yes'"):
        EasyVQA(folder).questions()


def test_truncated_missing_and_malformed_files_are_named(folder: Path) -> None:
    questions = folder / "train" / "questions.json"
    text = questions.read_text()
    questions.write_text(text[: len(text) // 2])
    with pytest.raises(SourceError, match=r"train/questions.json: not complete JSON"):
        EasyVQA(folder).questions()
    questions.write_text('[["is it red?", "yes"]]')
    with pytest.raises(SourceError, match="entry 0 is .* expected"):
        EasyVQA(folder).questions()
    questions.unlink()
    with pytest.raises(SourceError, match="no such file"):
        EasyVQA(folder).questions()
    (folder / "answers.txt").write_text("")
    with pytest.raises(SourceError, match="answers.txt: expected one answer a line"):
        EasyVQA(folder).answers()
