"""One graph for one route: encoders, open paths, blocks and answer head, joined from the functions of a library.

The graph has no control flow: what a route skips is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from omni_lab.engine.library import WEIGHTS, GraphLibrary
from omni_lab.engine.onnx_proto import DOMAIN, Call, TensorSpec, model_bytes

ANSWER = "answer"


class RouteSignature(NamedTuple):
    """What a route runs; questions of equal signatures are answered by one graph.

    levels: (modality, level) of each modality that runs, in their order.
    paths: (layer, query, key) of each open path.
    """

    levels: tuple[tuple[str, int], ...]
    paths: tuple[tuple[int, str, str], ...]

    def to_json(self) -> list[list[list[str | int]]]:
        return [[list(pair) for pair in self.levels], [list(path) for path in self.paths]]

    @classmethod
    def from_json(cls, stored: Sequence[Sequence[Sequence[str | int]]]) -> RouteSignature:
        return cls(*(tuple(map(tuple, rows)) for rows in stored))  # type: ignore[arg-type]


class Graph(NamedTuple):
    """A model as bytes, the weights that a session must be given (name in the graph -> name in the library), and the
    names of the outputs."""

    model: bytes
    weights: Mapping[str, str]
    outputs: Sequence[str]


class Stream(NamedTuple):
    """Names of the values of one modality's tokens [B, N, D] and their mask [B, N]."""

    values: str
    mask: str


@dataclass
class GraphBuilder:
    """Calls of functions, one after the other, that become a graph."""

    library: GraphLibrary
    calls: list[Call] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    functions: dict[str, bytes] = field(default_factory=dict)
    inputs: list[TensorSpec] = field(default_factory=list)
    count: int = 0

    def part(self, name: str, *inputs: str) -> list[str]:
        """Calls the function of a part; returns the names of its outputs."""
        part = self.library.parts[name]
        self.functions.setdefault(part.function, self.library.function(part.function))
        # a name for each use: ONNX Runtime derives names from it when it packs, and two uses would collide
        own = {f"{weight}.{len(self.weights) + i}": weight for i, weight in enumerate(part.weights)}
        self.weights |= own
        outputs = [self._new_name() for _ in part.outputs]
        self.calls.append(Call(part.function, [*inputs, *own], outputs, DOMAIN))
        return outputs

    def op(self, name: str, *inputs: str, axis: int | None = None) -> str:
        """An operator of ONNX with one output."""
        output = self._new_name()
        self.calls.append(Call(name, inputs, [output], axis=axis))
        return output

    def input(self, name: str, dtype: str, *shape: int) -> str:
        self.inputs.append(TensorSpec(name, dtype, shape))
        return name

    def graph(self, outputs: Mapping[str, tuple[str, TensorSpec]]) -> Graph:
        """outputs: by their names in the graph, the value and what it is."""
        for name, (value, _) in outputs.items():
            self.calls.append(Call("Identity", [value], [name]))
        opsets = [(domain, version) for domain, version in self.library.manifest["opsets"].items()]
        model = model_bytes(
            self.calls,
            functions=self.functions.values(),
            inputs=self.inputs,
            outputs=[spec._replace(name=name) for name, (_, spec) in outputs.items()],
            weights=[self.library.weight_spec(weight)._replace(name=name) for name, weight in self.weights.items()],
            opsets=[*opsets, (DOMAIN, 1)],
            file=WEIGHTS,
        )
        return Graph(model, self.weights, [*outputs])

    def raw(self, modality: str) -> list[str]:
        """The distinct inputs of a modality and their mask."""
        full = max(self.library.model["encoders"][modality].items(), key=lambda pair: int(pair[0]))[1]
        specs = zip(self.library.parts[full].inputs, ("values", "mask"), strict=True)
        return [self.input(f"{modality}.{kind}", spec.dtype, *spec.shape) for spec, kind in specs]

    def encode(self, modality: str, level: int, raw: Sequence[str] | None = None) -> Stream:
        """Tokens of the distinct inputs of a modality, from the raw ones."""
        name = self.library.model["encoders"][modality][str(level)]
        values, mask, *_ = self.part(name, *(self.raw(modality) if raw is None else raw))
        return Stream(self.part("latents", values)[0] if "latents" in self.library.parts else values, mask)

    def summarise(self, modality: str, stream: Stream) -> str:
        """The mean token of each sample."""
        entry = self.input(f"{modality}.entry", "int64", -1)
        return self.op("Gather", self.part("router.pool", *stream)[0], entry, axis=0)

    def tokens(self, modality: str) -> Stream:
        """Tokens that are given."""
        dim = self.library.model["dim"]
        return Stream(
            self.input(f"{modality}.tokens", "float32", -1, -1, dim),
            self.input(f"{modality}.token_mask", "bool", -1, -1),
        )

    def per_sample(self, modality: str, stream: Stream) -> Stream:
        """The tokens of each sample, from those of distinct inputs."""
        entry = self.input(f"{modality}.entry", "int64", -1)
        return Stream(*(self.op("Gather", name, entry, axis=0) for name in stream))

    def fuse(
        self,
        streams: Mapping[str, Stream],
        open_paths: Sequence[tuple[int, str, str]],
        gates: Mapping[tuple[int, str, str], str],
    ) -> dict[str, Stream]:
        """All layers. gates: factors of the paths [B, 1, 1], of those that have one."""
        model, fused = self.library.model, dict(streams)
        for layer in range(model["depth"]):
            after = dict(fused)
            for modality, stream in fused.items():
                block = f"block.{layer}.{modality}"
                if block not in self.library.parts:
                    continue
                total = stream.values
                for depth, query, key in model["paths"]:
                    path = (depth, query, key)
                    if depth == layer and query == modality and path in open_paths:
                        added = self.part(f"path.{depth}.{query}_from_{key}", *stream, *fused[key])[0]
                        total = self.op("Add", total, self.op("Mul", added, gates[path]) if path in gates else added)
                after[modality] = Stream(self.part(block, total, stream.mask)[0], stream.mask)
            fused = after
        return fused

    def answer(self, streams: Mapping[str, Stream], weights: Mapping[str, str], *, context: bool = False) -> Graph:
        """The answer head, and the whole graph. weights: factors of the modalities [B, 1], of those that have one.
        context: also return the streams."""
        projections = []
        for modality, stream in streams.items():
            projected = self.part(f"answer.summary.{modality}", self.part("answer.pool", *stream)[0])[0]
            projections.append(self.op("Mul", projected, weights[modality]) if modality in weights else projected)
        summed = self.op("Sum", *projections)
        count = len(self.library.answers)
        outputs = {ANSWER: (self.part("answer.classify", summed)[0], TensorSpec("", "float32", (-1, count)))}
        for modality, stream in streams.items() if context else ():
            outputs |= {f"{modality}.{name}": value for name, value in token_outputs(self.library, stream).items()}
        return self.graph(outputs)

    def _new_name(self) -> str:
        self.count += 1
        return f"t{self.count}"


