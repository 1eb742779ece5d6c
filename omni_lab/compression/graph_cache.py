"""Traced graphs on disk. Tracing takes seconds for each, and its result depends on code, shapes and settings alone."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import omni_lab.compression.graphs as tracing
from omni_lab.compression.parts import ModelPart
from omni_lab.utils.env import project_root

PACKAGE = Path(__file__).parents[1]
DATA_ONLY = ("config", "utils")  # rooms whose values reach a graph through the modules' own attributes
PUBLISHED = Path("reports", "published", "standard", "08_ablation_quantization", "seed0", "graphs.zip")
FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the same graphs give the same file


def graph_digest(part: ModelPart, opset: int) -> str:
    """Of all that decides a part's graph: the code of its modules and of what they import, their settings, buffers and
    shapes of weights, and the exporter."""
    found = hashlib.sha256()
    version = torch.__version__.partition("+")[0]  # without the kind of build
    described = [version, str(opset), str(part.inputs), str(part.variable_length)]
    free = 1 + part.variable_length  # axes of which the exporter sees only whether they are longer than one
    described += [f"{[min(n, 2) for n in x.shape[:free]]} {[*x.shape[free:]]} {x.dtype}" for x in part.example]
    files = {Path(tracing.__file__)}
    for name, module in part.module.named_modules():
        described.append(f"{name}: {type(module).__qualname__} {_settings(module)}")
        source = Path(inspect.getfile(type(module)))
        if PACKAGE in source.parents:
            files.add(source)
    described += [f"{name} {tuple(weight.shape)}" for name, weight in part.module.named_parameters()]
    for name, buffer in part.module.named_buffers():
        described.append(name)
        found.update(buffer.detach().cpu().contiguous().numpy().tobytes())
    described += sorted(_code_digest(file) for file in _with_imports(files))
    found.update("\n".join(described).encode())
    return found.hexdigest()[:24]


def load_graph(digest: str) -> bytes | None:
    """The graph of that digest, as a protocol buffer, if it was stored here or published with the project."""
    file = _folder() / f"{digest}.onnx"
    if file.exists():
        return file.read_bytes()
    published = project_root() / PUBLISHED
    return _read_archive(published).get(digest) if published.exists() else None


def store_graph(digest: str, graph: bytes) -> None:
    """Keeps a graph. A folder that cannot be written is no error: the graph is traced again next time."""
    part = _folder() / f".{digest}.{os.getpid()}.part"
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        part.write_bytes(graph)
        part.replace(_folder() / f"{digest}.onnx")  # whole, or not at all
    except OSError:
        with suppress(OSError):
            part.unlink()


def save_graphs(file: Path, graphs: Mapping[str, bytes]) -> None:
    """Writes graphs by their digests to one zip file, from which `load_graph` reads once it is published."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        for digest, graph in sorted(graphs.items()):
            archive.writestr(zipfile.ZipInfo(f"{digest}.onnx", FIXED_DATE), graph, zipfile.ZIP_LZMA)


def _folder() -> Path:
    return project_root() / "data" / "graphs"


@cache
def _read_archive(file: Path) -> Mapping[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name.removesuffix(".onnx"): archive.read(name) for name in archive.namelist()}


def _settings(module: nn.Module) -> dict[str, Any]:
    """Plain attributes of a module, such as strides, sizes and a level."""
    plain = (bool, int, float, str, tuple, type(None))
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {name: value for name, value in sorted(own.items()) if isinstance(value, plain)}


@cache
def _code_digest(file: Path) -> str:
    """Of a module's code, without comments and docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _with_imports(files: set[Path]) -> set[Path]:
    """These modules of ours, and all modules of ours that they import, except `DATA_ONLY`."""
    found, waiting = set[Path](), [*files]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imports(file)
    return found


@cache
def _imports(file: Path) -> list[Path]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [node.module.split(".") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    ours = [PACKAGE.joinpath(*rest).with_suffix(".py") for first, *rest in names if first == PACKAGE.name and rest]
    return [path for path in ours if path.exists() and path.relative_to(PACKAGE).parts[0] not in DATA_ONLY]
