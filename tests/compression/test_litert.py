"""LiteRT files: they say what the part says, for the shapes that they were made for; skipped without the packages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omni_lab.compression.graphs import ExportError
from omni_lab.compression.litert import LiteRTPart, export_litert, missing_packages, quantize_litert
from omni_lab.compression.parts import ModelPart, split_model
from omni_lab.model import OmniModel
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]

needs_litert = pytest.mark.skipif(bool(missing_packages()), reason="the extra 'edge' is not installed")


@pytest.fixture
def parts(routed: OmniModel, make_batch: MakeBatch) -> dict[str, ModelPart]:
    return {part.name: part for part in split_model(routed, make_batch(3))}


def test_what_is_missing_is_named(parts: dict[str, ModelPart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_lab.compression.litert.PACKAGES", ("litert_of_tomorrow",))
    with pytest.raises(ExportError, match="litert_of_tomorrow, not installed: see 'edge' in CONTRIBUTING"):
        export_litert(parts["block.0.text"], tmp_path / "block.tflite")
    assert not [*tmp_path.iterdir()]


@needs_litert
@pytest.mark.parametrize(
    "name",
    ["encoder.text", "encoder.image", "encoder.audio", "encoder.video", "path.0.text_from_image", "answer.classify"],
)
def test_a_file_says_what_the_part_says(parts: dict[str, ModelPart], tmp_path: Path, name: str) -> None:
    part, exact, rounded = parts[name], tmp_path / "float.tflite", tmp_path / "int8.tflite"
    given = tuple(x[:1] for x in part.example)
    assert export_litert(part, exact) == exact.stat().st_size
    assert quantize_litert(exact, rounded) == rounded.stat().st_size
    for file, tolerance in ((exact, 1e-4), (rounded, 0.5)):
        with torch.no_grad():
            expected, found = part.module(*given), LiteRTPart(file)(*given)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape and (a.float() - b.float()).abs().max() < tolerance
    assert rounded.read_bytes() != exact.read_bytes()
    assert {*tmp_path.iterdir()} == {exact, rounded}, "nothing else is left behind"


@needs_litert
def test_other_shapes_are_refused(parts: dict[str, ModelPart], tmp_path: Path) -> None:
    part = parts["answer.classify"]
    export_litert(part, tmp_path / "a.tflite")
    with pytest.raises(ExportError, match=r"inputs must be of the shapes \[\[1, \d+\]\]: got \[\[2, \d+\]\]"):
        LiteRTPart(tmp_path / "a.tflite")(part.example[0][:2])
    (tmp_path / "b.tflite").write_bytes((tmp_path / "a.tflite").read_bytes()[:100])
    with pytest.raises(ExportError, match=r"b\.tflite: LiteRT cannot read it"):
        LiteRTPart(tmp_path / "b.tflite")
