from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.build import build_model
from omni_lab.config.profiles import PROFILES, get_profile
from omni_lab.config.schema import TrainingConfig, with_changes
from omni_lab.data.collate import Sample, collate
from omni_lab.utils.env import project_root
from omni_lab.worlds.emoji_world import SPOKEN_KEY_OFFSET, EmojiWorld


def test_the_three_profiles_are_frozen_values() -> None:
    assert list(PROFILES) == ["smoke", "quick", "full"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_profile("quick").name = "other"  # type: ignore[misc]
    assert all(p.model.dim == 256 for p in PROFILES.values())


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown profile 'qick'; the nearest of .* is 'quick'"):
        get_profile("qick")
    with pytest.raises(ValueError, match="TrainingConfig has no field 'epoch'; the nearest is 'epochs'"):
        with_changes(TrainingConfig(), epoch=3)
    assert with_changes(TrainingConfig(), epochs=3).epochs == 3


def test_the_project_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    assert project_root() == tmp_path
    monkeypatch.delenv("OMNI_LAB_ROOT")
    assert (project_root() / "pyproject.toml").exists()


@pytest.mark.parametrize("name", ["smoke", "quick"])
def test_the_models_of_the_profiles_fit_their_world(name: str) -> None:
    world = PROFILES[name].emoji_world
    model = build_model(world.model, vocab_size=50, answers=5).eval()
    shapes = EmojiWorld(things=world.things, scenes=world.scenes).shapes
    inputs = {
        Modality.TEXT: torch.arange(9),
        Modality.AUDIO: torch.randn(17_000),
        **{m: torch.randint(0, 256, shapes[m], dtype=torch.uint8) for m in (Modality.IMAGE, Modality.VIDEO)},
    }
    found = model(collate([Sample("one", "answer", "f", inputs)]), need_weights=True)
    assert torch.isfinite(found.head_outputs["answer"]).all()
    assert len(found.fusion.attention[0]) == 5, "the question listens to three, the sound to two"
    assert sum(world.scenes.values()) < SPOKEN_KEY_OFFSET
