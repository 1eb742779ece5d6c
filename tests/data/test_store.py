from __future__ import annotations

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from omni_lab.data import OmniDataModule, Store, StoreError, ensure_store
from omni_lab.data.sources import SourceError
from tests.conftest import TINY_DATA, ShadesOfGray


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    source = ShadesOfGray()
    store = ensure_store(source, tmp_path)
    assert store.manifest["rows"] == {"train": 48, "validation": 16, "test": 16, "pictures": 20}
    assert store.answers == source.answers()
    rows = {key: row for row, key in enumerate(store.picture_keys)}
    for key, picture in source.pictures():
        assert np.array_equal(store.picture(rows[key]), picture)
    train = store.questions("train")
    assert train.column("text").to_pylist() == [q.text for q in source.questions()["train"]]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (ensure_store(ShadesOfGray(), tmp_path / name).manifest for name in ("one", "two"))
    assert one == two


def test_a_finished_store_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_store(ShadesOfGray(), tmp_path)
    monkeypatch.setattr(ShadesOfGray, "pictures", lambda self: pytest.fail("built again"))
    ensure_store(ShadesOfGray(), tmp_path)


@pytest.mark.parametrize("name", ["pictures.arrow", "train.arrow", "tokenizer.json"])
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
    with (store.path / "pictures.arrow").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x07")
    with pytest.raises(StoreError, match="pictures.arrow: content differs"):
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
    with pytest.raises(StoreError, match="format version 0: expected 1"):
        Store.open(store.path)
    for text in ("[]", '{"version": 1}'):
        (store.path / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match="broken manifest"):
            Store.open(store.path)
    (store.path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest.json: broken manifest"):
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
    monkeypatch.setattr(ShadesOfGray, "pictures", lambda self: iter([(0, np.zeros((3, 16, 16), np.uint8))]))
    with pytest.raises(SourceError, match="question '1-0' is about picture 1, not among the pictures"):
        ensure_store(ShadesOfGray(), tmp_path)
    assert Store.open(old.path).manifest == old.manifest
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["shades"]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([(0, (3, 16, 16)), (0, (3, 16, 16))], "picture 0 comes twice"),
        ([(0, (3, 8, 16))], r"picture 0 is \[3, 8, 16\] uint8: expected \[3, 16, 16\] uint8"),
    ],
)
def test_pictures_that_do_not_fit_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[tuple[int, tuple[int, ...]]], message: str
) -> None:
    made = [(key, np.zeros(shape, np.uint8)) for key, shape in pictures]
    monkeypatch.setattr(ShadesOfGray, "pictures", lambda self: iter(made))
    with pytest.raises(SourceError, match=message):
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
    assert np.array_equal(again.picture(3), store.picture(3))


@pytest.mark.slow
def test_batches_are_the_same_whoever_loads_them(tmp_path: Path) -> None:
    here = OmniDataModule(ShadesOfGray(), TINY_DATA, root=tmp_path, seed=3)
    config = TINY_DATA.__class__(images_per_batch=3, questions_per_image=2, num_workers=2)
    there = OmniDataModule(ShadesOfGray(), config, root=tmp_path, seed=3)
    ids = [[b.ids for b in module.train_dataloader()] for module in (here, there)]
    assert ids[0] == ids[1]
    shutil.rmtree(tmp_path / "shades")
