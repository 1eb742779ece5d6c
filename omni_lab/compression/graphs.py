"""A part as an ONNX graph: exported once with its weights open, then filled with weights in any precision.

Exporting is the slow step. Parts of one make (all paths, say) share it, and so do all precisions and all trainings.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import Tensor, nn

from omni_lab.compression.parts import ModelPart
from omni_lab.compression.precision import Precision, QuantRange, int4_codes, int8_codes

OPSET = 20
OPSETS = range(18, 24)  # those that torch's exporter writes; tested with `OPSET`
INTEGERS = "com.microsoft"  # ONNX Runtime's own operators


class ExportError(ValueError):
    """What cannot be exported, or not so: the message says what and why."""


@dataclass(frozen=True)
class OpenGraph:
    """model: takes the part's inputs and, by name, its weights. layers: weights of linear layers, convolutions and
    embeddings, by what they belong to; the others stay what they are."""

    model: ir.Model
    weights: frozenset[str]
    layers: Mapping[str, str]


class _Open(nn.Module):
    """A part whose weights are inputs, so that the exporter can neither fold nor rename them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, weights: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.func.functional_call(self.module, weights, tuple(inputs))


def open_graph(part: ModelPart, *, opset: int = OPSET) -> OpenGraph:
    """Exports a part; the axis of samples and the axes named in `lengths` stay free. Raises ExportError for an opset
    that torch's exporter does not write."""
    if opset not in OPSETS:
        raise ExportError(f"opset must be from {OPSETS.start} to {OPSETS.stop - 1}: got {opset}")
    weights = {name: w.detach() for name, w in part.module.named_parameters()}
    free = torch.export.Dim.DYNAMIC
    axes = [{0: free} | ({1: free} if varies else {}) for varies in part.lengths]
    chatty = logging.getLogger("torch.onnx")
    level = chatty.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        chatty.setLevel(logging.ERROR)
        try:
            traced = torch.export.export(
                _Open(part.module).eval(),
                (weights, list(part.example)),
                dynamic_shapes=({name: None for name in weights}, axes),
            )
            names = [*weights, *part.inputs]
            program = torch.onnx.export(traced, dynamo=True, opset_version=opset, input_names=names, verbose=False)
        finally:
            chatty.setLevel(level)
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    return OpenGraph(program.model, frozenset(weights), part.layers())


def close_graph(
    graph: OpenGraph,
    weights: Mapping[str, Tensor],
    precision: Precision,
    ranges: Mapping[str, QuantRange] | None = None,
) -> ir.Model:
    """The graph with its weights inside.

    ranges: for int8, the range of what each linear layer, by its name, is given; without any, each input's own range is
    found when it runs. Raises ExportError for a layer without a range where ranges are given.
    """
    model = graph.model.clone()
    fill = _Filling(model.graph, graph.layers, precision, ranges)
    for value in [v for v in model.graph.inputs if v.name in graph.weights]:
        model.graph.inputs.remove(value)
        if value.uses():
            fill.put(value, weights[str(value.name)].detach().float().cpu().numpy())
    RemoveUnusedNodesPass()(model)
    model.graph.sort()
    for node in model.graph:  # what a runtime works out for itself takes as much room as the nodes
        node.name = None
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = output.type = None
    for constant in model.graph.initializers.values():
        constant.shape = constant.type = None
        constant.metadata_props.clear()
    if precision is Precision.INT4:
        model.opset_imports[INTEGERS] = 1
    return model


class _Product(NamedTuple):
    """output = x @ weight.T (+ bias), by these nodes."""

    x: ir.Value
    output: ir.Value
    bias: ir.Value | None
    nodes: list[ir.Node]


def _products(weight: ir.Value) -> list[_Product]:
    """Every use of a weight, if all of them are products; else none."""
    found = []
    for node, index in weight.uses():
        attributes = {a.name: a.value for a in node.attributes.values()}
        if node.op_type == "Gemm" and index == 1 and attributes.get("transB") == 1:
            assert attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
            x, bias = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
            assert x is not None
            found.append(_Product(x, node.outputs[0], bias, [node]))
        elif node.op_type == "Transpose" and list(attributes["perm"]) == [1, 0]:
            for product, side in node.outputs[0].uses():
                if product.op_type != "MatMul" or side != 1:
                    return []
                x = product.inputs[0]
                assert x is not None
                found.append(_Product(x, product.outputs[0], None, [product]))
        else:
            return []
    return found


