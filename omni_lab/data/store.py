"""The memory-mapped store: an index that is built at once, and media that are built when they are needed.

One folder per data set. Its *index*: Arrow IPC files (`pyarrow`) of the questions of each split and the keys of the
media, the tokenizer trained on the train split, and `manifest.json` with format version, the source's fingerprint, and
size and SHA-256 of every file. It is built under a temporary name and renamed at the end, so a folder under its final
name was complete once; `Store.open` checks that it still is. The *media* follow in chunks (`media_chunks.py`). No chunk
holds rows of two splits: who reads the test split alone builds nothing of the train split.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import AcquireReturnProxy, FileLock
from tokenizers import Tokenizer

from omni_lab.batch import Modality
from omni_lab.data.media_chunks import CHUNK_ROWS, DTYPES, MediaChunks, StoreError, check_file, describe_file
from omni_lab.data.sources.base import SPLITS, Question, QuestionFamily, SourceError, VQASource, read_json
from omni_lab.data.tokenizer import train_tokenizer

FORMAT_VERSION = 4
QUESTION_FIELDS = {
    "id": pa.string(),
    "text": pa.string(),
    "family": pa.string(),
    "scene": pa.int64(),
    "answers": pa.list_(pa.string()),
    "scores": pa.list_(pa.float32()),
}
log = logging.getLogger(__name__)


class Store:
    """An open store. Tables are memory-mapped: opening reads no data, and worker processes share the pages."""

    def __init__(self, path: Path, manifest: dict[str, Any], source: VQASource | None = None) -> None:
        """source: what the store is built from; without it, media that are not built yet cannot be read."""
        self.path = path
        self.manifest = manifest
        self.source = source
        self.shapes = {Modality(m): tuple(shape) for m, shape in manifest["source"]["shapes"].items()}
        files = {name: pa.memory_map(str(path / f"{name}.arrow")) for name in (*SPLITS, *self.shapes)}
        self._tables = {name: pa.ipc.open_file(file).read_all() for name, file in files.items()}
        version = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        self._chunks = {m: MediaChunks(path, m, manifest["chunks"][m], version) for m in self.shapes}

    def __reduce__(self) -> tuple[Any, ...]:  # pickled for worker processes, which map the files again
        return Store, (self.path, self.manifest, self.source)

    @classmethod
    def open(cls, path: Path, source: VQASource | None = None, *, verify: bool = True) -> Store:
        """Opens a store whose index is complete.

        source: also check that the store was built from it, and build from it media that are missing or damaged.
        verify: also recompute the checksums of the index. Those of a chunk of media are recomputed at its first use.
        Raises StoreError if the index is missing, incomplete, altered, outdated, or of another format version; without
        a source also if a chunk of media is not as long as it was.
        """
        try:
            manifest = read_json(path / "manifest.json")
        except SourceError as error:
            raise StoreError(f"{path}: no store there, or a broken manifest ({error})") from error
        if not isinstance(manifest, dict):
            raise StoreError(f"{path}: broken manifest (not an object)")
        if manifest.get("version") != FORMAT_VERSION:
            raise StoreError(f"{path}: store of format version {manifest.get('version')}: expected {FORMAT_VERSION}")
        if not {"source", "answers", "families", "rows", "chunks", "files"} <= manifest.keys():
            raise StoreError(f"{path}: broken manifest (it has only {sorted(manifest)})")
        if source is not None:
            _check_source(source, manifest, path)
        for name, expected in manifest["files"].items():
            check_file(path / name, expected, checksum=verify)
        store = cls(path, manifest, source)
        if source is None:
            _ = store.files
        return store

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
    def files(self) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 by name of all files but the manifest: the index, and the media that are built.

        Raises StoreError if a chunk of media is not as long as it was.
        """
        built = [(c, i) for c in self._chunks.values() for i in range(len(c.starts) - 1) if c.file(i).exists()]
        return self.manifest["files"] | {c.file(i).name: c.check(i, checksum=False) for c, i in built}

    @property
    def bytes(self) -> int:
        """On disk now."""
        return sum(file["bytes"] for file in self.files.values())

    def questions(self, split: str) -> pa.Table:
        """Columns id, text (null: spoken), family, scene, answers, scores, and per modality the row (-1: no media)."""
        return self._tables[split]

    def keys(self, modality: Modality) -> list[int]:
        """The source's key of every item, in row order."""
        return self._tables[modality].column("key").to_pylist()

    def annotations(self, modality: Modality, row: int) -> dict[str, Any]:
        """The annotations of one item."""
        chunk, offset = self._locate(modality, row)
        return json.loads(chunk["annotations"][offset].as_py())

    def media(self, modality: Modality, row: int) -> np.ndarray:
        """Image [3, H, W] uint8, video [F, 3, H, W] uint8 or audio [S] int16: a read-only view into the mapped file."""
        chunk, offset = self._locate(modality, row)
        values = np.frombuffer(chunk["values"][offset].as_buffer(), dtype=DTYPES[modality])
        return values.reshape(self.shapes[modality] or -1)

    def image(self, row: int) -> np.ndarray:
        """[3, H, W] uint8."""
        return self.media(Modality.IMAGE, row)

    def build(self, modality: Modality, rows: Iterable[int] | None = None) -> None:
        """Builds the media of these rows (default: all), as far as they are missing or damaged, on all cores.

        Several processes may call it at once: one builds, the others wait.
        Raises StoreError if the store was opened without its source, or that has changed; SourceError if the source
        does not yield what it should.
        """
        chunks = self._chunks[modality]
        needed = {chunks.chunk_of(row) for row in set(range(chunks.starts[-1]) if rows is None else rows)}
        missing = [chunk for chunk in sorted(needed) if chunks.find_fault(chunk)]
        if not missing:
            return
        if self.source is None:
            raise StoreError(f"{chunks.find_fault(missing[0])}, and the store was opened without its source")
        with _lock(self.path):
            faults = {chunk: fault for chunk in missing if (fault := chunks.find_fault(chunk))}
            for chunk, fault in faults.items():
                if chunks.file(chunk).exists():
                    log.warning("building media again: %s", fault)
            if faults:
                _check_source(self.source, self.manifest, self.path)
                keys = self._tables[modality].column("key").to_pylist()
                chunks.build(list(faults), self.source, keys, partial(self._name_question, modality))

    def _locate(self, modality: Modality, row: int) -> tuple[dict[str, pa.Array], int]:
        """The columns of the chunk that holds a row, built if need be, and the row's place in it."""
        chunks = self._chunks[modality]
        chunk = chunks.chunk_of(row)
        if chunks.find_fault(chunk):
            self.build(modality, [row])
        return chunks.open(chunk), row - chunks.starts[chunk]

    def _name_question(self, modality: Modality, row: int) -> str:
        """The id of the first question that refers to a row."""
        found = ((table, table.column(modality.value).index(row).as_py()) for table in map(self.questions, SPLITS))
        return next(table.column("id")[index].as_py() for table, index in found if index >= 0)


