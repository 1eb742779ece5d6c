"""Traced graphs are read again where nothing that decides them has changed, and only there."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import Modality
from omni_lab.compression import graph_cache
from omni_lab.compression.export import Exporter
from omni_lab.compression.graph_cache import PUBLISHED, graph_digest
from omni_lab.compression.graphs import OPSET
from omni_lab.compression.parts import ModelPart


class Scaled(nn.Module):
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = scale
        self.register_buffer("offset", torch.ones(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.linear(x) * self.scale + self.offset,)


def part(module: nn.Module) -> ModelPart:
    return ModelPart("answer.classify", module, Modality.TEXT, (torch.zeros(2, 3),), ("x",))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    return tmp_path


def test_what_decides_a_graph_is_in_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = graph_digest(part(Scaled()), OPSET)
    assert digest == graph_digest(part(Scaled()), OPSET), "weights are inputs"
    other_buffer = Scaled()
    other_buffer.offset *= 2
    changed = [part(Scaled(3.0)), part(other_buffer), replace(part(Scaled()), variable_length=True)]
    changed += [part(nn.Linear(3, 2)), replace(part(Scaled()), example=(torch.zeros(1, 3),))]
    found = [graph_digest(p, OPSET) for p in changed]
    assert len({digest, graph_digest(part(Scaled()), OPSET - 1), *found}) == 7
    longer = replace(part(Scaled()), example=(torch.zeros(9, 3),))
    assert graph_digest(longer, OPSET) == digest, "its length is free"
    monkeypatch.setattr(graph_cache, "_code_digest", lambda file: "another")
    assert graph_digest(part(Scaled()), OPSET) != digest


def test_code_is_followed_through_imports_and_without_its_comments(tmp_path: Path) -> None:
    model = graph_cache.PACKAGE / "encoders" / "audio.py"
    names = {str(file.relative_to(graph_cache.PACKAGE)) for file in graph_cache._with_imports({model})}
    assert {"layers/attention.py", "layers/mel.py", "batch.py", "encoders/tiny.py"} <= names
    assert not any(name.startswith(("config", "heads")) for name in names)
    texts = {
        "a": 'def f():\n    """Says."""\n    return 1',
        "b": "def f():  # why\n    return 1",
        "c": "def f(): return 2",
    }
    digests = {}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        digests[name] = graph_cache._code_digest(tmp_path / f"{name}.py")
    assert digests["a"] == digests["b"] != digests["c"]


def test_a_graph_is_traced_once(root: Path) -> None:
    first, again = Exporter(), Exporter()
    graphs = [exporter.graph(part(Scaled())) for exporter in (first, again)]
    assert (first.num_traced, again.num_traced) == (1, 0)
    assert len({ir.to_proto(graph).SerializeToString() for graph in graphs}) == 1
    (stored,) = (root / "data" / "graphs").iterdir()
    onnx.load(stored)

    for file in ("a.zip", "b.zip"):
        again.save_graphs(root / file)
    assert filecmp.cmp(root / "a.zip", root / "b.zip", shallow=False)
    stored.unlink()
    (root / PUBLISHED).parent.mkdir(parents=True)
    (root / "a.zip").rename(root / PUBLISHED)
    published = Exporter()
    published.graph(part(Scaled()))
    assert published.num_traced == 0 and not stored.exists(), "what is published is not copied"


def test_a_folder_that_cannot_be_written_costs_only_time(root: Path) -> None:
    (root / "data").write_text("a file")
    exporter = Exporter()
    exporter.graph(part(Scaled()))
    assert exporter.num_traced == 1
