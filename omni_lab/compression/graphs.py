"""A part as an ONNX graph: traced once with its weights as inputs, then filled with weights in any precision.

Tracing is the slow step: parts that differ in their weights alone (all paths, say) share it. The int8 nodes are made
here, as onnxruntime's own quantization does not round bit for bit as `FakeQuantizer` does.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnx_ir.serde
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import Tensor, nn

from omni_lab.compression.parts import ModelPart
from omni_lab.compression.precision import Precision, QuantRange, int4_codes, int8_codes
from omni_lab.engine.onnx_proto import DOMAIN as FUNCTION_DOMAIN

OPSET = 23  # the first with a node for attention
OPSETS = range(18, 24)  # those that torch's exporter writes; tested with `OPSET`
MIN_WEIGHT_BYTES = 64  # of a graph's own constants, smaller ones stay in it
CONTRIB_DOMAIN = "com.microsoft"  # ONNX Runtime's own operators


class ExportError(ValueError):
    """Something cannot be exported, or not in this way: the message says what and why."""


class _WeightsAsInputs(nn.Module):
    """Takes the weights of a part as inputs, so that the exporter can neither fold nor rename them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, weights: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.func.functional_call(self.module, weights, tuple(inputs))


def trace_graph(part: ModelPart, *, opset: int = OPSET) -> ir.Model:
    """Traces a part to a graph that takes the weights, by name, and the part's inputs, of dynamic shapes. Raises
    ExportError for an opset that torch's exporter does not write."""
    if opset not in OPSETS:
        raise ExportError(f"opset must be from {OPSETS.start} to {OPSETS.stop - 1}: got {opset}")
    weights = {name: w.detach() for name, w in part.module.named_parameters()}
    axes = dict.fromkeys(range(1 + part.variable_length), torch.export.Dim.DYNAMIC)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(action="ignore"):  # the exporter warns about itself
        logger.setLevel(logging.ERROR)
        try:
            traced = torch.export.export(
                _WeightsAsInputs(part.module).eval(),
                (weights, list(part.example)),
                dynamic_shapes=({name: None for name in weights}, [axes] * len(part.example)),
            )
            names = [*weights, *part.inputs]
            program = torch.onnx.export(traced, dynamo=True, opset_version=opset, input_names=names, verbose=False)
        finally:
            logger.setLevel(level)
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    return program.model


def fill_graph(
    traced: ir.Model, part: ModelPart, precision: Precision, ranges: Mapping[str, QuantRange] | None = None
) -> ir.Model:
    """A copy of a traced graph with the part's weights as initializers.

    ranges: for int8, input ranges by linear layer; None: each input's own range is found at run time.
    Raises ExportError for a linear layer that `ranges` lacks.
    """
    model = traced.clone()
    filler = _Filler(model.graph, ir.tape.Tape(model.graph), part.layers(), precision, ranges)
    weights = dict(part.module.named_parameters())
    for value in [v for v in model.graph.inputs if v.name in weights]:
        model.graph.inputs.remove(value)
        if value.uses():
            filler.fill(value, weights[str(value.name)].detach().float().cpu().numpy())
    RemoveUnusedNodesPass()(model)
    model.graph.sort()
    if precision is Precision.INT4:
        model.opset_imports[CONTRIB_DOMAIN] = 1
    return model


class Function(NamedTuple):
    """A graph that is called with its inputs and then its weights.

    name: a digest of the rest, so that equal graphs are one. weights: the arrays of this part, in order.
    outputs: NumPy type and number of axes of each.
    """

    name: str
    serialized: bytes
    weights: list[np.ndarray]
    outputs: list[tuple[str, int]]


def graph_function(filled: ir.Model, traced: ir.Model) -> Function:
    """A filled graph as a function whose weights are inputs. traced: what it was filled from; constants that are there
    already belong to the graph, not to the weights, unless they are large."""
    graph, weights = filled.graph, []
    outputs = [(str(v.dtype.numpy()), len(v.shape)) for v in traced.graph.outputs]  # type: ignore[arg-type, union-attr]
    for name, value in list(graph.initializers.items()):
        assert value.const_value is not None
        array = value.const_value.numpy()
        del graph.initializers[name]
        if name in traced.graph.initializers and (array.nbytes < MIN_WEIGHT_BYTES or array.dtype == np.int64):
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(array))], num_outputs=1)
            value.replace_all_uses_with(node.outputs[0])
            graph.insert_before(graph[0], node)
        else:
            graph.inputs.append(value)
            weights.append(array)
    for i, value in enumerate(graph.inputs):
        value.name = f"i{i}"
    for i, node in enumerate(graph):  # short names, and no shapes, which a runtime infers
        node.name = None
        for j, output in enumerate(node.outputs):
            output.name = f"v{i}" if j == 0 else f"v{i}_{j}"
            output.shape = output.type = None
    function = ir.Function(FUNCTION_DOMAIN, "f", graph=graph, attributes=[])
    function.opset_imports.update(filled.opset_imports)
    proto = ir.serde.serialize_function(function)
    del proto.value_info[:]
    proto.name = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()[:12]
    return Function(proto.name, proto.SerializeToString(deterministic=True), weights, outputs)


