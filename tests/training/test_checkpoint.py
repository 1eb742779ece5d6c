from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from omni_lab.config.schema import NOT_IDENTITY
from omni_lab.training.checkpoint import (
    CheckpointError,
    deduplicate_weights,
    digest,
    load_model,
    read_tensors,
    save_model,
)

PUBLISHED = Path(__file__).parents[2] / "reports" / "published" / "checkpoints"
ROOMY = 64  # 64 x 64 weights in a byte each, and 64 scales: what is kept for a layer of this width is worth sharing


def network(seed: int, *, trained: bool) -> nn.Sequential:
    """Two layers; the first, and both vectors, are the same for every seed, unless trained."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(ROOMY, ROOMY), nn.Linear(ROOMY, ROOMY))
    torch.manual_seed(seed)
    for name, weights in layers.named_parameters():
        if trained or name == "1.weight":
            nn.init.normal_(weights)
    return layers


def load(folder: Path) -> list[torch.Tensor]:
    found = network(9, trained=True)
    load_model(folder, found, identity={"name": folder.name})
    return [*found.parameters()]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(name: str, seed: int, *, trained: bool = False) -> Path:
        facts = {"history": [{"loss": 0.5}, {"loss": 0.1}], "device": "cpu"}
        save_model(tmp_path / name, network(seed, trained=trained), identity={"name": name}, metadata=facts)
        return tmp_path / name

    return save


def test_facts_are_a_line_each(saved: Callable[..., Path]) -> None:
    lines = (saved("a", 1) / "model.json").read_text().splitlines()
    assert lines == [
        "{",
        '"identity": {"name":"a"},',
        '"history": [{"loss":0.5},{"loss":0.1}],',
        '"device": "cpu"',
        "}",
    ]


def test_what_two_models_share_is_kept_once_and_loaded_bit_for_bit(saved: Callable[..., Path]) -> None:
    one, two = saved("one", 1), saved("two", 2)
    before, files, kept = load(two), {f.name: f.stat().st_size for f in two.iterdir()}, read_tensors(two)
    gained = deduplicate_weights(two, one)
    assert gained == sum(files.values()) - sum(f.stat().st_size for f in two.iterdir())
    assert gained > 0.9 * ROOMY**2 and {f.name for f in two.iterdir()} == files.keys()
    assert json.loads((two / "model.json").read_text())["shared"]["one"].keys() == {"0.weight"}
    assert all(torch.equal(a, b) for a, b in zip(before, load(two), strict=True))
    again = read_tensors(two)
    assert kept.keys() == again.keys() and all(torch.equal(kept[n], again[n]) for n in kept)
    assert deduplicate_weights(two, one) == 0, "there is nothing left to share"
    assert deduplicate_weights(one, two) == 0, "and none shares what it does not hold"
    assert deduplicate_weights(saved("three", 3, trained=True), one) == 0


def test_a_model_can_share_with_several(saved: Callable[..., Path]) -> None:
    one, two, three = saved("one", 1), saved("two", 2, trained=True), saved("three", 1)
    safetensors.torch.save_file(safetensors.torch.load_file(one / "model.safetensors"), two / "model.safetensors")
    tensors = safetensors.torch.load_file(one / "model.safetensors")
    safetensors.torch.save_file({"0.weight": tensors.pop("0.weight")}, one / "model.safetensors")
    before = load(three)
    assert deduplicate_weights(three, one) > 0 and deduplicate_weights(three, two) > 0
    assert [*json.loads((three / "model.json").read_text())["shared"]] == ["one", "two"]
    assert all(torch.equal(a, b) for a, b in zip(before, load(three), strict=True))


def test_a_sibling_that_is_missing_or_changed_is_named(saved: Callable[..., Path], tmp_path: Path) -> None:
    one, two = saved("one", 1), saved("two", 2)
    deduplicate_weights(two, one)
    saved("one", 1, trained=True)
    words = r"one/model.safetensors: '0.weight', which .*two shares, is [0-9a-f]{64}, expected [0-9a-f]{64}"
    with pytest.raises(CheckpointError, match=words):
        load(two)
    one.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"one/model.safetensors: '0.weight', .* is missing, expected [0-9a-f]"):
        load(two)
    saved("two", 2)
    load(two)  # saved anew, it needs nobody


def test_what_a_model_has_itself_counts_before_what_it_shared(saved: Callable[..., Path]) -> None:
    """A save over one that shares, interrupted between its two files: new weights beside old facts."""
    one, two = saved("one", 1), saved("two", 2)
    deduplicate_weights(two, one)
    old = (two / "model.json").read_text()
    expected = load(saved("two", 3, trained=True))
    (two / "model.json").write_text(old)
    assert all(torch.equal(a, b) for a, b in zip(expected, load(two), strict=True))


def test_only_siblings_share(saved: Callable[..., Path], tmp_path: Path) -> None:
    one = saved("one", 1)
    for other in (one, saved("deeper/two", 2)):
        with pytest.raises(ValueError, match="expected another folder beside it"):
            deduplicate_weights(one, other)
    with pytest.raises(CheckpointError, match=r"none/model.safetensors: cannot be loaded"):
        deduplicate_weights(one, tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"none: no checkpoint there"):
        deduplicate_weights(tmp_path / "none", one)


@dataclass(frozen=True)
class Old:
    width: int
    depth: int = 2
    workers: int = field(default=0, metadata=NOT_IDENTITY)


@dataclass(frozen=True)
class New(Old):
    bits: int | None = None
    rates: dict[str, float] = field(default_factory=lambda: {"a": 1.0})


def test_a_new_field_at_its_default_orphans_nothing(tmp_path: Path) -> None:
    old, new = ({"seed": 1, "model": kind(3)} for kind in (Old, New))
    save_model(tmp_path, network(1, trained=True), identity=old, metadata={})
    assert json.loads((tmp_path / "model.json").read_text())["identity"]["model"] == {"width": 3, "depth": 2}
    load_model(tmp_path, network(2, trained=True), identity=new)
    assert digest(old) == digest(new)
    for changed, difference in (
        (New(3, bits=8), "model.bits: has None, expected 8"),
        (New(3, rates={"a": 2.0}), "model.rates.a: has None, expected 2.0"),
        (New(3, depth=3), "model.depth: has 2, expected 3"),
    ):
        with pytest.raises(CheckpointError, match=difference):
            load_model(tmp_path, network(2, trained=True), identity={"seed": 1, "model": changed})
        assert digest({"seed": 1, "model": changed}) != digest(old)
    load_model(tmp_path, network(2, trained=True), identity={"seed": 1, "model": New(3, workers=4)})


@pytest.mark.parametrize("folder", sorted(PUBLISHED.glob("*/*")), ids=lambda folder: folder.name)
def test_published_models_find_what_they_share(folder: Path) -> None:
    tensors = read_tensors(folder)
    assert tensors and all(f"{n}.scales" in tensors for n, t in tensors.items() if t.dtype == torch.int8)
