"""Writes a compressed model to a folder that `omni_lab.engine` runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from omni_lab.batch import ComputeLevel, Modality
from omni_lab.compression.graph_cache import graph_digest, load_graph, save_graphs, store_graph
from omni_lab.compression.graphs import CONTRIB_DOMAIN, OPSET, Function, fill_graph, graph_function, trace_graph
from omni_lab.compression.joints import joining_parts
from omni_lab.compression.parts import AssemblySpec, ModelPart
from omni_lab.compression.precision import PrecisionPolicy, QuantRange
from omni_lab.engine.library import FUNCTIONS, MANIFEST, TOKENIZER, WEIGHTS, ArtifactError, file_digest
from omni_lab.engine.route_graph import RouteSignature
from omni_lab.routing.cost import CostModel
from omni_lab.routing.route import QUESTION_ORDER, Route, RouteSpace
from omni_lab.routing.router import Router, penalty_knots
from omni_lab.routing.sequential import SequentialRouter
from omni_lab.utils.parallel import parallel_map

ALIGNMENT = 64  # bytes, of weights in their file
Ranges = Mapping[str, Mapping[str, QuantRange]]  # part -> linear layer -> range of its input


class Exporter:
    """Writes parts to files. Parts that differ in their weights alone are traced once.

    Graphs that were traced before, here or for the published models, are read from disk: see `graph_cache`.
    """

    def __init__(self, *, opset: int = OPSET) -> None:
        self.opset = opset
        self.num_traced = 0  # graphs that were not on disk
        self._traced: dict[tuple[object, ...], ir.Model] = {}
        self._stored: dict[str, bytes] = {}  # by digest

    def graph(self, part: ModelPart) -> ir.Model:
        """The traced graph of a part, weights not yet filled in."""
        for _ in self.trace([part]):
            pass
        return self._traced[part.graph_key]

    def trace(self, parts: Sequence[ModelPart]) -> Iterator[str]:
        """Traces what these parts need and neither this exporter nor the disk has, on all cores; yields a name as each
        is done."""
        wanted = {part.graph_key: part for part in parts if part.graph_key not in self._traced}
        new = {}
        for part in wanted.values():
            digest = graph_digest(part, self.opset)
            stored = load_graph(digest)
            if stored is None:
                new[digest] = part
            else:
                self._keep(part, digest, stored)
                yield part.name
        ordered = sorted(new.items(), key=lambda item: -sum(1 for _ in item[1].module.modules()))  # the longest first
        parts = [part for _, part in ordered]
        traced = parallel_map(partial(_trace_bytes, opset=self.opset), parts, min_items=2, chunksize=1)
        for (digest, part), model in zip(ordered, traced, strict=True):
            store_graph(digest, model)
            self.num_traced += 1
            self._keep(part, digest, model)
            yield part.name

    def save_graphs(self, file: Path) -> None:
        """Writes all graphs that were needed to one zip file."""
        save_graphs(file, self._stored)

    def _keep(self, part: ModelPart, digest: str, model: bytes) -> None:
        self._traced[part.graph_key] = ir.from_proto(onnx.ModelProto.FromString(model))
        self._stored[digest] = model

    def write(
        self,
        folder: Path,
        parts: Sequence[ModelPart],
        spec: AssemblySpec,
        *,
        policy: PrecisionPolicy,
        source: str,
        answers: Sequence[str],
        router: Router | SequentialRouter | None = None,
        ranges: Ranges | None = None,
        routes: Iterable[RouteSignature] = (),
        tokenizer: str | None = None,
        shapes: Mapping[Modality, Sequence[int]] | None = None,
        costs: CostModel | None = None,
    ) -> int:
        """Writes the model to `folder`, replacing what is there; returns its size in bytes.

        source: digest of the weights that it is made from.
        answers: the texts of the answer head's classes.
        router: whose parts are among `parts`.
        ranges: for int8; None: each input's own range is found at run time.
        routes: those whose graphs are built when the model is loaded, the most frequent first.
        tokenizer: of the package tokenizers, as JSON; without it, questions must come as token ids.
        shapes: of images and videos, for whoever makes them from files.
        costs: closed forms of FLOPs, see `engine.flops`.
        Raises ValueError for a policy that names a part that does not exist, ArtifactError where the folder cannot be
        written; what was there before stays then.
        """
        policy.check(part.name for part in parts)
        library = _LibraryWriter()
        dim = next(p.module.module[-1].in_features for p in parts if p.name == "answer.classify")  # type: ignore
        every = [*parts, *joining_parts(spec, router, dim=dim)]
        for _ in self.trace(every):
            pass
        for part in every:
            precision = policy.precision_of(part.name)
            part_ranges = None if ranges is None else ranges.get(part.name, {})
            traced = self.graph(part)
            filled = fill_graph(traced, part, precision, part_ranges)
            function = graph_function(filled, traced)
            inputs = _input_specs(part)
            library.add(part.name, function, inputs, precision.value)
        manifest = {
            "source": source,
            "policy": policy.name,
            "opsets": {"": self.opset, CONTRIB_DOMAIN: 1},
            "model": {
                **_describe(spec, parts, answers, router, dim=dim),
                "shapes": {m.value: [*shape] for m, shape in (shapes or {}).items()},
                "flops": None if costs is None else _describe_costs(costs, spec.space),
            },
            "routes": [signature.to_json() for signature in routes],
            **library.entries(),
        }
        contents = {FUNCTIONS: bytes(library.functions), WEIGHTS: bytes(library.weights)}
        if tokenizer is not None:
            contents[TOKENIZER] = tokenizer.encode()
        return _write_folder(folder, contents, manifest)


def _trace_bytes(part: ModelPart, *, opset: int) -> bytes:
    """In a process of its own: what it returns must be bytes."""
    return ir.to_proto(trace_graph(part, opset=opset)).SerializeToString()


def route_signatures(route: Route, space: RouteSpace) -> list[RouteSignature]:
    """What each sample of a batch runs."""
    signatures = []
    for levels, runs in zip(route.encoder_levels.tolist(), space.path_mask(route).tolist(), strict=True):
        levels = tuple((m.value, levels[m.column]) for m in space.modalities if levels[m.column])
        paths = tuple(
            (layer, path.query.value, path.key.value)
            for layer, row in enumerate(runs)
            for path, opened in zip(space.paths, row, strict=True)
            if opened and (layer, path) not in space.pruned_paths
        )
        signatures.append(RouteSignature(levels, paths))
    return signatures


def _describe(
    spec: AssemblySpec,
    parts: Sequence[ModelPart],
    answers: Sequence[str],
    router: Router | SequentialRouter | None,
    *,
    dim: int,
) -> dict[str, Any]:
    """What a runtime must know about the model beside its parts."""
    space, names = spec.space, {part.name for part in parts}
    encoders: dict[str, dict[str, str]] = {}
    for m in space.modalities:
        for level in space.allowed_levels(m):
            name = f"encoder.{m}" + f".{level.name.lower()}" * (level is not ComputeLevel.FULL)
            if name in names:
                encoders.setdefault(m.value, {})[str(int(level))] = name
    every = [(layer, path) for layer in range(space.depth) for path in space.paths]
    return {
        "modalities": [m.value for m in space.modalities],
        "columns": {m.value: m.column for m in Modality},
        "question_order": [m.value for m in QUESTION_ORDER if m in space.modalities],
        "encoders": encoders,
        "depth": space.depth,
        "paths": [[layer, p.query, p.key] for layer, p in every if (layer, p) not in space.pruned_paths],
        "router_paths": [[p.query, p.key] for p in space.paths],
        "dim": dim,
        "samples_per_token": spec.samples_per_token,
        "answers": [*answers],
        "costs": [*spec.costs],
        "knots": penalty_knots().tolist(),
        "actions": [[m, level] for m, level in router.actions] if isinstance(router, SequentialRouter) else [],
    }


def _describe_costs(costs: CostModel, space: RouteSpace) -> dict[str, Any]:
    """A cost model as JSON: FLOPs of encoders as coefficients of 1, n and n^2, the other fields of `CostModel`."""
    encoders = {
        m.value: {str(int(v)): costs.encoder_coefs[m.column, v].tolist() for v in space.allowed_levels(m) if v}
        for m in space.modalities
    }
    return {
        "encoders": encoders,
        "dim": costs.dim,
        "mlp_dim": costs.mlp_dim,
        "gated": int(costs.gated),
        "tokens_per_item": {m.value: n for m, n in costs.tokens_per_item.items()},
        "head": [*costs.head_flops],
        "router": costs.router_flops,
    }


def _input_specs(part: ModelPart) -> list[list[Any]]:
    specs = []
    for name, example in zip(part.inputs, part.example, strict=True):
        shape = [-1, *example.shape[1:]]
        if part.variable_length:
            shape[1] = -1
        specs.append([name, str(example.dtype).removeprefix("torch."), shape])
    return specs


def _write_folder(folder: Path, contents: Mapping[str, bytes], manifest: dict[str, Any]) -> int:
    """Beside the folder first, so that a full disk leaves what was there."""
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for name, content in contents.items():
            (scratch / name).write_bytes(content)
        manifest = {**manifest, "files": {name: file_digest(scratch / name) for name in sorted(contents)}}
        (scratch / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error}); what was there before is unchanged") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return sum(file.stat().st_size for file in folder.iterdir())


class _LibraryWriter:
    """Functions and weights one after the other, equal ones once."""

    def __init__(self) -> None:
        self.functions, self.weights = bytearray(), bytearray()
        self._parts: dict[str, dict[str, Any]] = {}
        self._functions: dict[str, list[int]] = {}
        self._weights: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._rows: dict[str, list[Any]] = {}

    def add(self, name: str, function: Function, inputs: list[list[Any]], precision: str) -> None:
        if function.name not in self._functions:
            self._functions[function.name] = [len(self.functions), len(function.serialized)]
            self.functions += function.serialized
        self._parts[name] = {
            "function": function.name,
            "inputs": inputs,
            "outputs": function.outputs,
            "weights": [self._weight(array) for array in function.weights],
            "precision": precision,
        }

    def _weight(self, array: np.ndarray) -> str:
        content = array.tobytes()
        key = (str(array.dtype), array.shape, hashlib.sha256(content).digest())
        if key not in self._weights:
            self.weights += b"\0" * (-len(self.weights) % min(ALIGNMENT, max(len(content), 1)))
            name = self._weights[key] = f"w{len(self._weights)}"
            self._rows[name] = [str(array.dtype), [*array.shape], len(self.weights)]
            self.weights += content
        return self._weights[key]

    def entries(self) -> dict[str, Any]:
        return {"parts": self._parts, "functions": self._functions, "weights": self._rows}
