"""The explorer: what it says and draws; and in a real browser, on a real JupyterLab server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure

from omni_lab.batch import Modality
from omni_lab.config.profiles import get_profile
from omni_lab.data.datamodule import VQADataset
from omni_lab.explain.maps import ExplanationError
from omni_lab.routing.route import ComputeLevel
from omni_lab.routing.router import Router
from omni_lab.training.recipes import get_recipe
from omni_lab.utils.env import project_root
from omni_lab.viz.explorer import Explorer, png

TEXT, IMAGE, AUDIO, VIDEO = Modality
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def make_explorer() -> Explorer:
    """An untrained model of the smoke profile on its world; the router's costs are made up."""
    profile = get_profile("smoke")
    recipe = get_recipe("emoji_routed", profile)
    data = recipe.data_module()
    data.prepare_data()
    data.setup("test")
    torch.manual_seed(0)
    model = recipe.build_model(data).eval()
    hidden_dim = profile.emoji_world.router.hidden
    router = Router(model.space, dim=recipe.model.dim, hidden_dim=hidden_dim, penalty_conditioned=True).eval()
    router.costs.copy_(torch.linspace(0.9, 0.2, len(router.costs)))
    return Explorer(model, router, VQADataset(data.store, "test"))


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return make_explorer()


def place_of(explorer: Explorer, family: str) -> int:
    return explorer.dataset.families.index(family)


def test_what_is_explored_is_what_ran(explorer: Explorer) -> None:
    sample = explorer.dataset[place_of(explorer, "all_where")]
    whole = explorer.explore(sample)
    assert whole.cost == pytest.approx(1) and (whole.route.encoder_levels == ComputeLevel.FULL).all()
    assert list(whole.answers.values()) == sorted(whole.answers.values(), reverse=True) and len(whole.answers) == 3
    with torch.no_grad():
        said = explorer.model(whole.batch).head_outputs["answer"][0].softmax(0)
    assert next(iter(whole.answers.values())) == pytest.approx(float(said.max()), abs=1e-5)
    assert {*whole.maps} == {*Modality} and len(whole.maps[IMAGE]) == len(
        whole.batch.inputs[IMAGE].values[0, 0]
    ) ** 2 // 64
    blind = explorer.explore(sample, without=[IMAGE])
    assert IMAGE not in blind.batch.inputs and IMAGE not in blind.maps and blind.cost == pytest.approx(1)
    cheap = explorer.explore(sample, budget=0.5)
    with torch.no_grad():
        route, _ = explorer.model.select_route(explorer.router, cheap.batch, budget=0.5)
    assert torch.equal(cheap.route.encoder_levels, route.encoder_levels) and torch.equal(
        cheap.route.interaction_mask, route.interaction_mask
    )


def test_every_state_can_be_drawn(explorer: Explorer) -> None:
    for family in ("all_where", "text_sum", "spoken_image_where"):
        sample = explorer.dataset[place_of(explorer, family)]
        for without in ([], [IMAGE], [VIDEO, IMAGE]):
            figure = explorer.draw(explorer.explore(sample, without=without, kind="attention"), title=family)
            assert isinstance(figure, Figure) and png(figure).startswith(b"\x89PNG")
            plt.close(figure)


def test_bad_requests_are_named(explorer: Explorer) -> None:
    sample = explorer.dataset[place_of(explorer, "image_where")]
    with pytest.raises(ExplanationError, match="needs text or audio: both are switched off"):
        explorer.explore(sample, without=[TEXT, AUDIO])
    with pytest.raises(ExplanationError, match="the map must be one of .*: got 'magic'"):
        explorer.explore(sample, kind="magic")
    with pytest.raises(ValueError, match="no penalty meets a budget of 0.01"):
        explorer.explore(sample, budget=0.01)
    plain = Router(explorer.model.space, dim=32)
    with pytest.raises(ValueError, match="needs a router that follows a budget"):
        Explorer(explorer.model, plain, explorer.dataset)


