"""The compressed model on disk: an ONNX graph per part, all weights in one file, each kept once, and a manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from omni_lab.compression.graphs import OPSET, OpenGraph, close_graph, open_graph
from omni_lab.compression.parts import AssemblySpec, ModelPart
from omni_lab.compression.precision import PrecisionPolicy, QuantRange

MANIFEST, WEIGHTS = "manifest.json", "weights.bin"
SMALL = 64  # bytes; smaller constants stay inside their graph
Ranges = Mapping[str, Mapping[str, QuantRange]]


class ArtifactError(RuntimeError):
    """Files that are missing, broken or made from something else: the message says which and how."""


class Exporter:
    """Turns parts into files. What parts of one make have in common is exported once, whatever the weights."""

    def __init__(self, *, opset: int = OPSET) -> None:
        self.opset = opset
        self._open: dict[tuple[object, ...], OpenGraph] = {}

    def graph(self, part: ModelPart) -> OpenGraph:
        if part.make not in self._open:
            self._open[part.make] = open_graph(part, opset=self.opset)
        return self._open[part.make]

    def write(
        self,
        folder: Path,
        parts: Sequence[ModelPart],
        frame: AssemblySpec,
        *,
        policy: PrecisionPolicy,
        source: str,
        ranges: Ranges | None = None,
    ) -> int:
        """Writes the model to `folder`, in place of what stands there; returns its bytes.

        source: the digest of the weights that it is made from. ranges: of each part, that of what each of its linear
        layers is given, for int8; without any, the range of each input is found when it runs. Raises ValueError for a
        policy that names a part that does not exist.
        """
        policy.check(part.name for part in parts)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            heap = _Heap()
            described = {}
            for part in parts:
                precision = policy.precision_of(part.name)
                weights: dict[str, Tensor] = dict(part.module.named_parameters())
                known = None if ranges is None else ranges.get(part.name, {})
                model = close_graph(self.graph(part), weights, precision, known)
                heap.take(model)
                ir.save(model, scratch / f"{part.name}.onnx")
                described[part.name] = {"precision": precision.value, "inputs": [*part.inputs]}
            (scratch / WEIGHTS).write_bytes(heap.data)
            manifest = {
                "source": source,
                "policy": policy.name,
                "opset": self.opset,
                "frame": frame.to_dict(),
                "parts": described,
                "files": {file.name: _digest(file) for file in sorted(scratch.iterdir())},
            }
            (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return size_of(folder)


def size_of(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def read_manifest(folder: Path, *, source: str | None = None) -> dict[str, Any]:
    """What `Exporter.write` noted, after every file was checked. Raises ArtefactError for a file that is missing or not
    what was written, and for a model made from other weights than those of the digest `source`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, found = manifest["files"], manifest["source"]
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder}: no exported model there (no {MANIFEST})") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: broken ({error})") from error
    for name, expected in files.items():
        file = folder / name
        if not file.exists():
            raise ArtifactError(f"{file}: missing")
        if (is_now := _digest(file)) != expected:
            raise ArtifactError(f"{file}: is not what was written (digest {is_now}, expected {expected}): export again")
    if source is not None and found != source:
        raise ArtifactError(f"{folder}: made from weights {found}, expected {source}: export again")
    return manifest


def _digest(file: Path) -> str:
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}, {file.stat().st_size} bytes"


class _Heap:
    """Constants one after the other, equal ones once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.known: dict[bytes, int] = {}

    def take(self, model: ir.Model) -> None:
        """Moves the constants of a graph here, but for the smallest, and for integers that shapes are made of."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            values = np.ascontiguousarray(tensor.numpy())
            held = values.tobytes()
            if len(held) < SMALL or tensor.dtype is ir.DataType.INT64:
                continue
            key = hashlib.sha256(held).digest()
            if key not in self.known:
                self.data += b"\0" * (-len(self.data) % 16)
                self.known[key] = len(self.data)
                self.data += held
            value.const_value = ir.ExternalTensor(
                WEIGHTS,
                self.known[key],
                len(held),
                tensor.dtype,
                shape=ir.Shape(values.shape),
                name=str(value.name),
            )
