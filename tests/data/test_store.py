from __future__ import annotations

import json
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_lab.batch import Modality
from omni_lab.data.datamodule import OmniDataModule
from omni_lab.data.sources.base import MediaItem, SourceError
from omni_lab.data.store import FORMAT_VERSION, Store, StoreError, ensure_store
from tests.conftest import TINY_DATA, ShadesOfGray


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    source = ShadesOfGray()
    store = ensure_store(source, tmp_path)
    assert store.manifest["rows"] == {"train": 48, "validation": 16, "test": 16, "image": 20}
    assert store.answers == source.answers()
    rows = {key: row for row, key in enumerate(store.keys(Modality.IMAGE))}
    for medium in source.media(Modality.IMAGE):
        row = rows[medium.key]
        assert np.array_equal(store.media(Modality.IMAGE, row), medium.values)
        assert store.annotations(Modality.IMAGE, row) == medium.annotations
    assert store.families == source.families()
    train = store.questions("train")
    assert train.column("text").to_pylist() == [q.text for q in source.questions()["train"]]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (ensure_store(ShadesOfGray(), tmp_path / name).manifest for name in ("one", "two"))
    assert one == two


def test_a_finished_store_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_store(ShadesOfGray(), tmp_path)
    monkeypatch.setattr(ShadesOfGray, "media", lambda self, modality: pytest.fail("built again"))
    ensure_store(ShadesOfGray(), tmp_path)


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
    with (store.path / "image.arrow").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x07")
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
    black = MediaItem(0, np.zeros((3, 16, 16), np.uint8))
    monkeypatch.setattr(ShadesOfGray, "media", lambda self, modality: iter([black]))
    with pytest.raises(SourceError, match="question '1-3' comes with image 1, which the source lacks"):
        ensure_store(ShadesOfGray(), tmp_path)
    assert Store.open(old.path).manifest == old.manifest
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["shades"]


@pytest.mark.parametrize(
    ("modality", "expected", "media", "message"),
    [
        ("image", (3, 4, 4), [(3, 4, 4), (3, 4, 4)], "shades: image 0 comes twice"),
        ("image", (3, 4, 4), [(3, 2, 4)], r"shades: image 0 is [3, 2, 4] uint8: expected [3, 4, 4] uint8"),
        ("video", (2, 3, 4, 4), [(2, 3, 4, 3)], r"shades: video 0 is [2, 3, 4, 3] uint8: expected [2, 3, 4, 4] uint8"),
        ("video", (2, 3, 4, 4), [(1, 3, 4, 4)], r"shades: video 0 is [1, 3, 4, 4] uint8: expected [2, 3, 4, 4] uint8"),
        ("audio", (), [(5,)], r"shades: audio 0 is [5] uint8: expected [S], S > 0 int16"),
        ("audio", (), [(0,)], r"shades: audio 0 is [0] uint8: expected [S], S > 0 int16"),
    ],
)
def test_media_that_do_not_fit_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    modality: str,
    expected: tuple[int, ...],
    media: list[tuple[int, ...]],
    message: str,
) -> None:
    made = [MediaItem(0, np.zeros(shape, np.uint8)) for shape in media]
    monkeypatch.setattr(ShadesOfGray, "shapes", {Modality(modality): expected})
    monkeypatch.setattr(ShadesOfGray, "media", lambda self, modality: iter(made))
    with pytest.raises(SourceError, match=re.escape(message)):
        ensure_store(ShadesOfGray(), tmp_path)


def test_a_clip_of_the_wrong_type_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShadesOfGray, "shapes", {Modality.VIDEO: (2, 3, 4, 4)})
    clip = MediaItem(7, np.zeros((2, 3, 4, 4), np.float32))
    monkeypatch.setattr(ShadesOfGray, "media", lambda self, modality: iter([clip]))
    with pytest.raises(SourceError, match=r"video 7 is \[2, 3, 4, 4\] float32: expected \[2, 3, 4, 4\] uint8"):
        ensure_store(ShadesOfGray(), tmp_path)


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


@pytest.mark.slow
def test_batches_are_the_same_whoever_loads_them(tmp_path: Path) -> None:
    here = OmniDataModule(ShadesOfGray(), TINY_DATA, root=tmp_path, seed=3)
    config = replace(TINY_DATA, num_workers=2)
    there = OmniDataModule(ShadesOfGray(), config, root=tmp_path, seed=3)
    ids = [[b.ids for b in module.train_dataloader()] for module in (here, there)]
    assert ids[0] == ids[1]
    shutil.rmtree(tmp_path / "shades")
