"""From a folder of pictures and a CSV file to answers on new ones, by the commands and by the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from omni_lab.batch import Modality
from omni_lab.config.models import ModelConfig
from omni_lab.config.profiles import get_profile
from omni_lab.data.sources.base import SourceError
from omni_lab.data.sources.new_set import create_own_set
from omni_lab.experiments.cli import main
from omni_lab.training import own_model
from omni_lab.training.own_model import own_recipe
from omni_lab.training.pretrained import PretrainedError, VQAPipeline, model_card

COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with thirty pictures, the set made of them, and its model, trained by the commands."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "pics").mkdir()
    lines = ["image,question,answer"]
    for i in range(30):
        Image.new("RGB", (20, 20), COLORS[i % 3]).save(folder / "pics" / f"{i}.png")
        lines.append(f"{i}.png,which colour is it?,{COLORS[i % 3]}")
    (folder / "q.csv").write_text("\n".join(lines))
    settings = folder / "data" / "sets" / "colours" / "set.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI_LAB_ROOT", str(folder))
        patch.setattr(own_model.own_router_recipe, "__kwdefaults__", {"seed": 0, "steps": 10})
        made = ["new", "colours", "--images", str(folder / "pics"), "--questions", str(folder / "q.csv")]
        assert main([*made, "--steps", "60", "--train-encoders"]) == 0
        settings.write_text(settings.read_text().replace("start_from: emoji_routed", "start_from: ''"))
        assert main(["train", "colours", "--profile", "smoke"]) == 0
        yield folder


def test_three_commands_lead_to_an_answer(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = json.loads((root / "reports" / "smoke" / "own_colours" / "seed0" / "metrics.json").read_text())
    metrics = {m["name"]: m for m in recorded["metrics"]}
    assert metrics["colours/accuracy"]["n"] == 3 and not metrics["colours/accuracy"]["control"]
    assert metrics["colours/accuracy_without_image"]["control"]
    assert metrics["colours/majority_by_question_accuracy"]["value"] < 1
    assert (
        0 < metrics["colours/routed_flops"]["value"] <= 1.01 and not metrics["colours/routed_flops"]["higher_is_better"]
    )
    assert metrics["colours/static_flops"]["value"] <= 1 and metrics["colours/static_accuracy"]["control"]
    assert {"colours/routed_accuracy", "colours/routed_minus_dense", "colours/gain_over_majority"} <= metrics.keys()
    assert recorded["command"] == "omni-lab train colours --profile smoke --seed 0"
    Image.new("RGB", (90, 50), "red").save(root / "new.jpg")
    ask = ["ask", "colours", "which colour is it?", "--image", str(root / "new.jpg"), "--profile", "smoke"]
    assert main(ask) == 0
    answer, ran = capsys.readouterr().out.splitlines()[-2:]
    assert answer.split()[0] in COLORS and "then" in answer and ran.startswith("ran: text: full, image: ")


def test_a_saved_model_answers_alike(root: Path) -> None:
    assert main(["save", "colours", "--to", str(root / "saved"), "--profile", "smoke"]) == 0
    pipeline = VQAPipeline.from_pretrained(root / "saved")
    pixels = np.zeros((3, 64, 64), np.uint8)
    pixels[2] = 255
    first = pipeline("which colour is it?", image=pixels)
    again = VQAPipeline.from_pretrained(pipeline.save_pretrained(root / "again"))("which colour is it?", image=pixels)
    assert first == again and sum([first.confidence, *first.others.values()]) == pytest.approx(1, abs=1e-4)
    as_picture = pipeline("which colour is it?", image=Image.fromarray(pixels.transpose(1, 2, 0)))
    assert as_picture == first
    assert pipeline("which colour is it?").ran == {"text": "full"}, "a picture may be missing"
    card = (root / "saved" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    names = [m["name"] for m in header["model-index"][0]["results"][0]["metrics"]]
    assert "colours/accuracy" in names and "colours/majority_by_question_accuracy" not in names
    assert "colours/majority_by_question_accuracy (baseline)" in card


def test_the_card_is_what_the_hub_expects() -> None:
    hub = pytest.importorskip("huggingface_hub")
    metrics = [{"name": "mine/accuracy", "value": 0.5, "interval": [0.4, 0.6], "control": False}]
    card = hub.ModelCard(model_card("mine", ModelConfig(), metrics))
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value, result.dataset_name) == ("mine/accuracy", 0.5, "mine")
    assert "0.500 (0.400 to 0.600)" in card.text


def test_what_cannot_be_answered_is_named(root: Path) -> None:
    main(["save", "colours", "--to", str(root / "saved"), "--profile", "smoke"])
    pipeline = VQAPipeline.from_pretrained(root / "saved")
    with pytest.raises(ValueError, match=r"audio: this model has no encoder for it: it has \['text', 'image'\]"):
        pipeline("which colour is it?", audio=np.zeros(1600))
    with pytest.raises(ValueError, match="none.png: no such image file"):
        pipeline("which colour is it?", image=root / "none.png")
    with pytest.raises(ValueError, match=r"image must be uint8 of shape \[3, 64, 64\]: got torch.float32, \[3, 8, 8\]"):
        pipeline("which colour is it?", image=torch.zeros(3, 8, 8))


def test_a_broken_folder_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"not a saved model \(FileNotFoundError"):
        VQAPipeline.from_pretrained(tmp_path)
    main(["save", "colours", "--to", str(tmp_path / "saved"), "--profile", "smoke"])
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PretrainedError, match="weights that do not fit"):
        VQAPipeline.from_pretrained(tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    config.write_text(config.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(PretrainedError, match="version 0: expected 1"):
        VQAPipeline.from_pretrained(tmp_path / "saved")


def test_unknown_names_are_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "colours", "what?"]) == 2
    assert "nothing to look at or listen to: expected --image, --audio or --video" in capsys.readouterr().err
    assert main(["ask", "colour", "what?", "--image", "x.png"]) == 2
    assert "unknown set of your own (made by omni-lab new) 'colour'; the nearest of" in capsys.readouterr().err
    taken = ["new", "easy_vqa", "--images", str(root / "pics"), "--questions", str(root / "q.csv")]
    assert main(taken) == 2
    assert "'easy_vqa' is the name of a model of this project" in capsys.readouterr().err


def test_settings_that_contradict_each_other_are_named(root: Path) -> None:
    def recipe(name: str, **settings: Any) -> Any:
        return own_recipe(
            create_own_set(name, root / "q.csv", images=root / "pics", **settings), get_profile("standard")
        )

    with pytest.raises(SourceError, match="image_size and frame_size are 32 and 32, those of emoji_routed 64 and 32"):
        recipe("small", image_size=32)
    with pytest.raises(ValueError, match="unknown recipe 'emoji_route'"):
        recipe("typo", start_from="emoji_route")
    with pytest.raises(SourceError, match="backbone must be a model of timm: got 'resnet17'"):
        recipe("unknown", backbone="resnet17")
    refused = [
        "new",
        "refused",
        "--images",
        str(root / "pics"),
        "--questions",
        str(root / "q.csv"),
        "--image-size",
        "32",
    ]
    assert main(refused) == 2 and not (root / "data" / "sets" / "refused").exists()
    own = recipe("backbone", image_size=224, backbone="resnet18")
    assert own.model.vision.pretrained and own.model.modalities == (Modality.TEXT, Modality.IMAGE)
    assert own.training.frozen_encoders == (Modality.IMAGE,) and own.training.epochs == 300