class _Filling:
    """One graph while it is filled."""

    def __init__(
        self, graph: ir.Graph, layers: Mapping[str, str], precision: Precision, ranges: Mapping[str, QuantRange] | None
    ) -> None:
        self.graph = graph
        self.layers = layers
        self.precision = precision
        self.ranges = ranges
        self.on_grid: dict[tuple[ir.Value, QuantRange], ir.Value] = {}
        self.dynamic: dict[ir.Value, tuple[ir.Value, ...]] = {}

    def put(self, weight: ir.Value, value: np.ndarray) -> None:
        """The weight, [out, in] if it belongs to a linear layer, in the place of an input of the graph."""
        name = str(weight.name)
        products = _products(weight) if name in self.layers and value.ndim == 2 else []
        if not products:
            weight.replace_all_uses_with(self._floats(name, value, axis=0))
            return
        multiply = self._factor(name, value)
        for product in products:
            result = multiply(product.x)
            if product.bias is not None:
                result = self._op("Add", result, product.bias)
            product.output.replace_all_uses_with(result, replace_graph_outputs=True)
            self.graph.remove(product.nodes, safe=True)

    def _factor(self, name: str, value: np.ndarray) -> Callable[[ir.Value], ir.Value]:
        """What multiplies by a linear layer's weight."""
        if self.precision is Precision.INT4:
            codes, scales = int4_codes(value)
            held = [self._held(f"{name}.int4", codes), self._held(f"{name}.scale", scales)]
            out, width = value.shape
            sizes = {"K": width, "N": out, "bits": 4, "block_size": codes.shape[2] * 2}
            return lambda x: self._op("MatMulNBits", x, *held, domain=INTEGERS, **sizes)
        turned = np.ascontiguousarray(value.T)
        if self.precision is not Precision.INT8:
            weight = self._floats(name, turned, axis=1)
            return lambda x: self._op("MatMul", x, weight)
        layer = name.removesuffix(".weight")
        if self.ranges is not None:
            if layer not in self.ranges:
                raise ExportError(f"no range is known of what {layer!r} is given; known are {sorted(self.ranges)}")
            given, weight = self.ranges[layer], self._floats(name, turned, axis=1)
            return lambda x: self._op("MatMul", self._rounded(x, given), weight)
        codes, scales = int8_codes(turned, axis=1)
        integers, steps = self._held(f"{name}.int8", codes), self._held(f"{name}.scale", scales)

        def multiply(x: ir.Value) -> ir.Value:
            if x not in self.dynamic:
                self.dynamic[x] = self._ops("DynamicQuantizeLinear", x, outputs=3)
            rounded, step, zero = self.dynamic[x]
            total = self._op("Cast", self._op("MatMulInteger", rounded, integers, zero), to=ir.DataType.FLOAT)
            return self._op("Mul", total, self._op("Mul", step, steps))

        return multiply

    def _floats(self, name: str, value: np.ndarray, *, axis: int) -> ir.Value:
        """A weight that is used as floats, however it is stored. axis: that of output channels."""
        if self.precision is Precision.FP32:
            return self._held(name, value)
        if self.precision is Precision.INT8 and name in self.layers:
            codes, scales = int8_codes(value, axis=axis)
            # ONNX Runtime wants the zero points said where it makes unsigned codes of these, for want of VNNI
            zeros = self._held(f"{name}.zero", np.zeros(len(scales), np.int8))
            held = [self._held(f"{name}.int8", codes), self._held(f"{name}.scale", scales), zeros]
            return self._op("DequantizeLinear", *held, axis=axis)
        return self._op("Cast", self._held(f"{name}.fp16", value.astype(np.float16)), to=ir.DataType.FLOAT)

    def _rounded(self, x: ir.Value, given: QuantRange) -> ir.Value:
        """An activation after it has been put on the grid of its range."""
        if (x, given) not in self.on_grid:
            step, zero = given.grid()
            name = f"{x.name}.grid{len(self.on_grid)}"
            grid = [
                self._held(f"{name}.step", np.array(step, np.float32)),
                self._held(f"{name}.zero", np.array(zero, np.uint8)),
            ]
            self.on_grid[x, given] = self._op("DequantizeLinear", self._op("QuantizeLinear", x, *grid), *grid)
        return self.on_grid[x, given]

    def _held(self, name: str, value: np.ndarray) -> ir.Value:
        tensor = ir.tensor(value, name=name)
        held = ir.Value(name=name, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(held)
        return held

    def _op(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: int) -> ir.Value:
        return self._ops(op_type, *inputs, domain=domain, **attributes)[0]

    def _ops(
        self, op_type: str, *inputs: ir.Value, domain: str = "", outputs: int = 1, **attributes: int
    ) -> tuple[ir.Value, ...]:
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        self.graph.append(node)
        return tuple(node.outputs)
