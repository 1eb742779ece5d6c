"""An exported model, carried out by ONNX Runtime."""

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

INTEGER_PROVIDERS = ("CPUExecutionProvider",)  # those that multiply int8 as int8


class ExportedOmniModel:
    """Called as an `OmniModel` is; routes decide at run time which graphs are called.

    folder: what `Exporter.write` wrote. source: the digest of the weights that it must have been made from. threads: of
    each graph; these are small, and one was fastest where it was measured. provider: of ONNX Runtime. Raises
    ArtefactError for files that are broken or made from other weights, ValueError for a provider that is not there, or
    that does not multiply the integers of an int8 model.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source: str | None = None,
        threads: int = 1,
        provider: str = "CPUExecutionProvider",
    ) -> None:
        manifest = read_manifest(folder, source=source)
        if provider not in ort.get_available_providers():
            raise ValueError(f"provider must be one of {ort.get_available_providers()}: got {provider!r}")
        whole = [n for n, part in manifest["parts"].items() if part["precision"] == Precision.INT8]
        if whole and provider not in INTEGER_PROVIDERS:
            raise ValueError(f"{provider} has no int8 products, which {whole[0]!r} wants: use {INTEGER_PROVIDERS[0]}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        # threads that wait for one graph would take the processor from the one that runs
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # without this, sums of int8 products overflow on processors that have AVX2 but no VNNI
        options.add_session_config_entry("session.x64quantprecision", "1")
        self.inputs = {name: part["inputs"] for name, part in manifest["parts"].items()}
        try:
            self.sessions = {
                name: ort.InferenceSession(folder / f"{name}.onnx", options, providers=[provider])
                for name in self.inputs
            }
        except Exception as error:  # ONNX Runtime has a dozen of its own, all derived from Exception alone
            raise ArtifactError(f"{folder}: ONNX Runtime cannot load it ({error})") from error
        frame = AssemblySpec.from_dict(manifest["frame"])
        self.model = assemble_model(frame, self.run)
        self.router = assemble_router(frame, self.run) if any("router." in n for n in self.inputs) else None

    def run(self, part: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One part, on tensors of the host."""
        given = {name: x.contiguous().numpy() for name, x in zip(self.inputs[part], inputs, strict=False)}
        return tuple(torch.from_numpy(y) for y in self.sessions[part].run(None, given))

    @torch.inference_mode()
    def __call__(self, batch: OmniBatch, **options: Any) -> OmniOutput:
        """See `OmniModel.forward`; attention weights are not kept."""
        return self.model(batch, **options)

    @torch.inference_mode()
    def select_route(self, batch: OmniBatch, *, budget: float | None = None) -> tuple[Route, dict[Modality, Tokens]]:
        """See `OmniModel.decide`. Raises ValueError if no controller was exported with it."""
        if self.router is None:
            raise ValueError("this model was exported without a controller")
        return self.model.select_route(self.router, batch, budget=budget)

    def answer(self, batch: OmniBatch, *, budget: float | None = None) -> OmniOutput:
        """Under the route that its controller decides on."""
        route, question = self.select_route(batch, budget=budget)
        return self(batch, route=route, precomputed=question)
