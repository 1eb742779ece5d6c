"""What is exported answers as the model does, in every precision, and refuses what is broken or not its own."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from omni_lab.batch import Modality
from omni_lab.compression.export import MANIFEST, WEIGHTS, ArtifactError, Exporter, read_manifest
from omni_lab.compression.fake_quant import FakeQuantizer, calibrate
from omni_lab.compression.graphs import ExportError
from omni_lab.compression.parts import (
    AssemblySpec,
    ModelPart,
    assemble_model,
    assemble_router,
    split_model,
    split_router,
)
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.compression.runtime import ExportedOmniModel
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from tests.routing.conftest import MakeBatch, make_batch
from tests.routing.conftest import routed as with_latents

__all__ = ["make_batch", "with_latents"]
TEXT, IMAGE, AUDIO, VIDEO = Modality
FP32, FP16, INT8, INT4 = (PrecisionPolicy.uniform(p) for p in Precision)


@pytest.fixture(scope="session")
def routed(with_latents: OmniModel) -> OmniModel:
    """Without rounding between encoders and fusion, which makes large differences of tiny ones."""
    exact = copy.copy(with_latents)
    exact.latent_bits = None
    return exact


@pytest.fixture(scope="session")
def router(routed: OmniModel) -> Router:
    torch.manual_seed(1)
    made = Router(routed.space, dim=16, hidden_dim=16, penalty_conditioned=True).eval()
    nn.init.normal_(made.logit_head.weight, std=0.5)
    nn.init.normal_(made.penalty_gain.weight, std=0.5)
    made.costs.copy_(torch.linspace(0.9, 0.1, len(made.costs)))
    return made


@pytest.fixture(scope="session")
def parts(routed: OmniModel, router: Router, make_batch: MakeBatch) -> list[ModelPart]:
    return [*split_model(routed, make_batch(2)), *split_router(router)]


@pytest.fixture(scope="session")
def exporter() -> Exporter:
    return Exporter()


@pytest.fixture(scope="session")
def written(
    exporter: Exporter,
    parts: list[ModelPart],
    routed: OmniModel,
    router: Router,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folders = {}
    for policy in (FP32, FP16, INT8, INT4, PrecisionPolicy.mixed()):
        folders[policy.name] = tmp_path_factory.mktemp("artifacts") / policy.name
        spec = AssemblySpec.from_model(routed, router)
        exporter.write(folders[policy.name], parts, spec, policy=policy, source="abc")
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_in_floats_it_says_the_same(
    routed: OmniModel, router: Router, written: dict[str, Path], make_batch: MakeBatch, seed: int
) -> None:
    exported = ExportedOmniModel(written["fp32"], source="abc", threads=1)
    batch = make_batch(9, seed=seed, share=seed % 2 == 1, missing=0.3 * (seed > 1), lengths=True)
    with torch.inference_mode():
        for route in (None, routed.space.sample(batch.present, generator=torch.Generator().manual_seed(seed))):
            expected, found = routed(batch, route=route), exported(batch, route=route)
            assert torch.allclose(found.head_outputs["answer"], expected.head_outputs["answer"], atol=1e-4)
        decided, question = routed.select_route(router, batch, budget=0.5)
        again, heard = exported.select_route(batch, budget=0.5)
        assert (decided.signature() == again.signature()).all()
        assert all(torch.allclose(heard[m].values, t.values, atol=1e-4) for m, t in question.items())
        expected = routed(batch, route=decided, precomputed=question).head_outputs["answer"]
        assert torch.allclose(exported.answer(batch, budget=0.5).head_outputs["answer"], expected, atol=1e-4)


@pytest.mark.slow
def test_every_part_alone_is_as_it_was(parts: list[ModelPart], written: dict[str, Path]) -> None:
    exported = ExportedOmniModel(written["fp32"], threads=1)
    for part in parts:
        with torch.inference_mode():
            for found, expected in zip(exported.run(part.name, *part.example), part.module(*part.example), strict=True):
                assert torch.allclose(found.float(), expected.float(), atol=1e-4), part.name


@pytest.mark.slow
def test_few_bits_take_little_room_and_change_little(
    routed: OmniModel, parts: list[ModelPart], written: dict[str, Path], make_batch: MakeBatch
) -> None:
    weights = {name: (folder / WEIGHTS).stat().st_size for name, folder in written.items()}
    held = sum(w.numel() for w in {id(w): w for part in parts for w in part.module.parameters()}.values())
    assert 1.6 * held < weights["fp32"] - weights["fp16"] <= 2 * held
    assert 2 * held < weights["fp32"] - weights["int8"] < 3 * held
    assert weights["int8"] < weights["mixed"] < weights["fp16"]
    batch = make_batch(16, lengths=True)
    with torch.inference_mode():
        expected = routed(batch).head_outputs["answer"]
        off = {
            name: float((ExportedOmniModel(folder, threads=1)(batch).head_outputs["answer"] - expected).abs().mean())
            for name, folder in written.items()
        }
    spread = float(expected.std())
    assert off["fp32"] < 1e-4 and off["fp16"] < 0.01 * spread
    assert off["fp16"] < off["int8"] < 0.25 * spread and off["int8"] < off["int4"]


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
    exporter.write(tmp_path / "int8", parts, spec, policy=INT8, source="abc", ranges=fake.quant_ranges())
    exported, batch = ExportedOmniModel(tmp_path / "int8", threads=1), make_batch(12, seed=9, lengths=True)
    with torch.inference_mode():
        exact, expected = routed(batch).head_outputs["answer"], carried(batch).head_outputs["answer"]
        found = exported(batch).head_outputs["answer"]
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
        ExportedOmniModel(folder, source="def")
    file = folder / "encoder.text.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"encoder\.text\.onnx: changed after export .* export again"):
        ExportedOmniModel(folder)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"encoder\.text\.onnx: missing"):
        ExportedOmniModel(folder)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(ArtifactError, match="broken"):
        read_manifest(folder)
    with pytest.raises(ArtifactError, match="no exported model there"):
        read_manifest(tmp_path / "nowhere")


def test_int8_is_not_asked_of_a_provider_without_integers(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="provider must be one of"):
        ExportedOmniModel(written["int8"], provider="TpuExecutionProvider")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ValueError, match="CUDAExecutionProvider has no int8 products"):
        ExportedOmniModel(written["int8"], provider="CUDAExecutionProvider")


def test_what_is_written_replaces_what_stood_there_at_once(
    exporter: Exporter, parts: list[ModelPart], routed: OmniModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, spec = parts[-1:], AssemblySpec.from_model(routed)
    size = exporter.write(tmp_path / "m", chosen, spec, policy=FP32, source="one")
    assert size == sum(file.stat().st_size for file in (tmp_path / "m").iterdir())
    assert [*tmp_path.iterdir()] == [tmp_path / "m"]
    monkeypatch.setattr("omni_lab.compression.export.ir.save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exporter.write(tmp_path / "m", chosen, spec, policy=FP32, source="two")
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
    odd = PrecisionPolicy("odd", {}, Precision.INT8, {"path.7.*": Precision.FP32})
    with pytest.raises(ValueError, match=r"no part matches 'path\.7\.\*'"):
        exporter.write(tmp_path / "m", parts[-1:], AssemblySpec.from_model(routed), policy=odd, source="")
    with pytest.raises(ExportError, match="no input range is known for layer 'question_proj'"):
        exporter.write(tmp_path / "m", parts[-1:], AssemblySpec.from_model(routed), policy=INT8, source="", ranges={})


def test_a_spec_outlives_json(routed: OmniModel, router: Router) -> None:

    spec = AssemblySpec.from_model(routed, router)
    again = AssemblySpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again.space.to_dict() == spec.space.to_dict()
    assert again.costs == spec.costs and again.penalty_conditioned and again.pool == spec.pool


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
