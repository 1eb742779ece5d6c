"""ONNX models written as bytes, from functions that are stored as bytes: a graph of function calls, without the onnx
package.

Protocol buffers may be joined end to end; so a model is its header, the functions it calls, and the calls. The numbers
of fields are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

DOMAIN = "omni_lab"  # of the functions
IR_VERSION = 10
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}  # of tensors


@dataclass(frozen=True)
class Call:
    """One node. domain: "" for an operator of ONNX, `DOMAIN` for a stored function."""

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    domain: str = ""
    axis: int | None = None  # an attribute of that name


class TensorSpec(NamedTuple):
    """Name, NumPy type and shape of a tensor; -1 stands for an axis of any length. place: where a weight starts in its
    file, and its length, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: tuple[int, int] = (0, 0)


def model_bytes(
    calls: Iterable[Call],
    *,
    functions: Iterable[bytes],
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    weights: Iterable[TensorSpec],
    opsets: Sequence[tuple[str, int]],
    file: str = "",
) -> bytes:
    """A model. weights: external data, in this file."""
    graph = b"".join(_field(1, _node(call)) for call in calls) + _field(2, b"route")
    graph += b"".join(_field(5, _external(spec, file)) for spec in weights)
    graph += b"".join(_field(11, _value(spec)) for spec in inputs)
    graph += b"".join(_field(12, _value(spec)) for spec in outputs)
    opset = b"".join(_field(8, _field(1, d.encode()) + _number(2, version)) for d, version in opsets)
    return _number(1, IR_VERSION) + opset + _field(7, graph) + b"".join(_field(25, f) for f in functions)


def _node(call: Call) -> bytes:
    axis = b"" if call.axis is None else _field(5, _field(1, b"axis") + _number(3, call.axis) + _number(20, 2))
    names = b"".join(_field(1, n.encode()) for n in call.inputs) + b"".join(_field(2, n.encode()) for n in call.outputs)
    return names + _field(4, call.op.encode()) + axis + _field(7, call.domain.encode())


def _external(spec: TensorSpec, file: str) -> bytes:
    dims = b"".join(_number(1, size) for size in spec.shape)
    start, length = spec.place
    place = b"".join(
        _field(13, _field(1, key.encode()) + _field(2, value.encode()))
        for key, value in {"location": file, "offset": str(start), "length": str(length)}.items()
    )
    return dims + _number(2, TYPES[spec.dtype]) + _field(8, spec.name.encode()) + place + _number(14, 1)


def _value(spec: TensorSpec) -> bytes:
    axes = (b"" if size < 0 else _number(1, size) for size in spec.shape)
    shape = b"".join(_field(1, axis) for axis in axes)
    tensor = _number(1, TYPES[spec.dtype]) + _field(2, shape)
    return _field(1, spec.name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
