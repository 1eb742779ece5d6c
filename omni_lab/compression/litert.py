"""Parts as LiteRT files of fixed shapes, for phones and small boards. Needs the packages of the extra `edge`, which
conflict with those for development and belong in an environment of their own."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omni_lab.compression.graphs import ExportError
from omni_lab.compression.parts import ModelPart

PACKAGES = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")


def missing_packages() -> list[str]:
    """The packages of the extra `edge` that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def export_litert(part: ModelPart, file: Path) -> int:
    """Writes a part in float32, for one sample of the shapes of its example; returns the size in bytes. Raises
    ExportError for a part that LiteRT has no operators for, and where packages are missing."""
    _require_packages()
    import litert_torch

    with _scratch(file) as unfinished:
        try:
            litert_torch.convert(part.module.eval(), tuple(x[:1] for x in part.example)).export(str(unfinished))
        except Exception as error:  # the converter's own are many, all derived from Exception alone
            raise ExportError(f"{part.name}: LiteRT cannot run it ({error})") from error
    return file.stat().st_size


def quantize_litert(source: Path, file: Path) -> int:
    """Writes an exported part with int8 weights of linear layers and convolutions, a scale per channel, their inputs
    quantized dynamically (recipe "dynamic_wi8_afp32" of AI Edge Quantizer); returns the size in bytes. Raises
    ExportError where packages are missing, and FileNotFoundError."""
    _require_packages()
    from ai_edge_quantizer import quantizer, recipe

    with _scratch(file) as unfinished:
        work = quantizer.Quantizer(source.read_bytes())
        work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        work.update_quantization_recipe(".*LogMel.*", "*", algorithm_key="no_quantize")  # no weights: a transform
        work.quantize().export_model(str(unfinished))
    return file.stat().st_size


def _require_packages() -> None:
    missing = missing_packages()
    if missing:
        raise ExportError(f"LiteRT files need {', '.join(missing)}, not installed: see 'edge' in CONTRIBUTING.md")


@contextlib.contextmanager
def _scratch(file: Path) -> Iterator[Path]:
    """A path that becomes `file` once it is complete. Converter and quantizer report every step: that is suppressed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            tempfile.TemporaryDirectory(dir=file.parent) as folder,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            unfinished = Path(folder) / "unfinished.tflite"
            yield unfinished
            unfinished.replace(file)
    finally:
        logging.disable(level)


class LiteRTPart:
    """Runs what `export_litert` wrote: tensors of one sample in, a tuple of tensors out.

    kernels: "XNNPACK", the fast ones, or "reference" where those refuse the file.
    Raises ExportError where packages are missing, for a file that LiteRT cannot read, and for inputs of other shapes.
    """

    def __init__(self, file: Path, *, threads: int = 1) -> None:
        _require_packages()
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolvers = {"XNNPACK": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
        for self.kernels, resolver in resolvers.items():
            try:
                interpreter = Interpreter(str(file), num_threads=threads, experimental_op_resolver_type=resolver)
                interpreter.allocate_tensors()
                break
            except (ValueError, RuntimeError) as error:
                last_error = error
        else:
            raise ExportError(f"{file}: LiteRT cannot read it ({last_error})") from last_error
        self._run: Any = interpreter.get_signature_runner()
        details = self._run.get_input_details()
        self._inputs = {name: details[name] for name in (f"args_{i}" for i in range(len(details)))}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        expected = [[*map(int, details["shape"])] for details in self._inputs.values()]
        if [[*x.shape] for x in inputs] != expected:
            raise ExportError(f"inputs must be of the shapes {expected}: got {[[*x.shape] for x in inputs]}")
        named = zip(inputs, self._inputs.items(), strict=True)
        feed = {name: x.numpy().astype(details["dtype"], copy=False) for x, (name, details) in named}
        outputs = self._run(**feed)
        return tuple(torch.from_numpy(outputs[f"output_{index}"]) for index in range(len(outputs)))
