"""The memory-mapped store: built once from any source, read without copying.

One folder per set, holding Arrow IPC files (`pyarrow`), the tokenizer trained on the train split, and `manifest.json`
with the format version, what the store was built from, and the size and SHA-256 of every file. It is built under a
temporary name and renamed at the end, so a folder under its final name was complete once; whether it still is,
`Store.open` checks.
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
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily, SourceError, VQASource
from omni_lab.data.tokenizer import load_tokenizer, train_tokenizer
from omni_lab.utils.progress import track_progress

FORMAT_VERSION = 3
MEDIA_PER_BATCH = 512
DTYPES = {Modality.IMAGE: np.uint8, Modality.AUDIO: np.int16, Modality.VIDEO: np.uint8}
log = logging.getLogger(__name__)


class StoreError(RuntimeError):
    """A store that is missing, broken, or built from something else: the message says which and where."""


class Store:
    """An opened store. Tables are memory-mapped: opening costs no reading, and workers share the pages."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.shapes = {Modality(m): tuple(shape) for m, shape in manifest["source"]["shapes"].items()}
        self._tables = {name: _map_table(path / f"{name}.arrow") for name in (*SPLITS, *self.shapes)}
        self._values = {m: self._tables[m].column("values") for m in self.shapes}

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path, self.manifest)

    @classmethod
    def open(cls, path: Path, source: VQASource | None = None, *, verify: bool = True) -> Store:
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
        if not {"source", "answers", "families", "rows", "files"} <= manifest.keys():
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
    def families(self) -> dict[str, QuestionFamily]:
        return {
            name: QuestionFamily(
                tuple(map(Modality, known["required_modalities"])),
                tuple((Modality(a), Modality(b)) for a, b in known["required_interactions"]),
                known["chance"],
            )
            for name, known in self.manifest["families"].items()
        }

    @property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path / "tokenizer.json")

    @property
    def bytes(self) -> int:
        return sum(facts["bytes"] for facts in self.manifest["files"].values())

    def questions(self, split: str) -> pa.Table:
        """Columns id, text (null where spoken), family, scene, answers, scores (parallel lists), and one per modality
        of the media: the row, -1 where there is none."""
        return self._tables[split]

    def keys(self, modality: Modality) -> list[int]:
        """The source's key of every medium, in row order."""
        return self._tables[modality].column("key").to_pylist()

    def annotations(self, modality: Modality, row: int) -> dict[str, Any]:
        """What the source knows of one medium."""
        return json.loads(self._tables[modality].column("annotations")[row].as_py())

    def media(self, modality: Modality, row: int) -> np.ndarray:
        """A picture [3, H, W] uint8, a clip [F, 3, H, W] uint8 or a sound [S] int16, as a read-only view into the
        mapped file."""
        values = np.frombuffer(self._values[modality][row].as_buffer(), dtype=DTYPES[modality])
        return values.reshape(self.shapes[modality] or -1)

    def image(self, row: int) -> np.ndarray:
        """[3, H, W] uint8."""
        return self.media(Modality.IMAGE, row)


def ensure_store(source: VQASource, root: Path) -> Store:
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
            return Store.open(path, source)
        except StoreError as error:
            if path.exists():
                log.warning("rebuilding the store: %s", error)
        _build(source, path)
        return Store.open(path, source, verify=False)


def _build(source: VQASource, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for left_over in path.parent.glob(f".{path.name}.*.part"):  # of a build that was killed: the lock is ours
        shutil.rmtree(left_over)
    part.mkdir()
    try:
        answers = list(source.answers())
        if len(answers) < 2:
            raise SourceError(f"{source.name}: expected at least two answers to choose from: got {answers}")
        questions = source.questions()
        rows = {m: _write_media(source, m, part / f"{m}.arrow", questions) for m in source.shapes}
        for split in SPLITS:
            media: dict[str, Any] = {
                m.value: pa.array(
                    [rows[m][q.media_keys[m]] if m in q.media_keys else -1 for q in questions[split]], pa.int32()
                )
                for m in rows
            }
            table = pa.table(
                {
                    "id": [q.id for q in questions[split]],
                    "text": pa.array([q.text for q in questions[split]], pa.string()),
                    "family": [q.family for q in questions[split]],
                    "scene": pa.array([q.scene for q in questions[split]], pa.int64()),
                    "answers": pa.array([list(q.scores) for q in questions[split]], pa.list_(pa.string())),
                    "scores": pa.array([list(q.scores.values()) for q in questions[split]], pa.list_(pa.float32())),
                    **media,
                }
            )
            with pa.OSFile(str(part / f"{split}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        texts = itertools.chain((q.text for q in questions["train"] if q.text), source.corpus())
        train_tokenizer(texts).save(str(part / "tokenizer.json"))
        files = sorted(f for f in part.iterdir())
        manifest = {
            "version": FORMAT_VERSION,
            "source": _built_from(source),
            "answers": answers,
            "families": {name: asdict(family) for name, family in source.families().items()},
            "rows": {split: len(questions[split]) for split in SPLITS} | {m.value: len(rows[m]) for m in rows},
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files},
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
    asked = {q.media_keys[modality]: q for split in SPLITS for q in questions[split] if modality in q.media_keys}
    schema = pa.schema({"key": pa.int64(), "values": pa.binary(), "annotations": pa.string()})
    rows: dict[int, int] = {}
    media = track_progress(
        source.media(modality), f"building the store {source.name}", total=len(asked), unit=modality.value
    )
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while batch := list(itertools.islice(media, MEDIA_PER_BATCH)):
            for medium in batch:
                _check_medium(source, modality, medium)
                if medium.key in rows:
                    raise SourceError(f"{source.name}: {modality} {medium.key} comes twice: expected each once")
                rows[medium.key] = len(rows)
            columns = [
                [m.key for m in batch],
                [m.values.tobytes() for m in batch],
                [json.dumps(m.annotations) for m in batch],
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    lost = [key for key in asked if key not in rows]
    if lost:
        raise SourceError(
            f"{source.name}: question {asked[lost[0]].id!r} comes with {modality} {lost[0]}, which the source lacks"
        )
    return rows


def _check_medium(source: VQASource, modality: Modality, medium: MediaItem) -> None:
    shape, dtype = source.shapes[modality], np.dtype(DTYPES[modality])
    right = medium.values.shape == shape if shape else medium.values.ndim == 1 and len(medium.values) > 0
    if not right or medium.values.dtype != dtype:
        raise SourceError(
            f"{source.name}: {modality} {medium.key} is {list(medium.values.shape)} {medium.values.dtype}: "
            f"expected {list(shape) or '[S], S > 0'} {dtype}"
        )


def _built_from(source: VQASource) -> dict[str, Any]:
    return json.loads(json.dumps({"name": source.name, "shapes": source.shapes, **source.fingerprint()}, default=dict))


def _map_table(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
