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


class _Stream(NamedTuple):
    """Names of the values of one modality's tokens [B, N, D] and their mask [B, N]."""

    values: str
    mask: str


@dataclass
class _Builder:
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

    def encode(self, modality: str, level: int, raw: Sequence[str] | None = None) -> _Stream:
        """Tokens of the distinct inputs of a modality, from the raw ones."""
        name = self.library.model["encoders"][modality][str(level)]
        values, mask, *_ = self.part(name, *(self.raw(modality) if raw is None else raw))
        return _Stream(self.part("latents", values)[0] if "latents" in self.library.parts else values, mask)

    def summarise(self, modality: str, stream: _Stream) -> str:
        """The mean token of each sample."""
        entry = self.input(f"{modality}.entry", "int64", -1)
        return self.op("Gather", self.part("router.pool", *stream)[0], entry, axis=0)

    def decide(self, stream: _Stream, computed: Mapping[str, str], found: Mapping[str, str]) -> Graph:
        """The step of a sequential router, and the whole graph. computed: inputs of the step that are no inputs of the
        graph. found: outputs [B, k] besides action [B], levels [B, M], paths [B, L, P] and the tokens of `stream`."""
        model, inputs = self.library.model, self.library.parts["router.step"].inputs
        width = {spec.name: spec.shape[1] for spec in inputs if len(spec.shape) == 2}
        action, levels, paths = self.part(
            "router.step",
            *(computed.get(spec.name) or self.input(spec.name, spec.dtype, *spec.shape) for spec in inputs),
        )
        sizes = (model["depth"], len(model["router_paths"]))
        return self.graph(
            {
                "action": (action, TensorSpec("", "int64", (-1,))),
                "levels": (levels, TensorSpec("", "int64", (-1, len(model["columns"])))),
                "paths": (paths, TensorSpec("", "bool", (-1, *sizes))),
                **{n: (x, TensorSpec("", "float32", (-1, width.get(n, model["dim"])))) for n, x in found.items()},
                **_token_outputs(self.library, stream),
            }
        )

    def tokens(self, modality: str) -> _Stream:
        """Tokens that are given."""
        dim = self.library.model["dim"]
        return _Stream(
            self.input(f"{modality}.tokens", "float32", -1, -1, dim),
            self.input(f"{modality}.token_mask", "bool", -1, -1),
        )

    def per_sample(self, modality: str, stream: _Stream) -> _Stream:
        """The tokens of each sample, from those of distinct inputs."""
        entry = self.input(f"{modality}.entry", "int64", -1)
        return _Stream(*(self.op("Gather", name, entry, axis=0) for name in stream))

    def fuse(
        self,
        streams: Mapping[str, _Stream],
        open_paths: Sequence[tuple[int, str, str]],
        gates: Mapping[tuple[int, str, str], str],
    ) -> dict[str, _Stream]:
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
                after[modality] = _Stream(self.part(block, total, stream.mask)[0], stream.mask)
            fused = after
        return fused

    def answer(self, streams: Mapping[str, _Stream], weights: Mapping[str, str], *, context: bool = False) -> Graph:
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
            outputs |= {f"{modality}.{name}": value for name, value in _token_outputs(self.library, stream).items()}
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
    builder, streams = _Builder(library), {}
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
    builder, model = _Builder(library), library.model
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
    builder, part = _Builder(library), library.parts[name]
    found = builder.part(name, *(builder.input(*spec[:2], *spec.shape) for spec in part.inputs))
    specs = [TensorSpec("", dtype, (-1,) * axes) for dtype, axes in part.outputs]
    return builder.graph({str(i): pair for i, pair in enumerate(zip(found, specs, strict=True))})


def encoder_graph(library: GraphLibrary, modality: str, level: int) -> Graph:
    """From raw inputs [U, ...] of a modality to their tokens."""
    builder = _Builder(library)
    return builder.graph(_token_outputs(library, builder.encode(modality, level)))


def decision_graph(library: GraphLibrary, question: str) -> Graph:
    """From questions in one modality to the router's decisions, levels [B, M] and paths [B, L, P], and their tokens.

    Inputs besides those of `route_graph`: present [B, M] as numbers, and of a penalty-conditioned router penalty [B].
    """
    builder, model = _Builder(library), library.model
    full = max(map(int, model["encoders"][question]))
    stream = builder.encode(question, full)
    entry = builder.input(f"{question}.entry", "int64", -1)
    summary = builder.op("Gather", builder.part("router.pool", *stream)[0], entry, axis=0)
    inputs = [summary, builder.input("present", "float32", -1, len(model["columns"]))]
    if "router.knots" in library.parts:
        inputs.append(builder.part("router.knots", builder.input("penalty", "float32", -1))[0])
    logits = builder.part(f"router.{question}", *inputs)[0]
    levels, paths = builder.part("router.decide", logits, inputs[1])
    sizes = (model["depth"], len(model["router_paths"]))
    return builder.graph(
        {
            "levels": (levels, TensorSpec("", "int64", (-1, len(model["columns"])))),
            "paths": (paths, TensorSpec("", "bool", (-1, *sizes))),
            **_token_outputs(library, stream),
        }
    )


def first_look_graph(library: GraphLibrary, question: str, media: Sequence[str]) -> Graph:
    """The first step of a sequential router: from questions in one modality, and glances at `media`, to its decision.

    Inputs besides those of `encoder_graph` (of the question, and of each medium of which there are inputs): m.entry
    [B], and the inputs of the part router.step that this graph does not compute. Outputs: see `_Builder.decide`; also
    question [B, D] and glance.m [B, G] of each medium.
    """
    builder = _Builder(library)
    raw = builder.raw(question)
    stream = builder.encode(question, max(map(int, library.model["encoders"][question])), raw)
    summary = builder.summarise(question, stream)
    found = {"question": summary}
    for m in media:
        entry = f"{m}.entry" if m == question else builder.input(f"{m}.entry", "int64", -1)
        glance = builder.part(f"router.glance.{m}", *(raw if m == question else builder.raw(m)))[0]
        found[f"glance.{m}"] = builder.op("Gather", glance, entry, axis=0)
    return builder.decide(stream, {**found, f"summary.{question}": summary}, found)


def look_graph(library: GraphLibrary, modality: str, level: int) -> Graph:
    """A further step: an encoder runs, and the router decides again. Inputs and outputs as of `first_look_graph`; also
    summary [B, D], what the encoder found."""
    builder = _Builder(library)
    stream = builder.encode(modality, level)
    summary = builder.summarise(modality, stream)
    return builder.decide(stream, {f"summary.{modality}": summary}, {"summary": summary})


def _token_outputs(library: GraphLibrary, stream: _Stream) -> dict[str, tuple[str, TensorSpec]]:
    return {
        "tokens": (stream.values, TensorSpec("", "float32", (-1, -1, library.model["dim"]))),
        "token_mask": (stream.mask, TensorSpec("", "bool", (-1, -1))),
    }
