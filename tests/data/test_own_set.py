"""A set of one's own: what it reads, and what it says of bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, SourceError
from omni_lab.data.sources.new_set import create_own_set, describe_own_set
from omni_lab.data.sources.own_set import OwnSet, list_own_sets, sets_folder
from omni_lab.data.store import ensure_store

COLORS = ("red", "green", "blue")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures of a colour, a sound and a clip each, and a root folder of its own."""
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    for folder in ("pics", "sounds", "clips"):
        (tmp_path / folder).mkdir()
    for i in range(12):
        picture = Image.new("RGB", (40, 30), COLORS[i % 3])
        picture.save(tmp_path / "pics" / f"{i}.jpg")
        soundfile.write(tmp_path / "sounds" / f"{i}.wav", np.sin(np.arange(4000) * (i + 1) / 50), 8000)
        frames = [Image.new("RGB", (40, 30), (20 * i, 10 * f, 0)) for f in range(3)]
        frames[0].save(tmp_path / "clips" / f"{i}.gif", save_all=True, append_images=frames[1:])
    return tmp_path


def write(files: Path, *lines: str) -> Path:
    (files / "q.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files / "q.csv"


def usual(files: Path) -> Path:
    rows = [f"{i}.jpg,{question},{answer}" for i in range(12) for question, answer in pairs(i)]
    return write(files, "image,question,answer", *rows)


def pairs(i: int) -> list[tuple[str, str]]:
    return [("which colour is it?", COLORS[i % 3]), ("is it red?", "yes" if i % 3 == 0 else "no")]


def test_a_folder_and_a_csv_file_become_a_set(files: Path) -> None:
    own = create_own_set("colours", usual(files), images=files / "pics")
    assert list_own_sets() == ["colours"] and own.directory == sets_folder() / "colours"
    assert own.modalities == (Modality.TEXT, Modality.IMAGE) and own.shapes == {Modality.IMAGE: (3, 64, 64)}
    questions = own.questions()
    assert sum(map(len, questions.values())) == 24 and all(questions[split] for split in SPLITS)
    scenes = [{q.scene for q in questions[split]} for split in SPLITS]
    assert sum(map(len, scenes)) == len(set().union(*scenes)) == 12, "both questions about a picture are in one split"
    store = ensure_store(OwnSet(own.directory), files / "stores")
    assert store.answers == ["blue", "green", "no", "red", "yes"]
    table = store.questions("train")
    row, answer = table.column("image")[0].as_py(), table.column("answers")[0].as_py()[0]
    strongest = COLORS[int(store.image(row).mean((1, 2)).argmax())]
    assert answer == strongest
    described = "\n".join(describe_own_set(own))
    assert "12 files of image" in described and "10 scenes to train are few" in described


def test_all_media_and_several_right_answers(files: Path) -> None:
    rows = [f"{i}.jpg,{i}.wav,{i}.gif,what is it?,{COLORS[i % 3]}|thing,colour" for i in range(12)]
    csv = write(files, "image,audio,video,question,answer,kind", *rows)
    folders = {"images": files / "pics", "audio": files / "sounds", "video": files / "clips"}
    own = create_own_set("everything", csv, frames=4, frame_size=16, **folders)
    question = own.questions()["train"][0]
    assert {*question.media_keys} == {Modality.IMAGE, Modality.AUDIO, Modality.VIDEO} and question.family == "colour"
    assert question.scores["thing"] == 1.0 and len(question.scores) == 2
    (clip,) = own.media(Modality.VIDEO, [question.media_keys[Modality.VIDEO]])
    (sound,) = own.media(Modality.AUDIO, [question.media_keys[Modality.AUDIO]])
    assert clip.values.shape == (4, 3, 16, 16) and sound.values.dtype == np.int16 and len(sound.values) == 8000


def test_one_file_has_one_name(files: Path) -> None:
    rows = [f"{dot}{i}.jpg,is it red?,{'yes' if i % 3 == 0 else 'no'}" for i in range(12) for dot in ("", "./")]
    own = create_own_set("names", write(files, "image,question,answer", *rows), images=files / "pics")
    assert len(own.files) == 12


def test_media_that_were_moved_are_named(files: Path) -> None:
    own = create_own_set("colours", usual(files), images=files / "pics")
    (files / "pics").rename(files / "elsewhere")
    with pytest.raises(SourceError, match=r"colours/set.yaml: its media are not where it says .*pics/0.jpg"):
        OwnSet(own.directory).fingerprint()


def test_the_column_split_decides(files: Path) -> None:
    rows = [f"{i}.jpg,is it red?,{'yes' if i % 3 == 0 else 'no'},{SPLITS[i // 4]}" for i in range(12)]
    own = create_own_set("split", write(files, "image,question,answer,split", *rows), images=files / "pics")
    assert {split: len(found) for split, found in own.questions().items()} == dict.fromkeys(SPLITS, 4)


def test_what_changes_changes_the_fingerprint(files: Path) -> None:
    own = create_own_set("colours", usual(files), images=files / "pics")
    before = own.fingerprint()
    Image.new("RGB", (50, 50), "white").save(files / "pics" / "3.jpg")
    assert OwnSet(own.directory).fingerprint() != before


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,question"], r"q.csv: no column 'answer': its columns are \['image', 'question'\]"),
        (["image,question,ansver"], r"unknown column of .*q.csv 'ansver'; the nearest .* is 'answer'"),
        (["image;question;answer"], r"q.csv: its columns are separated by ';': expected commas"),
        (["image,question,answer", "0.jpg,what?,|"], r"line 2 has no answer: got '\|'"),
        (["image,question,answer"], r"q.csv: no questions: expected a line for each"),
        (["image,question,answer", "0.jpg,what?,"], r"q.csv: line 2 has no answer"),
        (["image,question,answer", "0.jpg,what, then?,yes"], r"line 2 has more values than columns: expected quotes"),
        (["image,question,answer", ",what?,yes"], r"line 2 names no file: expected one in a column of \['image'\]"),
        (
            ["audio,question,answer", "0.wav,what?,yes"],
            r"line 2 names a file in the column 'audio', of which no folder",
        ),
        (["image,question,answer,split", "0.jpg,what?,yes,dev"], r"line 2 has the split 'dev': expected one of"),
        (["image,question,answer", "0.jpg,what?,yes"], r"q.csv: 1 different answers: expected 2 to 1000"),
        (
            ["image,question,answer", "0.jpg,what?,yes", "none.jpg,what?,no", "2.jpg,what?,no"],
            r"none.jpg: no such image file \(named by line 3 of .*q.csv\)",
        ),
        (
            ["image,question,answer,split", "0.jpg,what?,yes,train", "0.jpg,why?,no,test"],
            r"line 3 is in the split 'test', but shares a file with a line in 'train'",
        ),
        (["image,question,answer", "0.jpg,what?,yes", "1.jpg,what?,no"], r"2 scenes leave the split 'train' empty"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(files: Path, lines: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        create_own_set("broken", write(files, *lines), images=files / "pics")
    assert list_own_sets() == [] and not list(sets_folder().glob("*"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("My Set", {}, "must be lower case letters, digits and underscores: got 'My Set'"),
        ("mine", {"images": None}, "needs a folder of images, audio or video: got none"),
        ("mine", {"images": "nowhere"}, "images: nowhere: no such folder"),
    ],
)
def test_bad_settings_are_named(files: Path, name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        create_own_set(name, usual(files), **({"images": files / "pics"} | settings))


def test_a_broken_picture_is_named_with_its_line_and_an_older_set_stays(files: Path) -> None:
    own = create_own_set("colours", usual(files), images=files / "pics")
    before = (own.directory / "questions.csv").read_bytes()
    with pytest.raises(SourceError, match="there is a set of this name"):
        create_own_set("colours", usual(files), images=files / "pics")
    (files / "pics" / "5.jpg").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"5.jpg: not a readable image .* \(named by line 12 of .*q.csv\)"):
        create_own_set("colours", usual(files), images=files / "pics", replace=True)
    assert (own.directory / "questions.csv").read_bytes() == before


def test_a_file_that_is_no_set_is_named(files: Path) -> None:
    with pytest.raises(SourceError, match=r"no set there \(no set.yaml\); `omni-lab new` makes one"):
        OwnSet(files / "nothing")
    (files / "odd").mkdir()
    (files / "odd" / "set.yaml").write_text("images: 3\n")
    with pytest.raises(ValueError, match=r"odd/set.yaml.images must be str: got 3"):
        OwnSet(files / "odd")
