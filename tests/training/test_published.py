"""Every published model loads under `quick`, which trains nothing: a notebook that expects one never trains instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_lab.config.profiles import get_profile
from omni_lab.training.fit import load_or_train
from omni_lab.training.recipes import TrainedModel, get_recipe
from omni_lab.training.router_recipes import get_router_recipe, load_or_train_router
from omni_lab.utils.env import project_root

FOLDERS = sorted((project_root() / "reports" / "published" / "checkpoints" / "standard").iterdir())
NAMES = [folder.name.rpartition("-seed")[0] for folder in FOLDERS]


def test_every_published_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = project_root() / "reports"
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))  # nothing was trained there
    (tmp_path / "reports").symlink_to(reports)
    quick, networks = get_profile("quick"), dict[str, TrainedModel]()
    for name in sorted(NAMES, key=lambda name: "-" in name):  # networks first, then their routers
        network, _, router = name.partition("-")
        if not router:
            networks[name] = load_or_train(get_recipe(name, quick))
            assert networks[name].origin.startswith("published with the project")
        else:
            recipe = get_router_recipe(router, quick, network=network)
            assert load_or_train_router(recipe, networks[network]).metadata["seconds"] > 0
    assert {"easy_vqa", "emoji_routed", "heads", "talking_face_early"} <= networks.keys()
