"""Graphs that decide: of a router that decides once, and of each step of one that looks again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omni_lab.engine.library import GraphLibrary
from omni_lab.engine.onnx_proto import TensorSpec
from omni_lab.engine.route_graph import Graph, GraphBuilder, Stream, token_outputs


def decision_graph(library: GraphLibrary, question: str) -> Graph:
    """From questions in one modality to the router's decisions, levels [B, M] and paths [B, L, P], and their tokens.

    Inputs besides those of `route_graph`: present [B, M] as numbers, and of a penalty-conditioned router penalty [B].
    """
    builder, model = GraphBuilder(library), library.model
    full = max(map(int, model["encoders"][question]))
    stream = builder.encode(question, full)
    inputs = [builder.summarise(question, stream), builder.input("present", "float32", -1, len(model["columns"]))]
    if "router.knots" in library.parts:
        inputs.append(builder.part("router.knots", builder.input("penalty", "float32", -1))[0])
    logits = builder.part(f"router.{question}", *inputs)[0]
    levels, paths = builder.part("router.decide", logits, inputs[1])
    return builder.graph(_decision_outputs(library, levels, paths) | token_outputs(library, stream))


def first_step_graph(library: GraphLibrary, question: str, media: Sequence[str]) -> Graph:
    """The first step of a sequential router: from questions in one modality, and glances at `media`, to its decision.

    Inputs besides those of `encoder_graph` (of the question, and of each medium of which there are inputs): m.entry
    [B], and the inputs of the part router.step that this graph does not compute. Outputs: see `_decide`; also
    question [B, D] and glance.m [B, G] of each medium.
    """
    builder = GraphBuilder(library)
    raw = builder.raw(question)
    stream = builder.encode(question, max(map(int, library.model["encoders"][question])), raw)
    summary = builder.summarise(question, stream)
    found = {"question": summary}
    for m in media:
        entry = f"{m}.entry" if m == question else builder.input(f"{m}.entry", "int64", -1)
        glance = builder.part(f"router.glance.{m}", *(raw if m == question else builder.raw(m)))[0]
        found[f"glance.{m}"] = builder.op("Gather", glance, entry, axis=0)
    return _decide(builder, stream, {**found, f"summary.{question}": summary}, found)


def step_graph(library: GraphLibrary, modality: str, level: int) -> Graph:
    """A further step: an encoder runs, and the router decides again. Inputs and outputs as of `first_step_graph`; also
    summary [B, D], what the encoder found."""
    builder = GraphBuilder(library)
    stream = builder.encode(modality, level)
    summary = builder.summarise(modality, stream)
    return _decide(builder, stream, {f"summary.{modality}": summary}, {"summary": summary})


def _decide(builder: GraphBuilder, stream: Stream, computed: Mapping[str, str], found: Mapping[str, str]) -> Graph:
    """The step of a sequential router, and the whole graph. computed: inputs of the step that are no inputs of the
    graph. found: outputs [B, k] besides action [B], levels [B, M], paths [B, L, P] and the tokens of `stream`."""
    library, inputs = builder.library, builder.library.parts["router.step"].inputs
    width = {spec.name: spec.shape[1] for spec in inputs if len(spec.shape) == 2}
    action, levels, paths = builder.part(
        "router.step",
        *(computed.get(spec.name) or builder.input(spec.name, spec.dtype, *spec.shape) for spec in inputs),
    )
    outputs = {"action": (action, TensorSpec("", "int64", (-1,))), **_decision_outputs(library, levels, paths)}
    for name, value in found.items():
        outputs[name] = (value, TensorSpec("", "float32", (-1, width.get(name, library.model["dim"]))))
    return builder.graph(outputs | token_outputs(library, stream))


def _decision_outputs(library: GraphLibrary, levels: str, paths: str) -> dict[str, tuple[str, TensorSpec]]:
    model = library.model
    sizes = (model["depth"], len(model["router_paths"]))
    return {
        "levels": (levels, TensorSpec("", "int64", (-1, len(model["columns"])))),
        "paths": (paths, TensorSpec("", "bool", (-1, *sizes))),
    }
