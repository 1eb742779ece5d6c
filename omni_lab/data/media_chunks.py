"""Media in chunks: files of a store that are written when somebody needs them."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from omni_lab.batch import Modality
from omni_lab.data.sources.base import MediaItem, SourceError, VQASource, read_json
from omni_lab.utils.progress import track_progress

CHUNK_ROWS = 256
DTYPES = {Modality.IMAGE: np.uint8, Modality.AUDIO: np.int16, Modality.VIDEO: np.uint8}
SCHEMA = pa.schema({"key": pa.int64(), "values": pa.binary(), "annotations": pa.string()})


class StoreError(RuntimeError):
    """A store that is missing, broken, or outdated; the message says where."""


class MediaChunks:
    """The media of one modality. A chunk holds at most CHUNK_ROWS consecutive rows in one file, `image-0012.arrow`.

    Beside it, `image-0012.json` has its size, its SHA-256 and the version of the store. Both are written under other
    names and renamed, the Arrow file last: where it exists, it was complete.
    """

    def __init__(self, folder: Path, modality: Modality, starts: Sequence[int], version: str) -> None:
        """starts: the first row of each chunk, then the number of rows. version: of the store that they belong to."""
        self.folder = folder
        self.modality = modality
        self.starts = starts
        self.version = version
        self._open: dict[int, dict[str, pa.Array]] = {}

    def file(self, chunk: int) -> Path:
        return self.folder / f"{self.modality}-{chunk:04d}.arrow"

    def rows(self, chunk: int) -> range:
        return range(self.starts[chunk], self.starts[chunk + 1])

    def chunk_of(self, row: int) -> int:
        """Raises IndexError for a row that does not exist, such as the -1 of a question without this modality."""
        if not 0 <= row < self.starts[-1]:
            raise IndexError(f"row of {self.modality} must be from 0 to {self.starts[-1] - 1}: got {row}")
        return bisect_right(self.starts, row) - 1

    def open(self, chunk: int) -> dict[str, pa.Array]:
        """The columns of a chunk, memory-mapped. Checks its checksum at first; raises StoreError if it is missing or
        damaged."""
        if chunk not in self._open:
            self.check(chunk, checksum=True)
            self._open[chunk] = self._map(chunk)
        return self._open[chunk]

    def check(self, chunk: int, *, checksum: bool) -> dict[str, Any]:
        """Compares a chunk with its size and, if asked to, with its checksum, and returns both."""
        file = self.file(chunk)
        if not file.exists():
            raise StoreError(f"{file}: missing")
        try:
            expected = read_json(file.with_suffix(".json"))
        except SourceError as error:
            raise StoreError(f"{file}: nothing to check it by ({error})") from error
        if not isinstance(expected, dict) or expected.get("version") != self.version:
            raise StoreError(f"{file}: belongs to another version of the store")
        check_file(file, expected, checksum=checksum)
        return {name: expected[name] for name in ("bytes", "sha256")}

    def find_fault(self, chunk: int) -> StoreError | None:
        """Why a chunk cannot be opened, if it cannot."""
        try:
            self.open(chunk)
        except StoreError as error:
            return error
        return None

    def build(
        self, missing: Sequence[int], source: VQASource, keys: Sequence[int], name_question: Callable[[int], str]
    ) -> None:
        """Writes chunks, each of which takes effect as a whole. Only one process may do so at a time.

        keys: of all rows. name_question: gives the id of a question about a row.
        Raises SourceError if the source does not yield the items of these rows, in order, in its shape and type.
        """
        for leftover in self.folder.glob(f".{self.modality}-*"):  # from a killed build
            leftover.unlink()
        rows = [row for chunk in missing for row in self.rows(chunk)]
        media = iter(source.media(self.modality, [keys[row] for row in rows]))
        if len(missing) > 1:
            description = f"building the store {source.name}"
            media = track_progress(media, description, total=len(rows), unit=self.modality.value)
        for chunk in missing:
            items = []
            for row, item in zip_longest(self.rows(chunk), islice(media, len(self.rows(chunk)))):
                if item is None or item.key != keys[row]:
                    needed = f"question {name_question(row)!r} comes with {self.modality} {keys[row]}"
                    found = "" if item is None else f": it yields {item.key}"
                    raise SourceError(f"{source.name}: {needed}, which the source lacks{found}")
                _check_item(source, self.modality, item)
                items.append(item)
            self._write(chunk, items)
        for item in media:  # there is none: this ends the generator
            raise SourceError(f"{source.name}: {self.modality} {item.key} comes, but {len(rows)} others were asked for")

    def _write(self, chunk: int, items: Sequence[MediaItem]) -> None:
        records = [
            {"key": i.key, "values": i.values.tobytes(), "annotations": json.dumps(i.annotations)} for i in items
        ]
        file = self.file(chunk)
        part = file.with_name(f".{file.stem}.{os.getpid()}.part")
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(records, schema=SCHEMA))
        facts = part.with_suffix(".json")
        facts.write_text(json.dumps({"version": self.version} | describe_file(part)), encoding="utf-8")
        facts.replace(file.with_suffix(".json"))
        part.replace(file)
        self._open[chunk] = self._map(chunk)

    def _map(self, chunk: int) -> dict[str, pa.Array]:
        with pa.memory_map(str(self.file(chunk))) as file:  # closing it leaves the pages mapped
            return dict(zip(SCHEMA.names, pa.ipc.open_file(file).get_batch(0).columns, strict=True))


def _check_item(source: VQASource, modality: Modality, item: MediaItem) -> None:
    shape, dtype = source.shapes[modality], np.dtype(DTYPES[modality])
    fits = item.values.shape == shape if shape else item.values.ndim == 1 and len(item.values) > 0
    if not fits or item.values.dtype != dtype:
        raise SourceError(
            f"{source.name}: {modality} {item.key} is {list(item.values.shape)} {item.values.dtype}: "
            f"expected {list(shape) or '[S], S > 0'} {dtype}"
        )


def describe_file(file: Path) -> dict[str, Any]:
    """Its size in bytes and its SHA-256."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def check_file(file: Path, expected: dict[str, Any], *, checksum: bool) -> None:
    """Raises StoreError if the file is missing, or not as `describe_file` said."""
    size = file.stat().st_size if file.exists() else None
    if size != expected["bytes"]:
        found = "missing" if size is None else f"{size} bytes"
        raise StoreError(f"{file}: {found}: expected {expected['bytes']}")
    if checksum and describe_file(file)["sha256"] != expected["sha256"]:
        raise StoreError(f"{file}: content differs from its checksum")
