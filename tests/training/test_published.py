"""Every published model loads under `quick`, which trains nothing: a notebook that expects one never trains instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.compression.graph_cache import graph_digest, load_graph
from omni_lab.compression.graphs import OPSET
from omni_lab.compression.joints import joining_parts
from omni_lab.compression.parts import AssemblySpec, split_model, split_router
from omni_lab.config.profiles import get_profile
from omni_lab.data.collate import Sample, collate
from omni_lab.routing.router import Router
from omni_lab.training.fit import load_or_train
from omni_lab.training.recipes import TrainedModel, get_recipe
from omni_lab.training.router_recipes import get_router_recipe, load_or_train_router
from omni_lab.training.sequential_recipes import get_sequential_recipe, load_or_train_sequential
from omni_lab.utils.env import project_root

FOLDERS = sorted((project_root() / "reports" / "published" / "checkpoints" / "standard").iterdir())
NAMES = [folder.name for folder in FOLDERS]


def test_every_published_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = project_root() / "reports"
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))  # nothing was trained there
    (tmp_path / "reports").symlink_to(reports)
    quick, networks, once, routers = get_profile("quick"), dict[tuple[str, int], TrainedModel](), {}, 0
    for name in sorted(NAMES, key=lambda name: name.count("-")):  # networks first, then their routers
        base, _, last = name.rpartition("-seed")
        network, _, router = base.partition("-")
        if not router:
            networks[network, int(last)] = model = load_or_train(get_recipe(network, quick, seed=int(last)))
            assert model.origin.startswith("published with the project")
            continue
        if router.startswith("seed"):  # of one of several networks
            seed, _, router = router.removeprefix("seed").partition("-")
            sequential = get_sequential_recipe(
                router, quick, network=network.removesuffix("_distilled"), network_seed=int(seed)
            )
            trained = load_or_train_sequential(sequential, networks[network, int(seed)])
        else:
            trained = load_or_train_router(get_router_recipe(router, quick, network=network), networks[network, 0])
            once[base] = trained.router.eval()
        assert trained.metadata["seconds"] > 0
        routers += 1
    names = {name for name, _ in networks}
    assert {"easy_vqa", "emoji_routed", "heads", "talking_face_early", "digits_distilled"} <= names and routers > 10
    assert_its_graphs_are_published(networks["emoji_routed", 0], once["emoji_routed-group_0.2"])


def assert_its_graphs_are_published(network: TrainedModel, router: Router) -> None:
    """If this fails, code that graphs depend on has changed: publish 08_ablation_quantization anew."""
    media = {m: torch.zeros(shape, dtype=torch.uint8) for m, shape in network.data.source.shapes.items()}
    media |= {Modality.TEXT: torch.ones(5, dtype=torch.long), Modality.AUDIO: torch.zeros(16_000)}
    batch = collate([Sample(name, "", "", media) for name in "ab"])
    parts = [*split_model(network.model, batch), *split_router(router)]
    dim = next(p.module.module[-1].in_features for p in parts if p.name == "answer.classify")  # type: ignore
    parts += joining_parts(AssemblySpec.from_model(network.model), router, dim=dim)
    wanted = {part.graph_key: part for part in parts}.values()
    assert not {part.name for part in wanted if load_graph(graph_digest(part, OPSET)) is None}