def _products(weight: ir.Value) -> list[ir.Node]:
    """The nodes that use a weight, if all of them compute x @ weight.T (+ bias); else none."""
    products: list[ir.Node] = []
    for node, index in weight.uses():
        attributes = {a.name: a.value for a in node.attributes.values()}
        if node.op_type == "Gemm" and index == 1 and attributes.get("transB") == 1:
            assert attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
            products.append(node)
        elif node.op_type == "Transpose" and list(attributes["perm"]) == [1, 0]:
            uses = node.outputs[0].uses()
            if any(use.op_type != "MatMul" or side != 1 for use, side in uses):
                return []
            products += [use for use, _ in uses]
        else:
            return []
    return products


@dataclass
class _Filler:
    """Replaces the weight inputs of one graph by initializers."""

    graph: ir.Graph
    tape: ir.tape.Tape
    layers: Mapping[str, str]
    precision: Precision
    ranges: Mapping[str, QuantRange] | None
    quantized: dict[tuple[ir.Value, QuantRange | None], list[ir.Value]] = field(default_factory=dict)

    def fill(self, weight: ir.Value, array: np.ndarray) -> None:
        """Puts a weight, [out, in] if it is a linear layer's, in the place of an input of the graph."""
        name = str(weight.name)
        products = _products(weight) if name in self.layers and array.ndim == 2 else []
        if not products:
            weight.replace_all_uses_with(self._float_weight(name, array, axis=0))
            return
        multiply = self._multiplication(name, array)
        for node in products:
            x, _, bias = (*node.inputs, None)[:3]
            assert x is not None
            result = multiply(x)
            if bias is not None:
                result = self.tape.op("Add", [result, bias])
            node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
            self.graph.remove(node, safe=True)

    def _multiplication(self, name: str, array: np.ndarray) -> Callable[[ir.Value], ir.Value]:
        """The function that adds the product of a value and a linear layer's weight to the graph."""
        op, layer = self.tape.op, name.removesuffix(".weight")
        if self.precision is Precision.INT4:
            codes, scales = int4_codes(array)
            constants = [self._constant(f"{name}.int4", codes), self._constant(f"{name}.scale", scales)]
            sizes = {"K": array.shape[1], "N": len(array), "bits": 4, "block_size": codes.shape[2] * 2}
            return lambda x: op("MatMulNBits", [x, *constants], sizes, domain=CONTRIB_DOMAIN)
        transposed = np.ascontiguousarray(array.T)
        if self.precision is Precision.INT8 and self.ranges is None:
            codes, scales = int8_codes(transposed, axis=1)
            constants = [self._constant(f"{name}.int8", codes), self._constant(f"{name}.scale", scales)]
            return lambda x: self._integer_product(x, *constants)
        weight = self._float_weight(name, transposed, axis=1)
        if self.ranges is None or self.precision is not Precision.INT8:
            return lambda x: op("MatMul", [x, weight])
        if layer not in self.ranges:
            raise ExportError(f"no input range is known for layer {layer!r}; known are {sorted(self.ranges)}")
        quant_range = self.ranges[layer]
        return lambda x: op("MatMul", [self._fake_quantized(x, quant_range), weight])

    def _integer_product(self, x: ir.Value, codes: ir.Value, scales: ir.Value) -> ir.Value:
        """A product of integers; x is quantized to its own range at run time."""
        if (x, None) not in self.quantized:
            self.quantized[x, None] = [*self.tape.op_multi_out("DynamicQuantizeLinear", [x], num_outputs=3)]
        integers, scale, zero_point = self.quantized[x, None]
        product = self.tape.op("MatMulInteger", [integers, codes, zero_point])
        product = self.tape.op("Cast", [product], {"to": ir.DataType.FLOAT})
        return self.tape.op("Mul", [product, self.tape.op("Mul", [scale, scales])])

    def _float_weight(self, name: str, array: np.ndarray, *, axis: int) -> ir.Value:
        """A weight that is used as floats, however it is stored. axis: that of output channels."""
        if self.precision is Precision.FP32:
            return self._constant(name, array)
        if self.precision is Precision.INT8 and name in self.layers:
            codes, scales = int8_codes(array, axis=axis)
            # ONNX Runtime needs explicit zero points where it makes unsigned codes of these, for want of VNNI
            zero_points = self._constant(f"{name}.zero", np.zeros(len(scales), np.int8))
            constants = [self._constant(f"{name}.int8", codes), self._constant(f"{name}.scale", scales), zero_points]
            return self.tape.op("DequantizeLinear", constants, {"axis": axis})
        half = self._constant(f"{name}.fp16", array.astype(np.float16))
        return self.tape.op("Cast", [half], {"to": ir.DataType.FLOAT})

    def _fake_quantized(self, x: ir.Value, quant_range: QuantRange) -> ir.Value:
        """An activation, quantized to the grid of its range and back."""
        if (x, quant_range) not in self.quantized:
            scale, zero_point = quant_range.grid()
            name = f"{x.name}.grid{len(self.quantized)}"
            scale_constant = self._constant(f"{name}.step", np.array(scale, np.float32))
            grid = [scale_constant, self._constant(f"{name}.zero", np.array(zero_point, np.uint8))]
            codes = self.tape.op("QuantizeLinear", [x, *grid])
            self.quantized[x, quant_range] = [self.tape.op("DequantizeLinear", [codes, *grid])]
        return self.quantized[x, quant_range][0]

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self.tape.initializer(ir.tensor(array, name=name))
