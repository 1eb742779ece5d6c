"""The profiles, the file they are read from, and the errors of its reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.build import build_model
from omni_lab.config import profiles as profiles_module
from omni_lab.config.models import ModelConfig
from omni_lab.config.profiles import PROFILES, get_profile, load_profiles, parse_config
from omni_lab.config.schema import DataConfig, Profile, TrainingConfig, with_changes
from omni_lab.data.collate import Sample, collate
from omni_lab.training.checkpoint import digest
from omni_lab.utils.env import project_root
from omni_lab.worlds.emoji_world import SPOKEN_KEY_OFFSET, EmojiWorld


def test_the_profiles_are_frozen_values() -> None:
    assert list(PROFILES) == ["smoke", "standard", "quick", "full"]
    assert all(profile.name == name for name, profile in PROFILES.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_profile("quick").name = "other"  # type: ignore[misc]
    assert all(p.model.dim == 256 for p in PROFILES.values())


def test_no_value_of_a_profile_has_changed() -> None:
    """Checkpoints are found and compared by most of these values: a changed model or training makes them unusable."""
    assert {name: digest(vars(p)) for name, p in PROFILES.items()} == {
        "smoke": "f2d960ea",
        "standard": "2fb0464f",
        "quick": "2d2fb1b7",
        "full": "934fa5a2",
    }


def leaves(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):
        return [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name))]
    if isinstance(value, dict):
        return [leaf for pair in value.items() for entry in pair for leaf in leaves(entry)]
    return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("name", ["smoke", "quick", "standard", "full"])
def test_a_profile_holds_dataclasses_tuples_and_modalities(name: str) -> None:
    profile = get_profile(name)
    assert isinstance(profile, Profile) and isinstance(profile.talking_face.model, ModelConfig)
    kinds = {type(leaf) for leaf in leaves(profile)}
    assert kinds == {str, int, float, bool, type(None), Modality}, "no list, no raw mapping"
    world = profile.emoji_world
    assert world.model.modalities == tuple(Modality) and world.model.fusion.paths is not None
    assert all(type(path) is tuple and {*map(type, path)} == {Modality} for path in world.model.fusion.paths)
    assert {type(m) for m in world.data.modality_costs} == {Modality}
    assert type(world.model.vision.overrides["depths"]) is tuple


def test_quick_uses_the_models_of_standard() -> None:
    """So the two may differ in what they measure, never in what they train."""
    quick, standard = get_profile("quick"), get_profile("standard")
    assert quick.trained_as == standard.trained_as == "standard"
    examples = standard.multitask.examples | {"train": quick.multitask.examples["train"]}
    multitask = dataclasses.replace(quick.multitask, examples=examples)
    sizes = (
        "eval_scenes",
        "effort",
        "timing_rounds",
        "latent_settings",
        "fresh_scenes",
        "recognized",
        "runtimes",
        "depth_budgets",
        "own_steps",
    )
    measured = {name: getattr(standard, name) for name in ("name", "models", *sizes)}
    assert dataclasses.replace(quick, multitask=multitask, **measured) == standard


def test_a_profile_changes_only_what_it_names() -> None:
    standard = get_profile("standard")
    text = Path(profiles_module.__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    found = load_profiles(text + "\nlong:\n  training: {epochs: 15}\n  emoji_world: {scenes: {test: 5}}\n")["long"]
    world = dataclasses.replace(standard.emoji_world, scenes=standard.emoji_world.scenes | {"test": 5})
    training = dataclasses.replace(standard.training, epochs=15)
    assert found == dataclasses.replace(standard, name="long", training=training, emoji_world=world)
    assert load_profiles(text) == PROFILES


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (TrainingConfig, {"epoch": 3}, r"unknown field of here 'epoch'; the nearest of .* is 'epochs'"),
        (ModelConfig, {"text": {"widht": 3}}, r"unknown field of here\.text 'widht'"),
        (TrainingConfig, {"epochs": 3.0}, r"here\.epochs must be int: got 3\.0"),
        (TrainingConfig, {"epochs": True}, r"here\.epochs must be int: got True"),
        (TrainingConfig, {"learning_rate": "5e-4"}, r"here\.learning_rate must be float or int: got '5e-4'"),
        (TrainingConfig, {"horizontal_flip": 1}, r"here\.horizontal_flip must be bool: got 1"),
        (TrainingConfig, {"frozen_encoders": "image"}, r"here\.frozen_encoders must be list: got 'image'"),
        (
            TrainingConfig,
            {"frozen_encoders": ["imgae"]},
            r"Modality in here\.frozen_encoders\[0\] 'imgae'.* is 'image'",
        ),
        (TrainingConfig, {"frozen_encoders": [["image"]]}, r"here\.frozen_encoders\[0\] must be str: got \['image'\]"),
        (TrainingConfig, None, "here must be dict: got None"),
        (DataConfig, {"modality_costs": {"images": 1.0}}, r"a key of here\.modality_costs 'images'; .* is 'image'"),
        (
            ModelConfig,
            {"fusion": {"paths": [["text"]]}},
            r"here\.fusion\.paths\[0\] must have 2 entries: got \['text'\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(kind: type, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(kind, value, where="here")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown profile 'qick'; the nearest of .* is 'quick'"):
        get_profile("qick")
    with pytest.raises(ValueError, match="unknown field of TrainingConfig 'epoch'; the nearest of .* is 'epochs'"):
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
    assert len(found.fusion.attention[0]) == 5, "text attends to three modalities, audio to two"
    assert sum(world.scenes.values()) < SPOKEN_KEY_OFFSET
