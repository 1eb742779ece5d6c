"""An exported model on disk: graphs as functions, each once, all weights in one file, and a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from omni_lab.engine.onnx_proto import TensorSpec

MANIFEST, WEIGHTS, FUNCTIONS, TOKENIZER = "manifest.json", "weights.bin", "functions.bin", "tokenizer.json"


class ArtifactError(ValueError):
    """Files are missing, broken or made from something else: the message says which and how."""


@dataclass(frozen=True)
class PartEntry:
    """A part of the model: a function, and the weights that it is called with.

    inputs: without the weights. outputs: NumPy type and number of axes of each. precision: as `Precision` names it.
    """

    function: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[tuple[str, int]]
    weights: Sequence[str]
    precision: str


class GraphLibrary:
    """What `Exporter.write` wrote to a folder, after all files were checked against the manifest.

    source: digest of the weights that the model must be made from; None: any.
    Raises ArtifactError for a file that is missing or changed, and for a model made from other weights.
    """

    def __init__(self, folder: Path, *, source: str | None = None) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, source=source)
        self.model: Mapping[str, Any] = self.manifest["model"]
        self.parts = {
            name: PartEntry(
                part["function"],
                [TensorSpec(n, dtype, tuple(shape)) for n, dtype, shape in part["inputs"]],
                [(dtype, axes) for dtype, axes in part["outputs"]],
                part["weights"],
                part["precision"],
            )
            for name, part in self.manifest["parts"].items()
        }
        self._functions = (folder / FUNCTIONS).read_bytes()
        self._weights = np.memmap(folder / WEIGHTS, np.uint8, "r")

    def function(self, name: str) -> bytes:
        """The function of that name, as a protocol buffer."""
        start, length = self.manifest["functions"][name]
        return self._functions[start : start + length]

    def weight_spec(self, name: str) -> TensorSpec:
        dtype, shape, start = self.manifest["weights"][name]
        return TensorSpec(name, dtype, tuple(shape), (start, np.dtype(dtype).itemsize * int(np.prod(shape))))

    def weight(self, name: str) -> np.ndarray:
        """A weight, mapped from the file."""
        _, dtype, shape, (start, length) = self.weight_spec(name)
        return self._weights[start : start + length].view(dtype).reshape(shape)

    @cached_property
    def answers(self) -> Sequence[str]:
        return self.model["answers"]


def read_manifest(folder: Path, *, source: str | None = None) -> dict[str, Any]:
    """The manifest, after all files were checked against it; see `GraphLibrary`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, actual_source = manifest["files"], manifest["source"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{folder}: no exported model there (no {MANIFEST})") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: broken ({error})") from error
    for name, expected in files.items():
        file = folder / name
        if not file.exists():
            raise ArtifactError(f"{file}: missing")
        if (actual := file_digest(file)) != expected:
            raise ArtifactError(f"{file}: changed after export (digest {actual}, expected {expected}): export again")
    if source is not None and actual_source != source:
        raise ArtifactError(f"{folder}: made from weights {actual_source}, expected {source}: export again")
    return manifest


def file_digest(file: Path) -> str:
    """Of its content, and its size."""
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}, {file.stat().st_size} bytes"