def controls(panel: Any) -> dict[str, Any]:
    """Every control by its description, "picture" and "message"."""
    found: dict[str, Any] = {}
    rows = [panel]
    while rows:
        one = rows.pop()
        rows += getattr(one, "children", ())
        if isinstance(one, widgets.Image):
            found["picture"] = one
        elif isinstance(one, widgets.HTML):
            found["message"] = one
        elif getattr(one, "description", ""):
            found[one.description] = one
    return found


def test_the_picture_follows_the_controls(explorer: Explorer) -> None:
    shown = controls(explorer.panel(first=place_of(explorer, "image_where")))
    pictures = [shown["picture"].value]
    changes = {"image": False, "video": False, "or ask": "where is the drum?", "map": "rollout"}
    for name, value in changes.items():
        shown[name].value = value
        assert re.search(r"\d+ ms", shown["message"].value)
        pictures.append(shown["picture"].value)
    assert all(a != b for a, b in pairwise(pictures))
    shown["budget"].value = 0.5
    assert re.search(r"\d+ ms", shown["message"].value)
    shown["text"].value = shown["audio"].value = False
    assert "both are switched off" in shown["message"].value and shown["picture"].value != b""
    shown["text"].value = True
    broken: dict[str, Any] = {"name": "a.png", "type": "image/png", "size": 3, "content": memoryview(b"no!")}
    broken["last_modified"] = datetime.now(UTC)
    shown["picture, GIF, sound (up to 8 MB)"].value = (broken,)
    assert "a.png" in shown["message"].value


NOTEBOOK = """
from tests.viz.test_explorer import make_explorer
explorer = make_explorer()
explorer.panel(first=explorer.dataset.families.index("image_where"))
"""


@pytest.fixture
def jupyterlab(tmp_path: Path) -> Iterator[str]:
    """The address of a server of this project's environment that shows one notebook."""
    cell = {
        "cell_type": "code",
        "id": "one",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": NOTEBOOK,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    content = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "explorer.ipynb").write_text(json.dumps(content))
    options = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=lab", f"--notebook-dir={tmp_path}"]
    variables = os.environ | {"PYTHONPATH": str(project_root()), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], stderr=subprocess.PIPE, text=True, env=variables, cwd=tmp_path
    )
    assert server.stderr is not None
    try:
        for line in server.stderr:
            found = re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", line)
            if found:
                break
        else:
            pytest.fail("JupyterLab ended before it served")
        yield f"http://127.0.0.1:{found[1]}/lab/tree/explorer.ipynb?token=lab"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason="wants Chromium and Playwright"
)
def test_it_lives_in_jupyterlab(jupyterlab: str, tmp_path: Path) -> None:
    """The notebook is opened and run, a control is changed, the picture changes."""
    from playwright.sync_api import sync_playwright

    artefacts = Path(os.environ.get("OMNI_LAB_ARTEFACTS", tmp_path))
    artefacts.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(jupyterlab, timeout=120_000)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.click(".jp-Notebook .jp-CodeCell .jp-InputArea-editor")
        time.sleep(2)  # the kernel is being started: what is run before that waits for it
        page.keyboard.press("Shift+Enter")
        picture = page.locator(".jp-OutputArea img").first
        page.locator(
            ".jp-OutputArea img, .jp-OutputArea [data-mime-type*=stderr], .jp-OutputArea [data-mime-type*=error]"
        ).first.wait_for(timeout=120_000)
        if not picture.is_visible():
            page.screenshot(path=artefacts / "explorer_failed.png")
        before = picture.get_attribute("src")
        page.screenshot(path=artefacts / "explorer_before.png")
        page.get_by_label("image", exact=True).uncheck()
        page.wait_for_function(
            "before => document.querySelector('.jp-OutputArea img').src !== before", arg=before, timeout=60_000
        )
        page.screenshot(path=artefacts / "explorer_after.png")
        browser.close()
    assert before and (artefacts / "explorer_after.png").stat().st_size > 10_000