def ensure_store(source: VQASource, root: Path) -> Store:
    """Opens the store `root/<source.name>`; builds its index if it is missing, broken or outdated.

    Media are built when they are first read, or by `Store.build`. Several processes may call this at once: one builds,
    the others wait. Raises StoreError if `root` cannot be written.
    """
    path = root / source.name
    with suppress(StoreError, OSError):
        return Store.open(path, source)  # without waiting for a process that builds media
    with _lock(path):
        try:
            return Store.open(path, source)
        except StoreError as error:
            if path.exists():
                log.warning("rebuilding the store: %s", error)
        _build_index(source, path)
        return Store.open(path, source, verify=False)


def _lock(path: Path) -> AcquireReturnProxy:
    """Holds the lock of a store, whose holder alone writes there. Raises StoreError if its root cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.parent / f".{path.name}.lock").acquire()
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot write the store there ({error})") from error


def _build_index(source: VQASource, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for leftover in path.parent.glob(f".{path.name}.*.part"):  # from a killed build: this process holds the lock
        shutil.rmtree(leftover)
    part.mkdir()
    try:
        answers = list(source.answers())
        if len(answers) < 2:
            raise SourceError(f"{source.name}: expected at least two answers to choose from: got {answers}")
        questions = source.questions()
        rows, chunks = {}, {}
        for modality in source.shapes:
            rows[modality], chunks[modality.value] = _number_media(modality, questions)
            _write_table(part / f"{modality}.arrow", [{"key": key} for key in rows[modality]], {"key": pa.int64()})
        for split in SPLITS:
            records = [
                {name: getattr(q, name) for name in ("id", "text", "family", "scene")}
                | {"answers": list(q.scores), "scores": list(q.scores.values())}
                | {m.value: rows[m][q.media_keys[m]] if m in q.media_keys else -1 for m in rows}
                for q in questions[split]
            ]
            _write_table(part / f"{split}.arrow", records, QUESTION_FIELDS | {m.value: pa.int32() for m in rows})
        texts = itertools.chain((q.text for q in questions["train"] if q.text), source.corpus())
        train_tokenizer(texts).save(str(part / "tokenizer.json"))
        manifest = {
            "version": FORMAT_VERSION,
            "source": source_fingerprint(source),
            "answers": answers,
            "families": {name: asdict(family) for name, family in source.families().items()},
            "rows": {split: len(questions[split]) for split in SPLITS} | {m.value: len(rows[m]) for m in rows},
            "chunks": chunks,
            "files": {f.name: describe_file(f) for f in sorted(part.iterdir())},
        }
        (part / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _number_media(modality: Modality, questions: Mapping[str, Sequence[Question]]) -> tuple[dict[int, int], list[int]]:
    """The row of each key, in the order in which questions refer to them, and the first row of each chunk, then the
    number of rows."""
    rows: dict[int, int] = {}
    starts = [0]
    for split in SPLITS:
        for question in questions[split]:
            if modality in question.media_keys:
                rows.setdefault(question.media_keys[modality], len(rows))
        if len(rows) > starts[-1]:
            starts += [*range(starts[-1] + CHUNK_ROWS, len(rows), CHUNK_ROWS), len(rows)]
    return rows, starts


def _write_table(file: Path, records: list[dict[str, Any]], fields: Mapping[str, pa.DataType]) -> None:
    schema = pa.schema(fields)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(records, schema=schema))


def source_fingerprint(source: VQASource) -> dict[str, Any]:
    """What a store of the source depends on, as its manifest holds it."""
    return json.loads(json.dumps({"name": source.name, "shapes": source.shapes, **source.fingerprint()}, default=dict))


def _check_source(source: VQASource, manifest: Mapping[str, Any], path: Path) -> None:
    """Raises StoreError if the store was built from another source, or another version of it."""
    built_from, current = manifest["source"], source_fingerprint(source)
    differing = sorted(k for k in current | built_from if current.get(k) != built_from.get(k))
    if differing:
        pairs = ", ".join(f"{k}: {built_from.get(k)!r} -> {current.get(k)!r}" for k in differing)
        raise StoreError(f"{path}: outdated, the source has changed ({pairs})")
