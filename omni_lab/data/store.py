"""The memory-mapped store: built once from any source, read without copying.

One folder per data set: Arrow IPC files (`pyarrow`), the tokenizer trained on the train split, and `manifest.json` with
format version, the source's fingerprint, and size and SHA-256 of every file. It is built under a temporary name and
renamed at the end, so a folder under its final name was complete once; `Store.open` checks that it still is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from tokenizers import Tokenizer

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily, SourceError, VQASource, read_json
from omni_lab.data.tokenizer import train_tokenizer
from omni_lab.utils.progress import track_progress

FORMAT_VERSION = 3
MEDIA_PER_BATCH = 512
QUESTION_FIELDS = {
    "id": pa.string(),
    "text": pa.string(),
    "family": pa.string(),
    "scene": pa.int64(),
    "answers": pa.list_(pa.string()),
    "scores": pa.list_(pa.float32()),
}
DTYPES = {Modality.IMAGE: np.uint8, Modality.AUDIO: np.int16, Modality.VIDEO: np.uint8}
log = logging.getLogger(__name__)


class StoreError(RuntimeError):
    """A store that is missing, broken, or outdated; the message says where."""


class Store:
    """An open store. Tables are memory-mapped: opening reads no data, and worker processes share the pages."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.shapes = {Modality(m): tuple(shape) for m, shape in manifest["source"]["shapes"].items()}
        files = {name: pa.memory_map(str(path / f"{name}.arrow")) for name in (*SPLITS, *self.shapes)}
        self._tables = {name: pa.ipc.open_file(file).read_all() for name, file in files.items()}
        self._values = {m: self._tables[m].column("values") for m in self.shapes}

    def __reduce__(self) -> tuple[Any, ...]:  # pickled for worker processes, which map the files again
        return Store, (self.path, self.manifest)

    @classmethod
    def open(cls, path: Path, source: VQASource | None = None, *, verify: bool = True) -> Store:
        """Opens a finished store.

        source: also check that the store was built from it.
        verify: also recompute the checksums.
        Raises StoreError if it is missing, incomplete, altered, outdated, or of another format version.
        """
        try:
            manifest = read_json(path / "manifest.json")
        except SourceError as error:
            raise StoreError(f"{path}: no store there, or a broken manifest ({error})") from error
        if not isinstance(manifest, dict):
            raise StoreError(f"{path}: broken manifest (not an object)")
        if manifest.get("version") != FORMAT_VERSION:
            raise StoreError(f"{path}: store of format version {manifest.get('version')}: expected {FORMAT_VERSION}")
        if not {"source", "answers", "families", "rows", "files"} <= manifest.keys():
            raise StoreError(f"{path}: broken manifest (it has only {sorted(manifest)})")
        if source is not None:
            built_from, current = manifest["source"], _fingerprint(source)
            differing = sorted(k for k in current | built_from if current.get(k) != built_from.get(k))
            if differing:
                pairs = ", ".join(f"{k}: {built_from.get(k)!r} -> {current.get(k)!r}" for k in differing)
                raise StoreError(f"{path}: outdated, the source has changed ({pairs})")
        for name, expected in manifest["files"].items():
            file = path / name
            size = file.stat().st_size if file.exists() else None
            if size != expected["bytes"]:
                found = "missing" if size is None else f"{size} bytes"
                raise StoreError(f"{file}: {found}: expected {expected['bytes']}")
            if verify and _sha256(file) != expected["sha256"]:
                raise StoreError(f"{file}: content differs from the manifest's checksum")
        return cls(path, manifest)

    @property
    def answers(self) -> list[str]:
        return list(self.manifest["answers"])

    @property
    def families(self) -> dict[str, QuestionFamily]:
        return {
            name: QuestionFamily(
                tuple(map(Modality, family["required_modalities"])),
                tuple((Modality(a), Modality(b)) for a, b in family["required_interactions"]),
                family["chance"],
            )
            for name, family in self.manifest["families"].items()
        }

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.path / "tokenizer.json"))

    @property
    def bytes(self) -> int:
        return sum(file["bytes"] for file in self.manifest["files"].values())

    def questions(self, split: str) -> pa.Table:
        """Columns id, text (null: spoken), family, scene, answers, scores, and per modality the row (-1: no media)."""
        return self._tables[split]

    def keys(self, modality: Modality) -> list[int]:
        """The source's key of every item, in row order."""
        return self._tables[modality].column("key").to_pylist()

    def annotations(self, modality: Modality, row: int) -> dict[str, Any]:
        """The annotations of one item."""
        return json.loads(self._tables[modality].column("annotations")[row].as_py())

    def media(self, modality: Modality, row: int) -> np.ndarray:
        """Image [3, H, W] uint8, video [F, 3, H, W] uint8 or audio [S] int16: a read-only view into the mapped file."""
        values = np.frombuffer(self._values[modality][row].as_buffer(), dtype=DTYPES[modality])
        return values.reshape(self.shapes[modality] or -1)

    def image(self, row: int) -> np.ndarray:
        """[3, H, W] uint8."""
        return self.media(Modality.IMAGE, row)


