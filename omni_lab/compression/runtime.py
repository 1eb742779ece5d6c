"""An exported model, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor

from omni_lab.batch import Modality, OmniBatch, Tokens
from omni_lab.compression.export import ArtifactError, read_manifest
from omni_lab.compression.parts import AssemblySpec, assemble_model, assemble_router
from omni_lab.compression.precision import Precision
from omni_lab.model import OmniOutput
from omni_lab.routing.route import Route

CPU = "CPUExecutionProvider"  # the only provider known to multiply int8 as int8


class ExportedOmniModel:
    """Called as an `OmniModel` is; the route decides at run time which graphs run.

    folder: what `Exporter.write` wrote.
    source: digest of the weights that it must be made from; None: any.
    threads: per graph; the graphs are small, and one thread was fastest where it was measured.
    provider: execution provider of ONNX Runtime.
    Raises ArtifactError for files that are broken or made from other weights, ValueError for a provider that is not
    available, or that has no int8 products for an int8 model.
    """

    def __init__(self, folder: Path, *, source: str | None = None, threads: int = 1, provider: str = CPU) -> None:
        manifest = read_manifest(folder, source=source)
        if provider not in ort.get_available_providers():
            raise ValueError(f"provider must be one of {ort.get_available_providers()}: got {provider!r}")
        int8_parts = [n for n, part in manifest["parts"].items() if part["precision"] == Precision.INT8]
        if int8_parts and provider != CPU:
            raise ValueError(f"{provider} has no int8 products for {int8_parts[0]!r}: use {CPU}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        # threads that wait for one graph would take the processor from the one that runs
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # without this, sums of int8 products overflow on processors that have AVX2 but no VNNI
        options.add_session_config_entry("session.x64quantprecision", "1")
        self.inputs = {name: part["inputs"] for name, part in manifest["parts"].items()}
        try:
            self.sessions = {n: ort.InferenceSession(folder / f"{n}.onnx", options, [provider]) for n in self.inputs}
        except Exception as error:  # ONNX Runtime has a dozen of its own, all derived from Exception alone
            raise ArtifactError(f"{folder}: ONNX Runtime cannot load it ({error})") from error
        spec = AssemblySpec.from_dict(manifest["frame"])
        self.model = assemble_model(spec, self.run)
        self.router = assemble_router(spec, self.run) if any("router." in n for n in self.inputs) else None

    def run(self, part: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs one part on CPU tensors."""
        feed = {name: x.contiguous().numpy() for name, x in zip(self.inputs[part], inputs, strict=False)}
        return tuple(torch.from_numpy(y) for y in self.sessions[part].run(None, feed))

    @torch.inference_mode()
    def __call__(self, batch: OmniBatch, **options: Any) -> OmniOutput:
        """See `OmniModel.forward`; attention weights are not available."""
        return self.model(batch, **options)

    @torch.inference_mode()
    def select_route(self, batch: OmniBatch, *, budget: float | None = None) -> tuple[Route, dict[Modality, Tokens]]:
        """See `OmniModel.select_route`. Raises ValueError if the model was exported without a router."""
        if self.router is None:
            raise ValueError("this model was exported without a router")
        return self.model.select_route(self.router, batch, budget=budget)

    def answer(self, batch: OmniBatch, *, budget: float | None = None) -> OmniOutput:
        """The model's output under the route that its router selects."""
        route, encoded = self.select_route(batch, budget=budget)
        return self(batch, route=route, precomputed=encoded)
