"""What is exported is refused where it is broken or not its own, and rounds as training did."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.compression.export import Exporter
from omni_lab.compression.fake_quant import FakeQuantizer, calibrate
from omni_lab.compression.graphs import ExportError
from omni_lab.compression.parts import AssemblySpec, ModelPart, assemble_model, assemble_router, split_router
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.engine.library import FUNCTIONS, MANIFEST, WEIGHTS, ArtifactError, read_manifest
from omni_lab.engine.runtime import ExportedOmniModel
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from tests.engine.conftest import ANSWERS, exporter, parts, routed, router, with_latents, written
from tests.routing.conftest import MakeBatch, make_batch

__all__ = ["exporter", "make_batch", "parts", "routed", "router", "with_latents", "written"]
TEXT = Modality.TEXT
FP32, FP16, INT8, INT4 = (PrecisionPolicy.uniform(p) for p in Precision)


@pytest.mark.slow
def test_few_bits_take_little_room(parts: list[ModelPart], written: dict[str, Path]) -> None:
    weights = {name: (folder / WEIGHTS).stat().st_size for name, folder in written.items()}
    held = sum(w.numel() for w in {id(w): w for part in parts for w in part.module.parameters()}.values())
    assert 1.6 * held < weights["fp32"] - weights["fp16"] <= 2 * held
    assert 2 * held < weights["fp32"] - weights["int8"] < 3 * held
    assert weights["int8"] < weights["mixed"] < weights["fp16"]


@pytest.mark.slow
@pytest.mark.parametrize("ranges", ["average", "dynamic"])
def test_rounding_while_training_is_rounding_once_exported(
    exporter: Exporter,
    parts: list[ModelPart],
    routed: OmniModel,
    router: Router,
    make_batch: MakeBatch,
    tmp_path: Path,
    ranges: str,
) -> None:
    fake = FakeQuantizer(parts, INT8, ranges=ranges).eval()
    spec = AssemblySpec.from_model(routed, router)
    carried = assemble_model(spec, fake.run)
    if ranges == "average":
        batches = [make_batch(12, seed=s, missing=0.4 * (s > 1), lengths=True) for s in range(8)]
        assert calibrate(fake, carried, batches, router=assemble_router(spec, fake.run)) == 8
    ranges_found = fake.quant_ranges()
    options = {"policy": INT8, "source": "abc", "answers": ANSWERS}
    exporter.write(tmp_path / "int8", parts, spec, router=router, ranges=ranges_found, **options)
    # one worker: a batch in two parts would have two ranges
    exported = ExportedOmniModel.from_folder(tmp_path / "int8", workers=1)
    batch = make_batch(12, seed=9, lengths=True)
    with torch.inference_mode():
        exact, expected = routed(batch).head_outputs["answer"], carried(batch).head_outputs["answer"]
        found = torch.from_numpy(exported.run(batch.inputs))
        summaries = torch.randn(5, 16)
        decided = assemble_router(spec, fake.run).modality_logits(TEXT, summaries, torch.ones(5, 4), torch.rand(5, 9))
    rounding = (expected - exact).abs().mean()
    assert rounding > 1e-3, "it does round"
    assert (found - expected).abs().mean() < 0.1 * rounding, "a value between two codes may fall either way"
    assert decided.shape == (5, router.logit_head.out_features)
    fake.remove()
    with torch.inference_mode():
        assert torch.equal(routed(batch).head_outputs["answer"], exact), "the model itself is as before"


def test_what_is_broken_or_another_is_refused(written: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(written["fp16"], folder)
    with pytest.raises(ArtifactError, match="made from weights abc, expected def"):
        ExportedOmniModel.from_folder(folder, source="def")
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ArtifactError, match=r"weights\.bin: changed after export .* export again"):
        ExportedOmniModel.from_folder(folder)
    shutil.copy(written["fp16"] / WEIGHTS, folder)
    shutil.copy(written["int4"] / FUNCTIONS, folder)
    with pytest.raises(ArtifactError, match=r"functions\.bin: changed after export"):
        ExportedOmniModel.from_folder(folder)
    (folder / FUNCTIONS).unlink()
    with pytest.raises(ArtifactError, match=r"functions\.bin: missing"):
        ExportedOmniModel.from_folder(folder)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(ArtifactError, match="broken"):
        read_manifest(folder)
    with pytest.raises(ArtifactError, match="no exported model there"):
        read_manifest(tmp_path / "nowhere")


def test_int8_is_not_asked_of_a_provider_without_integers(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="provider must be one of"):
        ExportedOmniModel.from_folder(written["int8"], provider="TpuExecutionProvider")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ValueError, match="CUDAExecutionProvider has no int8 products"):
        ExportedOmniModel.from_folder(written["int8"], provider="CUDAExecutionProvider")


def test_what_is_written_replaces_what_stood_there_at_once(
    exporter: Exporter, parts: list[ModelPart], routed: OmniModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [part for part in parts if part.name == "answer.classify"]
    spec, options = AssemblySpec.from_model(routed), {"policy": FP32, "answers": ANSWERS}
    size = exporter.write(tmp_path / "m", chosen, spec, source="one", **options)
    assert size == sum(file.stat().st_size for file in (tmp_path / "m").iterdir())
    assert [*tmp_path.iterdir()] == [tmp_path / "m"]

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match="No space left on device.*what was there before is unchanged"):
        exporter.write(tmp_path / "m", chosen, spec, source="two", **options)
    assert read_manifest(tmp_path / "m", source="one") and [*tmp_path.iterdir()] == [tmp_path / "m"]


def test_equal_weights_are_kept_once(written: dict[str, Path], parts: list) -> None:
    """Pictures, clips and their early exits share an encoder."""
    unique = {id(w): w for part in parts for w in part.module.parameters()}
    kept = (written["fp32"] / WEIGHTS).stat().st_size
    assert kept < 4 * sum(w.numel() for w in unique.values()) + 200_000
    assert kept < 0.9 * 4 * sum(w.numel() for part in parts for w in part.module.parameters())


def test_impossible_exports_are_refused(
    parts: list[ModelPart], routed: OmniModel, exporter: Exporter, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="opset must be from 18 to 23: got 9"):
        Exporter(opset=9).graph(parts[-1])
    spec = AssemblySpec.from_model(routed)
    odd = PrecisionPolicy("odd", {}, Precision.INT8, {"path.7.*": Precision.FP32})
    with pytest.raises(ValueError, match=r"no part matches 'path\.7\.\*'"):
        exporter.write(tmp_path / "m", parts, spec, policy=odd, source="", answers=ANSWERS)
    with pytest.raises(ExportError, match="no input range is known for layer 'module.2'"):
        chosen = [part for part in parts if part.name.startswith(("router", "answer.classify"))]
        exporter.write(tmp_path / "m", chosen, spec, policy=INT8, source="", answers=ANSWERS, ranges={})


def test_a_router_that_chooses_among_static_routes_has_no_parts(routed: OmniModel) -> None:
    with pytest.raises(ValueError, match="chooses among static routes"):
        split_router(Router(routed.space, dim=16, num_choices=3))


def test_policies_go_by_name() -> None:
    mixed = PrecisionPolicy.mixed()
    assert mixed.precision_of("encoder.text") is mixed.precision_of("encoder.audio.early_exit") is Precision.FP16
    assert (
        mixed.precision_of("encoder.image.early_exit") is mixed.precision_of("path.0.text_from_audio") is Precision.INT8
    )
    odd = PrecisionPolicy("odd", {}, Precision.INT8, {"path.*": Precision.FP32, "path.1.*": Precision.FP16})
    assert [odd.precision_of(n) for n in ("path.0.a", "path.1.a", "block.0.text")] == ["fp32", "fp16", "int8"]