def ensure_store(source: VQASource, root: Path) -> Store:
    """Opens the store `root/<source.name>`; builds it if it is missing, broken or outdated.

    Several processes may call it at once: one builds, the others wait. Raises StoreError if `root` cannot be written.
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
            return Store.open(path, source)
        except StoreError as error:
            if path.exists():
                log.warning("rebuilding the store: %s", error)
        _build(source, path)
        return Store.open(path, source, verify=False)


def _build(source: VQASource, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for leftover in path.parent.glob(f".{path.name}.*.part"):  # from a killed build: this process holds the lock
        shutil.rmtree(leftover)
    part.mkdir()
    try:
        answers = list(source.answers())
        if len(answers) < 2:
            raise SourceError(f"{source.name}: expected at least two answers to choose from: got {answers}")
        questions = source.questions()
        rows = {m: _write_media(source, m, part / f"{m}.arrow", questions) for m in source.shapes}
        for split in SPLITS:
            records = [
                {name: getattr(q, name) for name in ("id", "text", "family", "scene")}
                | {"answers": list(q.scores), "scores": list(q.scores.values())}
                | {m.value: rows[m][q.media_keys[m]] if m in q.media_keys else -1 for m in rows}
                for q in questions[split]
            ]
            schema = pa.schema(QUESTION_FIELDS | {m.value: pa.int32() for m in rows})
            with pa.OSFile(str(part / f"{split}.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_table(pa.Table.from_pylist(records, schema=schema))
        texts = itertools.chain((q.text for q in questions["train"] if q.text), source.corpus())
        train_tokenizer(texts).save(str(part / "tokenizer.json"))
        manifest = {
            "version": FORMAT_VERSION,
            "source": _fingerprint(source),
            "answers": answers,
            "families": {name: asdict(family) for name, family in source.families().items()},
            "rows": {split: len(questions[split]) for split in SPLITS} | {m.value: len(rows[m]) for m in rows},
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(part.iterdir())},
        }
        (part / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_media(
    source: VQASource, modality: Modality, file: Path, questions: Mapping[str, Sequence[Question]]
) -> dict[int, int]:
    """Writes all media of one modality and returns the row of each key."""
    required = {q.media_keys[modality]: q.id for split in SPLITS for q in questions[split] if modality in q.media_keys}
    schema = pa.schema({"key": pa.int64(), "values": pa.binary(), "annotations": pa.string()})
    rows: dict[int, int] = {}
    description = f"building the store {source.name}"
    media = track_progress(source.media(modality), description, total=len(required), unit=modality.value)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while batch := list(itertools.islice(media, MEDIA_PER_BATCH)):
            for item in batch:
                _check_item(source, modality, item)
                if item.key in rows:
                    raise SourceError(f"{source.name}: {modality} {item.key} comes twice: expected each once")
                rows[item.key] = len(rows)
            records = [
                {"key": i.key, "values": i.values.tobytes(), "annotations": json.dumps(i.annotations)} for i in batch
            ]
            writer.write_batch(pa.RecordBatch.from_pylist(records, schema=schema))
    for key, name in required.items():
        if key not in rows:
            raise SourceError(f"{source.name}: question {name!r} comes with {modality} {key}, which the source lacks")
    return rows


def _check_item(source: VQASource, modality: Modality, item: MediaItem) -> None:
    shape, dtype = source.shapes[modality], np.dtype(DTYPES[modality])
    fits = item.values.shape == shape if shape else item.values.ndim == 1 and len(item.values) > 0
    if not fits or item.values.dtype != dtype:
        raise SourceError(
            f"{source.name}: {modality} {item.key} is {list(item.values.shape)} {item.values.dtype}: "
            f"expected {list(shape) or '[S], S > 0'} {dtype}"
        )


def _fingerprint(source: VQASource) -> dict[str, Any]:
    return json.loads(json.dumps({"name": source.name, "shapes": source.shapes, **source.fingerprint()}, default=dict))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
