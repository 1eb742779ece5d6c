"""The compressed model on disk: an ONNX graph per part, all weights in one file without duplicates, and a manifest."""

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

from omni_lab.compression.graphs import OPSET, fill_graph, trace_graph
from omni_lab.compression.parts import AssemblySpec, ModelPart
from omni_lab.compression.precision import PrecisionPolicy, QuantRange

MANIFEST, WEIGHTS = "manifest.json", "weights.bin"
MIN_EXTERNAL_BYTES = 64  # smaller constants stay inside their graph
Ranges = Mapping[str, Mapping[str, QuantRange]]  # part -> linear layer -> range of its input


class ArtifactError(RuntimeError):
    """Files are missing, broken or made from something else: the message says which and how."""


class Exporter:
    """Writes parts to files. Parts that differ in their weights alone are traced once."""

    def __init__(self, *, opset: int = OPSET) -> None:
        self.opset = opset
        self._traced: dict[tuple[object, ...], ir.Model] = {}

    def graph(self, part: ModelPart) -> ir.Model:
        """The traced graph of a part, weights not yet filled in."""
        if part.graph_key not in self._traced:
            self._traced[part.graph_key] = trace_graph(part, opset=self.opset)
        return self._traced[part.graph_key]

    def write(
        self,
        folder: Path,
        parts: Sequence[ModelPart],
        spec: AssemblySpec,
        *,
        policy: PrecisionPolicy,
        source: str,
        ranges: Ranges | None = None,
    ) -> int:
        """Writes the model to `folder`, replacing what is there; returns its size in bytes.

        source: digest of the weights that it is made from.
        ranges: for int8; None: each input's own range is found at run time.
        Raises ValueError for a policy that names a part that does not exist.
        """
        policy.check(part.name for part in parts)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            weights, entries = _WeightsFile(), {}
            for part in parts:
                precision = policy.precision_of(part.name)
                part_ranges = None if ranges is None else ranges.get(part.name, {})
                model = fill_graph(self.graph(part), part, precision, part_ranges)
                weights.move_constants(model)
                ir.save(model, scratch / f"{part.name}.onnx")
                entries[part.name] = {"precision": precision.value, "inputs": [*part.inputs]}
            (scratch / WEIGHTS).write_bytes(weights.data)
            manifest = {
                "source": source,
                "policy": policy.name,
                "opset": self.opset,
                "frame": spec.to_dict(),
                "parts": entries,
                "files": {file.name: _digest(file) for file in sorted(scratch.iterdir())},
            }
            (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return sum(file.stat().st_size for file in folder.iterdir())


def read_manifest(folder: Path, *, source: str | None = None) -> dict[str, Any]:
    """The manifest, after all files were checked against it.

    source: digest of the weights that the model must be made from; None: any.
    Raises ArtifactError for a file that is missing or changed, and for a model made from other weights.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, actual_source = manifest["files"], manifest["source"]
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder}: no exported model there (no {MANIFEST})") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: broken ({error})") from error
    for name, expected in files.items():
        file = folder / name
        if not file.exists():
            raise ArtifactError(f"{file}: missing")
        if (actual := _digest(file)) != expected:
            raise ArtifactError(f"{file}: changed after export (digest {actual}, expected {expected}): export again")
    if source is not None and actual_source != source:
        raise ArtifactError(f"{folder}: made from weights {actual_source}, expected {source}: export again")
    return manifest


def _digest(file: Path) -> str:
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}, {file.stat().st_size} bytes"


class _WeightsFile:
    """The constants of all graphs one after the other, equal ones once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.offsets: dict[bytes, int] = {}

    def move_constants(self, model: ir.Model) -> None:
        """Moves the constants of a graph to the file, except the smallest, and integers, which shapes are made of."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            array = np.ascontiguousarray(tensor.numpy())
            content = array.tobytes()
            if len(content) < MIN_EXTERNAL_BYTES or tensor.dtype is ir.DataType.INT64:
                continue
            key = hashlib.sha256(content).digest()
            if key not in self.offsets:
                self.data += b"\0" * (-len(self.data) % 16)
                self.offsets[key] = len(self.data)
                self.data += content
            place = (WEIGHTS, self.offsets[key], len(content), tensor.dtype)
            value.const_value = ir.ExternalTensor(*place, shape=ir.Shape(array.shape), name=str(value.name))
