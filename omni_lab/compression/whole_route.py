"""One route of a model as one PyTorch module, and what else compiles it than `omni_lab.engine`."""

from __future__ import annotations

import copy
import importlib.util
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni_lab.batch import ComputeLevel, Modality, OmniBatch, Tokens
from omni_lab.compression.graphs import ExportError
from omni_lab.compression.litert import LiteRTPart, export_litert
from omni_lab.compression.parts import ModelPart, cut_into_tokens
from omni_lab.encoders.levels import encoder_at
from omni_lab.engine.route_graph import RouteSignature
from omni_lab.model import OmniModel
from omni_lab.routing.route import CrossModalPath

log = logging.getLogger(__name__)
T = TypeVar("T")
COMPILERS = ("AOTInductor", "OpenVINO", "LiteRT", "torch.compile")  # the last in this order: exporting undoes it


class RouteModule(nn.Module):
    """What a route runs, and nothing else: from values and mask of each of its modalities, in order, one entry per
    sample, to the logits of the answers. Waveforms come cut into tokens, [B, N, samples]."""

    def __init__(self, model: OmniModel, signature: RouteSignature) -> None:
        super().__init__()
        opened = {(layer, CrossModalPath(Modality(q), Modality(k))) for layer, q, k in signature.paths}
        space = model.space
        every = [(layer, path) for layer in range(space.depth) for path in space.paths]
        self.model = copy.deepcopy(model).eval()
        self.model.prune_paths([p for p in every if p not in opened and p not in space.pruned_paths])
        self.levels = [(Modality(m), ComputeLevel(level)) for m, level in signature.levels]

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b a"]:
        streams: dict[Modality, Tokens] = {}
        for (m, level), values, mask in zip(self.levels, inputs[::2], inputs[1::2], strict=True):
            values, mask = (x.flatten(1) if m is Modality.AUDIO else x for x in (values, mask))
            streams[m] = self.model.quantize(encoder_at(self.model.encoders[m.value], level)(values, mask))
        # "masked": without looking up which samples run what
        return self.model.fuse(streams, heads=["answer"], execution="masked").head_outputs["answer"]

    def inputs(self, batch: OmniBatch) -> tuple[Tensor, ...]:
        """The inputs of a batch whose samples have all of these modalities."""
        found: list[Tensor] = []
        for m, _ in self.levels:
            values, mask = (x[batch.inputs[m].entry_index] for x in (batch.inputs[m].values, batch.inputs[m].mask))
            if m is Modality.AUDIO:
                samples: int = self.model.encoders[m.value].samples_per_token  # type: ignore[assignment]
                values, mask = (cut_into_tokens(x, samples) for x in (values, mask))
            found += [values, mask]
        return tuple(found)


class CompiledRoute(NamedTuple):
    """run: takes `RouteModule.inputs`. size: bytes on disk, None where nothing is stored."""

    run: Callable[..., Tensor]
    build_seconds: float
    size: int | None


def compile_route(module: RouteModule, inputs: tuple[Tensor, ...], compiler: str, folder: Path) -> CompiledRoute:
    """Compiles a route for inputs of these shapes. compiler: one of `COMPILERS`; those of torch compile for the threads
    that it has, and again if their number changes, the others for one.

    Raises ExportError where that fails, or packages are missing; the message is that of the compiler.
    """
    builders = dict(zip(COMPILERS, (_aot_inductor, _openvino, _litert, _torch_compile), strict=True))
    if compiler not in builders:
        raise ValueError(f"compiler must be one of {COMPILERS}: got {compiler!r}")
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            run, size = builders[compiler](module, inputs, folder)
            run(*inputs)
    except ExportError:
        raise
    except Exception as error:  # compilers have dozens of their own, all derived from Exception alone
        raise ExportError(f"{compiler} cannot compile this route: {str(error).strip().splitlines()[0]}") from error
    return CompiledRoute(run, time.perf_counter() - start, size)


def _torch_compile(
    module: RouteModule, inputs: tuple[Tensor, ...], folder: Path
) -> tuple[Callable[..., Tensor], int | None]:
    def build() -> Callable[..., Tensor]:
        run = torch.compile(module, fullgraph=True, dynamic=False)
        run(*inputs)  # this compiles
        return run

    return _by_inductor(build), None


def _aot_inductor(
    module: RouteModule, inputs: tuple[Tensor, ...], folder: Path
) -> tuple[Callable[..., Tensor], int | None]:
    program = torch.export.export(module, inputs)
    package = str(folder / "route.pt2")
    file = _by_inductor(lambda: torch._inductor.aoti_compile_and_package(program, package_path=package))
    return torch._inductor.aoti_load_package(file), Path(file).stat().st_size


def _by_inductor(build: Callable[[], T]) -> T:
    """Where the vectorised C++ that Inductor writes does not compile (so torch 2.11 with AVX2), without vectors."""
    try:
        return build()
    except Exception as error:
        if "C++ compile error" not in str(error):
            raise
        log.warning("the vectorised C++ of Inductor does not compile here: built without vector instructions")
        with torch._inductor.config.patch({"cpp.simdlen": 0}):
            return build()


def _openvino(
    module: RouteModule, inputs: tuple[Tensor, ...], folder: Path
) -> tuple[Callable[..., Tensor], int | None]:
    if importlib.util.find_spec("openvino") is None:
        raise ExportError("OpenVINO is not installed")
    import openvino

    model: Any = openvino.convert_model(torch.export.export(module, inputs))
    file = folder / "route.xml"
    openvino.save_model(model, file, compress_to_fp16=False)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()

    def run(*arrays: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([x.numpy() for x in arrays])[0].copy())

    return run, file.stat().st_size + file.with_suffix(".bin").stat().st_size


def _litert(module: RouteModule, inputs: tuple[Tensor, ...], folder: Path) -> tuple[Callable[..., Tensor], int | None]:
    part = ModelPart("route", module, None, inputs, ())
    size = export_litert(part, folder / "route.tflite")
    runner = LiteRTPart(folder / "route.tflite")
    return lambda *arrays: runner(*arrays)[0], size
