"""Parts as LiteRT files of fixed shapes, for phones and small boards. Wants the packages of the extra `edge`, which do
not go together with those for development: they belong in an environment of their own."""

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
    """Those of the extra `edge` that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def export_litert(part: ModelPart, file: Path) -> int:
    """Writes a part in float32 for one sample of the shapes of its example; returns how many bytes. Raises ExportError
    for a part that LiteRT has no operators for, and where packages are missing."""
    _demand_packages()
    import litert_torch

    with _scratch(file) as made:
        try:
            litert_torch.convert(part.module.eval(), tuple(x[:1] for x in part.example)).export(str(made))
        except Exception as error:  # the converter's own are many, all derived from Exception alone
            raise ExportError(f"{part.name}: LiteRT cannot carry it out ({error})") from error
    return file.stat().st_size


def quantize_litert(source: Path, file: Path) -> int:
    """Writes the same with the weights of linear layers and convolutions in int8, a scale per channel, and what these
    are given on a grid of its own each time (the recipe "dynamic_wi8_afp32" of AI Edge Quantizer); returns how many
    bytes. Raises ExportError where packages are missing, and FileNotFoundError."""
    _demand_packages()
    from ai_edge_quantizer import quantizer, recipe

    with _scratch(file) as made:
        work = quantizer.Quantizer(source.read_bytes())
        work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        work.update_quantization_recipe(".*LogMel.*", "*", algorithm_key="no_quantize")  # no weights: a transform
        work.quantize().export_model(str(made))
    return file.stat().st_size


def _demand_packages() -> None:
    missing = missing_packages()
    if missing:
        raise ExportError(f"LiteRT files want {', '.join(missing)}, not installed: see the extra 'edge' in the README")


@contextlib.contextmanager
def _scratch(file: Path) -> Iterator[Path]:
    """A place to write, quietly, that becomes `file` once it is whole: converter and quantizer report every step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            tempfile.TemporaryDirectory(dir=file.parent) as folder,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            made = Path(folder) / "made.tflite"
            yield made
            made.replace(file)
    finally:
        logging.disable(before)


class LiteRTPart:
    """Carries out what `export_litert` wrote: tensors of one sample in, a tuple of tensors out. kernels: "XNNPACK", the
    fast ones, or "reference" where those refuse the file. Raises ExportError where packages are missing, for a file
    that LiteRT cannot read, and for other inputs."""

    def __init__(self, file: Path, *, threads: int = 1) -> None:
        _demand_packages()
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kinds = {"XNNPACK": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
        for self.kernels, kind in kinds.items():
            try:
                interpreter = Interpreter(str(file), num_threads=threads, experimental_op_resolver_type=kind)
                interpreter.allocate_tensors()
                break
            except (ValueError, RuntimeError) as error:
                refused = error
        else:
            raise ExportError(f"{file}: LiteRT cannot read it ({refused})") from refused
        self._run: Any = interpreter.get_signature_runner()
        self._wanted = dict(self._run.get_input_details())
        self._given = len(self._run.get_output_details())

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if len(inputs) != len(self._wanted):
            raise ExportError(f"there must be {len(self._wanted)} inputs: got {len(inputs)}")
        given = {}
        for place, x in enumerate(inputs):
            wanted = self._wanted[f"args_{place}"]
            if list(x.shape) != [*wanted["shape"]]:
                raise ExportError(f"input {place} must be of shape {[*map(int, wanted['shape'])]}: got {[*x.shape]}")
            given[f"args_{place}"] = x.numpy().astype(wanted["dtype"], copy=False)
        said = self._run(**given)
        return tuple(torch.from_numpy(said[f"output_{place}"]) for place in range(self._given))