def route_graph(
    library: GraphLibrary, signature: RouteSignature, given: Sequence[str] = (), context: bool = False
) -> Graph:
    """From raw inputs to the answer's logits [B, A].

    given: modalities whose tokens are given in place of raw inputs.
    context: also return the fused tokens and their masks, which other heads read.

    Inputs of a modality m: m.values and m.mask (or m.tokens and m.token_mask) of U distinct inputs, and m.entry [B],
    the one that each sample has.
    """
    builder, streams = GraphBuilder(library), {}
    for modality, level in signature.levels:
        stream = builder.tokens(modality) if modality in given else builder.encode(modality, level)
        streams[modality] = builder.per_sample(modality, stream)
    fused = builder.fuse(streams, signature.paths, {})
    return builder.answer(fused, {}, context=context)


def gated_graph(library: GraphLibrary, question: str) -> Graph:
    """Every route of the questions in one modality: from tokens, with a factor for each path and modality.

    It computes what a route skips and multiplies it by zero: the way to answer until a route has its graph.
    Inputs besides those of `route_graph`: keep.m [B, 1] of each modality but the question's, gate.<path> [B, 1, 1].
    """
    builder, model = GraphBuilder(library), library.model
    streams = {
        m: builder.per_sample(m, builder.tokens(m)) for m in model["modalities"] if may_run(library, question, m)
    }
    paths = [(layer, q, k) for layer, q, k in model["paths"] if q in streams and k in streams]
    gates = {path: builder.input(gate_name(path), "float32", -1, 1, 1) for path in paths}
    keep = {m: builder.input(f"keep.{m}", "float32", -1, 1) for m in streams if m != question}
    return builder.answer(builder.fuse(streams, paths, gates), keep)


def gate_name(path: tuple[int, str, str]) -> str:
    layer, query, key = path
    return f"gate.{layer}.{query}_from_{key}"


def may_run(library: GraphLibrary, question: str, modality: str) -> bool:
    """Whether a sample whose question comes in one modality can have another: not one before it in the order."""
    order = library.model["question_order"]
    return order.index(modality) >= order.index(question)


def part_graph(library: GraphLibrary, name: str) -> Graph:
    """One part alone. Its outputs are named by their place."""
    builder, part = GraphBuilder(library), library.parts[name]
    found = builder.part(name, *(builder.input(*spec[:2], *spec.shape) for spec in part.inputs))
    specs = [TensorSpec("", dtype, (-1,) * axes) for dtype, axes in part.outputs]
    return builder.graph({str(i): pair for i, pair in enumerate(zip(found, specs, strict=True))})


def encoder_graph(library: GraphLibrary, modality: str, level: int) -> Graph:
    """From raw inputs [U, ...] of a modality to their tokens."""
    builder = GraphBuilder(library)
    return builder.graph(token_outputs(library, builder.encode(modality, level)))


def token_outputs(library: GraphLibrary, stream: Stream) -> dict[str, tuple[str, TensorSpec]]:
    return {
        "tokens": (stream.values, TensorSpec("", "float32", (-1, -1, library.model["dim"]))),
        "token_mask": (stream.mask, TensorSpec("", "bool", (-1, -1))),
    }
