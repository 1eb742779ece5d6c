from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from omni_lab.config import PROFILES, TrainingConfig, get_profile, project_root, with_changes


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
