"""The memory-mapped store: built once from any source, read without copying.

One folder per set, holding Arrow IPC files (`pyarrow`), the tokenizer trained on the train split, and `manifest.json`
with the format version, what the store was built from, and the size and SHA-256 of every file. It is built under a
temporary name and renamed at the end, so a folder under its final name was complete once; whether it still is,
`Store.open` checks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from tokenizers import Tokenizer

from omni_lab.data.sources import SPLITS, SourceError, VqaSource
from omni_lab.data.tokenizer import load_tokenizer, train_tokenizer
from omni_lab.progress import track

FORMAT_VERSION = 1
PICTURES_PER_BATCH = 1024
log = logging.getLogger(__name__)


class StoreError(RuntimeError):
    """A store that is missing, broken, or built from something else: the message says which and where."""


class Store:
    """An opened store. Tables are memory-mapped: opening costs no reading, and workers share the pages."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._tables = {split: _map_table(path / f"{split}.arrow") for split in (*SPLITS, "pictures")}
        self._pixels = self._tables["pictures"].column("pixels")

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path, self.manifest)

    @classmethod
    def open(cls, path: Path, source: VqaSource | None = None, *, verify: bool = True) -> Store:
        """Opens a finished store. Raises StoreError if it is missing, incomplete, altered, of another format version,
        or (given `source`) built from something else. verify: also recompute the checksums.
        """
        manifest_path = path / "manifest.json"
        try:
            manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise StoreError(f"{path}: no store there (no manifest.json)") from error
        except json.JSONDecodeError as error:
            raise StoreError(f"{manifest_path}: broken manifest ({error})") from error
        if not isinstance(manifest, dict):
            raise StoreError(f"{manifest_path}: broken manifest (not an object)")
        if manifest.get("version") != FORMAT_VERSION:
            raise StoreError(f"{path}: store of format version {manifest.get('version')}: expected {FORMAT_VERSION}")
        if not {"source", "answers", "rows", "files"} <= manifest.keys():
            raise StoreError(f"{manifest_path}: broken manifest (it has only {sorted(manifest)})")
        if source is not None:
            expected = _built_from(source)
            differing = sorted(k for k in expected | manifest["source"] if expected.get(k) != manifest["source"].get(k))
            if differing:
                pairs = ", ".join(f"{k}: {manifest['source'].get(k)!r} -> {expected.get(k)!r}" for k in differing)
                raise StoreError(f"{path}: outdated, built from something else ({pairs})")
        for name, facts in manifest["files"].items():
            file = path / name
            size = file.stat().st_size if file.exists() else None
            if size != facts["bytes"]:
                raise StoreError(f"{file}: {'missing' if size is None else f'{size} bytes'}: expected {facts['bytes']}")
            if verify and _sha256(file) != facts["sha256"]:
                raise StoreError(f"{file}: content differs from the manifest's checksum")
        return cls(path, manifest)

    @property
    def answers(self) -> list[str]:
        return list(self.manifest["answers"])

    @property
    def image_size(self) -> int:
        return int(self.manifest["source"]["image_size"])

    @property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path / "tokenizer.json")

    @property
    def bytes(self) -> int:
        return sum(facts["bytes"] for facts in self.manifest["files"].values())

    def questions(self, split: str) -> pa.Table:
        """Columns id, text, family, picture (row into the pictures), answers, scores (parallel lists)."""
        return self._tables[split]

    @property
    def picture_keys(self) -> list[int]:
        """The source's key of every picture, in row order."""
        return self._tables["pictures"].column("key").to_pylist()

    def picture(self, row: int) -> np.ndarray:
        """[3, H, W] uint8, a read-only view into the mapped file."""
        size = self.image_size
        return np.frombuffer(self._pixels[row].as_buffer(), dtype=np.uint8).reshape(3, size, size)


def ensure_store(source: VqaSource, root: Path, *, force: bool = False) -> Store:
    """Opens `root/<source.name>`, building it first where it is missing, and anew where it is broken or outdated.

    Safe to call from several processes at once: one builds, the others wait.
    """
    path = root / source.name
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{source.name}.lock")
        lock.acquire()
    except OSError as error:
        raise StoreError(f"{root}: cannot write the store there ({error})") from error
    with lock:
        try:
            if not force:
                return Store.open(path, source)
        except StoreError as error:
            if path.exists():
                log.warning("rebuilding the store: %s", error)
        _build(source, path)
        return Store.open(path, source, verify=False)


def _build(source: VqaSource, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for left_over in path.parent.glob(f".{path.name}.*.part"):  # of a build that was killed: the lock is ours
        shutil.rmtree(left_over)
    part.mkdir()
    try:
        answers = list(source.answers())
        if len(answers) < 2:
            raise SourceError(f"{source.name}: expected at least two answers to choose from: got {answers}")
        questions = source.questions()
        count = len({q.picture for split in SPLITS for q in questions[split]})
        rows = _write_pictures(source, part / "pictures.arrow", count)
        lost = [q for split in SPLITS for q in questions[split] if q.picture not in rows]
        if lost:
            raise SourceError(
                f"{source.name}: question {lost[0].id!r} is about picture {lost[0].picture}, not among the pictures"
            )
        for split in SPLITS:
            table = pa.table(
                {
                    "id": [q.id for q in questions[split]],
                    "text": [q.text for q in questions[split]],
                    "family": [q.family for q in questions[split]],
                    "picture": pa.array([rows[q.picture] for q in questions[split]], pa.int32()),
                    "answers": pa.array([list(q.scores) for q in questions[split]], pa.list_(pa.string())),
                    "scores": pa.array([list(q.scores.values()) for q in questions[split]], pa.list_(pa.float32())),
                }
            )
            with pa.OSFile(str(part / f"{split}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        train_tokenizer(q.text for q in questions["train"]).save(str(part / "tokenizer.json"))
        files = sorted(f for f in part.iterdir())
        manifest = {
            "version": FORMAT_VERSION,
            "source": _built_from(source),
            "answers": answers,
            "rows": {split: len(questions[split]) for split in SPLITS} | {"pictures": len(rows)},
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files},
        }
        (part / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_pictures(source: VqaSource, file: Path, count: int) -> dict[int, int]:
    """Writes all pictures and returns the row of each key."""
    size = source.image_size
    schema = pa.schema({"key": pa.int64(), "pixels": pa.binary(3 * size * size)})
    rows: dict[int, int] = {}
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _batches(
            track(source.pictures(), f"building the store {source.name}", total=count, unit="picture")
        ):
            keys = [key for key, _ in batch]
            for key, pixels in batch:
                if pixels.shape != (3, size, size) or pixels.dtype != np.uint8:
                    raise SourceError(
                        f"{source.name}: picture {key} is {list(pixels.shape)} {pixels.dtype}: "
                        f"expected [3, {size}, {size}] uint8"
                    )
            twice = [key for i, key in enumerate(keys) if key in rows or key in keys[:i]]
            if twice:
                raise SourceError(f"{source.name}: picture {twice[0]} comes twice: expected every picture once")
            rows.update(zip(keys, range(len(rows), len(rows) + len(keys)), strict=True))
            writer.write_batch(pa.record_batch([keys, [p.tobytes() for _, p in batch]], schema=schema))
    return rows


def _batches(pictures: Iterable[tuple[int, np.ndarray]]) -> Iterator[list[tuple[int, np.ndarray]]]:
    batch = []
    for item in pictures:
        batch.append(item)
        if len(batch) == PICTURES_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _built_from(source: VqaSource) -> dict[str, Any]:
    return {"name": source.name, "image_size": source.image_size, **source.fingerprint()}


def _map_table(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
