"""Models as bytes, processors, inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from omni_lab.engine.inputs import as_arrays, distinct, single_medium
from omni_lab.engine.onnx_proto import DOMAIN, Call, TensorSpec, model_bytes
from omni_lab.engine.sessions import choose_kernels, has_vnni, processor_flags


def test_a_model_of_bytes_is_one() -> None:
    """It multiplies by a weight that it is given, in a function that it is given."""
    names = {"inputs": ["x", "w"], "outputs": ["y"]}
    node = onnx.helper.make_node("Mul", names["inputs"], names["outputs"])
    opset = onnx.helper.make_opsetid("", 23)
    function = onnx.helper.make_function(DOMAIN, "times", **names, nodes=[node], opset_imports=[opset])
    built = model_bytes(
        [Call("times", ["a", "weight"], ["b"], DOMAIN), Call("Gather", ["b", "rows"], ["c"], axis=0)],
        functions=[function.SerializeToString()],
        inputs=[TensorSpec("a", "float32", (-1, 300)), TensorSpec("rows", "int64", (-1,))],
        outputs=[TensorSpec("c", "float32", (-1, 300))],
        weights=[TensorSpec("weight", "float32", (300,))],
        opsets=[("", 23), (DOMAIN, 1)],
    )
    model = onnx.ModelProto.FromString(built)
    assert [n.op_type for n in model.graph.node] == ["times", "Gather"]
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 300
    weight = np.linspace(0, 1, 300, dtype=np.float32)
    options = ort.SessionOptions()
    options.add_external_initializers(["weight"], [ort.OrtValue.ortvalue_from_numpy(weight)])
    session = ort.InferenceSession(built, options, ["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": np.ones((2, 300), np.float32), "rows": np.array([1, 0, 1])})
    assert np.allclose(found, np.tile(weight, (3, 1)))


def test_kernels_follow_the_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name: x\nflags\t\t: fpu avx2 avx512_vnni\nflags: none\n")
    new, old = processor_flags(cpuinfo), frozenset({"avx2"})
    assert new == {"fpu", "avx2", "avx512_vnni"} and has_vnni(new) and not has_vnni(old)
    assert processor_flags(tmp_path / "none") == frozenset()
    assert choose_kernels("auto", new) == "vnni" and choose_kernels("auto", old) == "safe"
    assert choose_kernels("safe", new) == "safe"
    with pytest.raises(ValueError, match="this processor has neither avx512_vnni nor avx_vnni"):
        choose_kernels("vnni", old)
    with pytest.raises(ValueError, match="kernels must be one of .*: got 'fast'"):
        choose_kernels("fast", new)


def test_waveforms_are_cut_into_tokens_once() -> None:
    wave = single_medium("audio", np.arange(5.0))
    cut = as_arrays({"audio": wave}, 4)
    assert cut["audio"].values.tolist() == [[[0, 1, 2, 3], [4, 0, 0, 0]]]
    assert cut["audio"].mask.tolist() == [[[True] * 4, [True, False, False, False]]]
    assert as_arrays(cut, 4)["audio"].values.shape == (1, 2, 4)


def test_distinct_entries() -> None:
    used, place = distinct(np.array([5, 2, 5]))
    assert used.tolist() == [2, 5] and place.tolist() == [1, 0, 1]
    used, place = distinct(np.array([7]))
    assert used.tolist() == [7] and place.tolist() == [0]
