from __future__ import annotations

import json
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from omni_lab.batch import Modality
from omni_lab.data import store as store_module
from omni_lab.data.datamodule import OmniDataModule, VQADataset
from omni_lab.data.sources.base import MediaItem, Question, SourceError
from omni_lab.data.store import FORMAT_VERSION, Store, StoreError, ensure_store
from omni_lab.worlds.emoji_world import EmojiWorld
from tests.conftest import TINY_DATA, ShadesOfGray

IMAGE = Modality.IMAGE


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The keys of every request for media."""
    found, plain = list[list[int]](), ShadesOfGray.media

    def media(self: ShadesOfGray, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        found.append(list(keys))
        return plain(self, modality, keys)

    monkeypatch.setattr(ShadesOfGray, "media", media)
    return found


class SlowShades(ShadesOfGray):
    """Notes each request for media in a file beside the store, and takes its time."""

    folder: Path

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        with (self.folder / "asked").open("a") as file:
            file.write(f"{keys[0]}\n")
        time.sleep(1)
        yield from super().media(modality, keys)


def first_shade(store: Store) -> int:
    """Of the validation split."""
    return int(store.image(12)[0, 0, 0])


def chunks_of(store: Store) -> set[str]:
    return {name for name in store.files if "-" in name}


def cut_short(file: Path) -> str:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    return r"\d+ bytes: expected \d+"


def alter(file: Path) -> str:
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\x07")
    return "content differs from its checksum"


def forget(file: Path) -> str:
    file.with_suffix(".json").unlink()
    return "nothing to check it by"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    source = ShadesOfGray()
    store = ensure_store(source, tmp_path)
    assert store.manifest["rows"] == {"train": 48, "validation": 16, "test": 16, "image": 20}
    assert store.answers == source.answers()
    rows = {key: row for row, key in enumerate(store.keys(IMAGE))}
    for medium in source.media(IMAGE, range(20)):
        row = rows[medium.key]
        assert np.array_equal(store.media(IMAGE, row), medium.values)
        assert store.annotations(IMAGE, row) == medium.annotations
    assert store.families == source.families()
    train = store.questions("train")
    assert train.column("text").to_pylist() == [q.text for q in source.questions()["train"]]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (ensure_store(ShadesOfGray(), tmp_path / name) for name in ("one", "two"))
    assert one.manifest == two.manifest
    one.build(IMAGE)
    for row in reversed(range(20)):
        two.image(row)
    assert one.files == two.files and len(one.files) == len(one.manifest["files"]) + 3


def test_media_are_built_once_and_only_where_they_are_read(tmp_path: Path, asked: list[list[int]]) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    before, index = store.bytes, sum(file["bytes"] for file in store.manifest["files"].values())
    assert asked == [] and before == index
    test = VQADataset(store, "test")
    for i in range(len(test)):
        test[i]
    assert asked == [[16, 17, 18, 19]] and store.bytes > before
    assert chunks_of(store) == {"image-0002.arrow"}
    again = ensure_store(ShadesOfGray(), tmp_path)
    again.build(IMAGE, [17])
    assert again.image(19).any() and len(asked) == 1
    again.build(IMAGE)
    assert asked[1:] == [[*range(16)]] and len(chunks_of(again)) == 3


def test_chunks_are_small_and_of_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_ROWS", 5)
    store = ensure_store(ShadesOfGray(), tmp_path)
    assert store.manifest["chunks"] == {"image": [0, 5, 10, 12, 16, 20]}
    assert [store.annotations(IMAGE, row)["shade"] for row in range(20)] == [210, 40] * 10
    for row in (-1, 20):
        with pytest.raises(IndexError, match=f"row of image must be from 0 to 19: got {row}"):
            store.image(row)


@pytest.mark.parametrize("damage", [cut_short, alter, forget])
def test_a_damaged_chunk_is_built_again_or_refused(
    tmp_path: Path, damage: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    store.build(IMAGE)
    files, message = store.files, damage(store.path / "image-0001.arrow")
    with pytest.raises(StoreError, match=f"image-0001.arrow: {message}"):  # a wrong length at once
        Store.open(store.path).image(12)
    again = ensure_store(ShadesOfGray(), tmp_path)
    assert again.image(0).any() and "again" not in caplog.text
    assert again.image(12)[0, 0, 0] == 210
    assert "building media again" in caplog.text and "image-0001.arrow" in caplog.text
    assert Store.open(store.path).files == files


def test_a_store_opens_while_another_process_builds_media(tmp_path: Path) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    with FileLock(tmp_path / ".shades.lock"):
        assert ensure_store(ShadesOfGray(), tmp_path).manifest == store.manifest


def test_without_its_source_a_store_gives_what_is_built(tmp_path: Path) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    store.build(IMAGE, [0])
    alone = Store.open(store.path)
    assert np.array_equal(alone.image(0), store.image(0))
    with pytest.raises(StoreError, match=r"image-0001.arrow: missing, and the store was opened without its source"):
        alone.image(12)


def test_media_of_a_source_that_has_changed_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ensure_store(ShadesOfGray(), tmp_path)
    old.build(IMAGE, [0])
    chunk = {f: f.read_bytes() for f in old.path.glob("image-0000.*")}
    monkeypatch.setattr(ShadesOfGray, "version", 2)
    with pytest.raises(StoreError, match=r"outdated.*set_version: 1 -> 2"):
        old.image(12)
    new = ensure_store(ShadesOfGray(), tmp_path)
    for file, content in chunk.items():  # from a process that still has the old store
        file.write_bytes(content)
    with pytest.raises(StoreError, match=r"image-0000.arrow: belongs to another version of the store"):
        Store.open(new.path)
    assert new.image(0).any() and Store.open(new.path).image(0).any()


def test_an_interrupted_build_leaves_whole_chunks_and_goes_on(
    tmp_path: Path, asked: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plain = ensure_store(ShadesOfGray(), tmp_path), ShadesOfGray.media

    def stops(self: ShadesOfGray, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        yield from islice(plain(self, modality, keys), 14)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShadesOfGray, "media", stops)
        store.build(IMAGE)
    assert chunks_of(store) == {"image-0000.arrow"}
    (store.path / ".image-0001.77.part").write_text("of a process that was killed")
    ensure_store(ShadesOfGray(), tmp_path).build(IMAGE)
    assert asked[1:] == [[*range(12, 20)]], "the first twelve are there"
    assert len(Store.open(store.path).files) == len(store.manifest["files"]) + 3
    assert not list(store.path.glob(".*"))


def test_two_processes_at_once_build_a_chunk_once(tmp_path: Path) -> None:
    source = SlowShades()
    source.folder = tmp_path
    store = ensure_store(source, tmp_path)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        shades = list(pool.map(first_shade, [store] * 2))
    assert shades == [210, 210]
    assert len((tmp_path / "asked").read_text().split()) == 1, "the other has waited"


@pytest.mark.parametrize("workers", [0, 2])
def test_media_are_built_before_workers_start(tmp_path: Path, asked: list[list[int]], workers: int) -> None:
    """They are asked for in this process: what workers ask for does not show here."""
    data = OmniDataModule(ShadesOfGray(), replace(TINY_DATA, num_workers=workers), root=tmp_path)
    loader = data.train_dataloader()
    assert asked == []
    for _ in loader:
        pass
    assert asked == [[*range(12)]]
    data.prepare_data()
    assert asked[1:] == [[*range(12, 16)]]
    data.dataset("test").latents = {IMAGE: lambda row: torch.zeros(2, 4)}
    assert len(list(data.test_dataloader())) > 0 and len(asked) == 2, "latents stand for them"


@pytest.mark.parametrize("name", ["image.arrow", "train.arrow", "tokenizer.json"])
def test_a_store_cut_short_is_refused_and_rebuilt(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    victim = store.path / name
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size // 2)
    with pytest.raises(StoreError, match=rf"{name}: \d+ bytes: expected \d+"):
        Store.open(store.path)
    assert ensure_store(ShadesOfGray(), tmp_path).manifest == store.manifest
    assert "rebuilding the store" in caplog.text and name in caplog.text


def test_an_altered_byte_is_noticed(tmp_path: Path) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    alter(store.path / "image.arrow")
    with pytest.raises(StoreError, match="image.arrow: content differs"):
        Store.open(store.path)
    Store.open(store.path, verify=False)


def test_missing_files_versions_and_manifests_are_named(tmp_path: Path) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    with pytest.raises(StoreError, match="no store there"):
        Store.open(tmp_path / "elsewhere")
    (store.path / "test.arrow").unlink()
    with pytest.raises(StoreError, match="test.arrow: missing"):
        Store.open(store.path)
    edit_manifest(store.path, version=0)
    with pytest.raises(StoreError, match=f"format version 0: expected {FORMAT_VERSION}"):
        Store.open(store.path)
    for text in ("[]", json.dumps({"version": FORMAT_VERSION})):
        (store.path / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match="broken manifest"):
            Store.open(store.path)
    (store.path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"broken manifest .*manifest.json: not complete JSON"):
        Store.open(store.path)


def test_a_store_of_another_source_is_outdated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    monkeypatch.setattr(ShadesOfGray, "version", 2)
    with pytest.raises(StoreError, match=r"outdated.*set_version: 1 -> 2"):
        Store.open(store.path, ShadesOfGray())
    assert ensure_store(ShadesOfGray(), tmp_path).manifest["source"]["set_version"] == 2


def test_a_build_that_fails_leaves_nothing_and_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ensure_store(ShadesOfGray(), tmp_path)
    monkeypatch.setattr(ShadesOfGray, "version", 2)
    monkeypatch.setattr(ShadesOfGray, "answers", lambda self: ["yes"])
    with pytest.raises(SourceError, match="at least two answers to choose from"):
        ensure_store(ShadesOfGray(), tmp_path)
    assert Store.open(old.path).manifest == old.manifest
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["shades"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([12], "question '13-0' comes with image 13, which the source lacks$"),
        ([12, 14, 13, 15], "question '13-0' comes with image 13, which the source lacks: it yields 14$"),
        ([12, 13, 14, 15, 15], "image 15 comes, but 4 others were asked for$"),
    ],
)
def test_other_media_than_asked_for_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[int], message: str
) -> None:
    store, plain = ensure_store(ShadesOfGray(), tmp_path), ShadesOfGray.media
    monkeypatch.setattr(ShadesOfGray, "media", lambda self, modality, keys: plain(self, modality, given))
    with pytest.raises(SourceError, match=f"shades: {message}"):
        store.image(13)


@pytest.mark.parametrize(
    ("modality", "expected", "media", "dtype", "message"),
    [
        ("image", (3, 4, 4), [(3, 2, 4)], np.uint8, r"image 0 is [3, 2, 4] uint8: expected [3, 4, 4] uint8"),
        (
            "video",
            (2, 3, 4, 4),
            [(2, 3, 4, 3)],
            np.uint8,
            r"video 0 is [2, 3, 4, 3] uint8: expected [2, 3, 4, 4] uint8",
        ),
        (
            "video",
            (2, 3, 4, 4),
            [(1, 3, 4, 4)],
            np.uint8,
            r"video 0 is [1, 3, 4, 4] uint8: expected [2, 3, 4, 4] uint8",
        ),
        (
            "video",
            (2, 3, 4, 4),
            [(2, 3, 4, 4)],
            np.float32,
            "video 0 is [2, 3, 4, 4] float32: expected [2, 3, 4, 4] uint8",
        ),
        ("audio", (), [(5,)], np.uint8, r"audio 0 is [5] uint8: expected [S], S > 0 int16"),
        ("audio", (), [(0,)], np.uint8, r"audio 0 is [0] uint8: expected [S], S > 0 int16"),
    ],
)
def test_media_that_do_not_fit_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    modality: str,
    expected: tuple[int, ...],
    media: list[tuple[int, ...]],
    dtype: type,
    message: str,
) -> None:
    made = [MediaItem(0, np.zeros(shape, dtype)) for shape in media]
    monkeypatch.setattr(ShadesOfGray, "shapes", {Modality(modality): expected})
    questions = [Question(str(i), "?", "shade", i, {"dark": 1.0}, {Modality(modality): i}) for i in range(2)]
    monkeypatch.setattr(ShadesOfGray, "questions", lambda self: {"train": questions, "validation": [], "test": []})
    monkeypatch.setattr(ShadesOfGray, "media", lambda self, modality, keys: iter(made))
    with pytest.raises(SourceError, match=re.escape(f"shades: {message}")):
        ensure_store(ShadesOfGray(), tmp_path).build(Modality(modality))


def test_what_a_killed_build_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".shades.12345.part").mkdir()
    ensure_store(ShadesOfGray(), tmp_path)
    assert not (tmp_path / ".shades.12345.part").exists()


def test_two_builders_at_once_build_one_store(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        manifests = list(pool.map(lambda _: ensure_store(ShadesOfGray(), tmp_path).manifest, range(4)))
    assert all(manifest == manifests[0] for manifest in manifests)


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the store there"):
        ensure_store(ShadesOfGray(), tmp_path / "file" / "stores")


def test_worker_processes_reopen_the_store(tmp_path: Path) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.image(3), store.image(3))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(first_shade, store).result() == 210
    assert chunks_of(store) == {"image-0000.arrow", "image-0001.arrow"}, "the worker has built one"


def test_a_world_is_pickled_without_its_caches() -> None:
    world = EmojiWorld(things=8, scenes={"train": 4, "validation": 2, "test": 2}, speech=False)
    size = len(pickle.dumps(world))
    expected = [item.values for item in world.media(IMAGE, [3, 6])]
    again = pickle.loads(pickle.dumps(world))
    assert len(pickle.dumps(world)) == size and again == world
    assert all(np.array_equal(a.values, b) for a, b in zip(again.media(IMAGE, [3, 6]), expected, strict=True))


@pytest.mark.slow
def test_batches_are_the_same_whoever_loads_them(tmp_path: Path) -> None:
    here = OmniDataModule(ShadesOfGray(), TINY_DATA, root=tmp_path, seed=3)
    config = replace(TINY_DATA, num_workers=2)
    there = OmniDataModule(ShadesOfGray(), config, root=tmp_path, seed=3)
    ids = [[b.ids for b in module.train_dataloader()] for module in (here, there)]
    assert ids[0] == ids[1]
    shutil.rmtree(tmp_path / "shades")
