"""`omni-lab train`, in a folder of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from omni_lab.config import profiles
from omni_lab.experiments.cli import main
from omni_lab.lightning_modules.contrastive import LitContrastive
from omni_lab.lightning_modules.vqa import LitVQA
from tests.conftest import TINY_PROFILE


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    monkeypatch.setitem(profiles.PROFILES, "tiny", TINY_PROFILE)
    return tmp_path


def test_unknown_names_are_answered_with_the_nearest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "emoji_word", "--profile", "tiny"]) == 2
    said = capsys.readouterr().err
    assert "unknown recipe 'emoji_word'" in said and "is 'emoji_world'" in said
    for name in ("easy_vqa", "emoji_alignment", "emoji_world_without_audio"):
        assert name in said, "a wrong name lists them all"
    assert main(["train", "emoji_world", "--profile", "tinny"]) == 2
    assert "unknown profile 'tinny'" in capsys.readouterr().err
    assert not any(root.iterdir()), "nothing was built"


def test_a_training_from_the_command_line(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "emoji_world", "--profile", "tiny", "--seed", "3"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "emoji_world: trained just now" in said and "validation accuracy" in said
    assert len(list((root / "data" / "stores").glob("emoji_world*/manifest.json"))) == 1, "of one set"
    folders = {p.parent.name.rsplit("-", 1)[0]: p for p in (root / "data" / "checkpoints").glob("tiny/*/model.json")}
    assert set(folders) == {f"emoji_{name}-seed3" for name in ("world", "matching", "quiet", "reading", "alignment")}
    assert json.loads(folders["emoji_world-seed3"].read_text())["command"] == "omni-lab " + " ".join(command)
    assert str(folders["emoji_world-seed3"].parent) in said

    for module in (LitVQA, LitContrastive):
        monkeypatch.setattr(module, "training_step", lambda *a: pytest.fail("trained again"))
    assert main(command) == 0
    assert "emoji_world: trained here earlier" in capsys.readouterr().out
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        main([*command, "--retrain"])


def test_training_one_recipe_leaves_the_others_alone(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    glance = replace(TINY_PROFILE, name="glance", models="tiny")  # notebooks train nothing under such a profile
    monkeypatch.setitem(profiles.PROFILES, "glance", glance)
    assert main(["train", "emoji_alignment", "--profile", "glance"]) == 0
    assert "emoji_alignment: trained just now" in capsys.readouterr().out
    made = {p.parent.name.rsplit("-", 1)[0] for p in root.glob("data/checkpoints/tiny/*/model.json")}
    assert made == {"emoji_alignment-seed0"}
