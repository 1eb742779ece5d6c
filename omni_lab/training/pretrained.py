"""A model with all that an answer needs, in one folder: `save_pretrained`, `from_pretrained`, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer

from omni_lab.batch import ComputeLevel, Modality, OmniBatch
from omni_lab.build import build_model, component_versions
from omni_lab.config.models import ModelConfig
from omni_lab.config.profiles import parse_config
from omni_lab.config.schema import RouterConfig
from omni_lab.data.collate import Sample, collate
from omni_lab.data.media_io import prepare_audio, read_audio, read_image
from omni_lab.data.tokenizer import encode_text
from omni_lab.data.uploads import UploadError, read_upload
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from omni_lab.training.checkpoint import to_jsonable
from omni_lab.training.recipes import TrainedModel
from omni_lab.training.router_recipes import RouterRecipe, build_router

CONFIG, WEIGHTS, ROUTER, TOKENIZER, CARD = (
    "config.json",
    "model.safetensors",
    "router.safetensors",
    "tokenizer.json",
    "README.md",
)
VERSION = 1  # of the folder's format


class PretrainedError(ValueError):
    """A folder that does not hold a model; the message names the file and what was expected."""


class Answer(NamedTuple):
    """An answer to one question."""

    text: str
    confidence: float
    others: dict[str, float]  # the next likely answers, with their probabilities
    ran: dict[str, str]  # for each modality that was given, the level at which its encoder ran, or "skip"


class VQAPipeline:
    """Answers questions about pictures, sounds and clips.

    model: in evaluation mode, with an answer head.
    tokenizer: of its questions. answers: the texts of its classes.
    shapes: of images and videos, see `VQASource`. router: decides what runs; None: everything.
    """

    def __init__(
        self,
        model: OmniModel,
        *,
        config: ModelConfig,
        tokenizer: Tokenizer,
        answers: Sequence[str],
        shapes: Mapping[Modality, tuple[int, ...]],
        router: Router | None = None,
        router_config: RouterConfig | None = None,
    ) -> None:
        self.model, self.config, self.tokenizer = model.eval(), config, tokenizer
        self.answers, self.shapes = [*answers], dict(shapes)
        self.router, self.router_config = router.eval() if router is not None else None, router_config

    @classmethod
    def from_trained(
        cls, network: TrainedModel, config: ModelConfig, router: tuple[RouterRecipe, Router] | None = None
    ) -> VQAPipeline:
        """Of a trained model, its recipe's configuration, and a router with its recipe."""
        store = network.data.store
        recipe, trained = router if router is not None else (None, None)
        return cls(
            network.model,
            config=config,
            tokenizer=store.tokenizer,
            answers=store.answers,
            shapes={m: s for m, s in store.shapes.items() if m in config.modalities},
            router=trained,
            router_config=None if recipe is None else recipe.router,
        )

    def __call__(
        self, question: str, *, image: Any = None, audio: Any = None, video: Any = None, top_k: int = 3
    ) -> Answer:
        """The answer to a question.

        image: a file, a PIL image, or an array [3, H, W] uint8. audio: a file (WAV, FLAC), or samples [S] at 16 kHz.
        video: an animation (GIF, PNG, WebP), or frames [F, 3, H, W] uint8. top_k: how many answers to name.
        Raises ValueError naming the input for what cannot be read, or what this model has no encoder for.
        """
        inputs = {Modality.TEXT: torch.tensor(encode_text(self.tokenizer, question, name="question"))}
        for modality, given in ((Modality.IMAGE, image), (Modality.AUDIO, audio), (Modality.VIDEO, video)):
            if given is None:
                continue
            if modality not in self.config.modalities:
                names = [m.value for m in self.config.modalities]
                raise ValueError(f"{modality}: this model has no encoder for it: it has {names}")
            inputs[modality] = self._prepare(modality, given)
        batch = collate([Sample("question", "answer", "", inputs)])
        probabilities, levels = self._answer(batch)
        first, *others = probabilities.topk(min(top_k, len(self.answers))).indices.tolist()
        ran = {m.value: ComputeLevel(levels[m.column]).name.lower() for m in Modality if m in inputs}
        return Answer(
            self.answers[first],
            float(probabilities[first]),
            {self.answers[i]: float(probabilities[i]) for i in others},
            ran,
        )

    @torch.inference_mode()
    def _answer(self, batch: OmniBatch) -> tuple[torch.Tensor, list[int]]:
        route, questions = self.model.space.dense(batch.present), None
        if self.router is not None:
            route, questions = self.model.select_route(self.router, batch)
        logits = self.model(batch, heads=["answer"], route=route, precomputed=questions).head_outputs["answer"]
        return logits[0].softmax(0), route.encoder_levels[0].tolist()

    def _prepare(self, modality: Modality, given: Any) -> torch.Tensor:
        is_file = isinstance(given, (str, Path))
        if modality is Modality.AUDIO:
            return torch.from_numpy(read_audio(Path(given)) if is_file else prepare_audio(given, 16_000, name="audio"))
        shape = self.shapes[modality]
        if modality is Modality.IMAGE and is_file:
            return torch.from_numpy(read_image(Path(given), size=shape[1], exact=False).copy())
        if modality is Modality.IMAGE and isinstance(given, Image.Image):
            resized = given.convert("RGB").resize((shape[2], shape[1]), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).copy())
        if is_file:
            found, frames = read_upload(
                str(given), Path(given).read_bytes(), {Modality.IMAGE: (3, 1, 1), **self.shapes}
            )
            if found is not Modality.VIDEO:
                raise UploadError(f"{given}: {found}: expected an animation (GIF, PNG or WebP)")
            return frames
        values = torch.as_tensor(np.array(given))  # a copy
        if values.dtype != torch.uint8 or values.shape[-3:] != shape[-3:] or values.ndim != len(shape):
            raise ValueError(f"{modality} must be uint8 of shape {[*shape]}: got {values.dtype}, {[*values.shape]}")
        return values

    def save_pretrained(self, folder: Path | str, *, card: str = "") -> Path:
        """Writes config.json, weights as safetensors, the tokenizer, and the model card (see `model_card`)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "version": VERSION,
            "model": to_jsonable(self.config),
            "vocab_size": self.tokenizer.get_vocab_size(),
            "answers": self.answers,
            "shapes": {m.value: [*shape] for m, shape in self.shapes.items()},
            "router": None if self.router_config is None else to_jsonable(self.router_config),
            "components": component_versions(self.config),
        }
        safetensors.torch.save_model(self.model, str(folder / WEIGHTS))
        if self.router is not None:
            safetensors.torch.save_model(self.router, str(folder / ROUTER))
        self.tokenizer.save(str(folder / TOKENIZER))
        (folder / CARD).write_text(card or model_card(folder.name, self.config, []), encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        return folder

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> VQAPipeline:
        """What `save_pretrained` wrote. Raises PretrainedError for a folder that lacks a file, is of another version or
        needs registered parts whose code is another one; ValueError for such that are not registered."""
        folder = Path(folder)
        try:
            saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if saved["version"] != VERSION:
                raise PretrainedError(f"{folder / CONFIG}: version {saved['version']}: expected {VERSION}")
            config = parse_config(ModelConfig, saved["model"], where=str(folder / CONFIG))
            if component_versions(config) != saved["components"]:
                raise PretrainedError(
                    f"{folder}: its own parts were of version {saved['components']}: registered are "
                    f"{component_versions(config)}"
                )
            model = build_model(config, vocab_size=saved["vocab_size"], answers=len(saved["answers"]))
            safetensors.torch.load_model(model, str(folder / WEIGHTS))
            router, router_config = None, None
            if saved["router"] is not None:
                router_config = parse_config(RouterConfig, saved["router"], where=str(folder / CONFIG))
                router = build_router(router_config, model.space, dim=config.dim)
                safetensors.torch.load_model(router, str(folder / ROUTER))
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except (FileNotFoundError, KeyError, json.JSONDecodeError) as error:
            raise PretrainedError(f"{folder}: not a saved model ({error!r})") from error
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise PretrainedError(f"{folder}: weights that do not fit ({error})") from error
        return cls(
            model,
            config=config,
            tokenizer=tokenizer,
            answers=saved["answers"],
            shapes={Modality(m): tuple(shape) for m, shape in saved["shapes"].items()},
            router=router,
            router_config=router_config,
        )


def model_card(name: str, config: ModelConfig, metrics: Sequence[Mapping[str, Any]], *, source: str = "") -> str:
    """A model card with a `model-index`, as the Hugging Face Hub reads it.

    metrics: as in metrics.json, of which those that belong to baselines stand in the table alone. source: where they
    were recorded.
    """
    results = [
        {"type": m["name"].rsplit("/")[-1], "name": m["name"], "value": m["value"]} for m in metrics if not m["control"]
    ]
    task = {"type": "visual-question-answering", "name": "questions about " + ", ".join(config.modalities[1:])}
    header: dict[str, Any] = {"library_name": "omni-lab", "tags": ["omni-modal", "dynamic-modality-routing"]}
    if results:
        data = {"name": name, "type": name}
        header["model-index"] = [{"name": name, "results": [{"task": task, "dataset": data, "metrics": results}]}]
    rows = "".join(f"| {m['name']}{' (baseline)' * m['control']} | {_format(m)} |\n" for m in metrics)
    table = f"\n| metric | value, 95 % interval |\n|---|---|\n{rows}\n" if rows else "\nNothing was measured.\n"
    where = f"Recorded in `{source}`.\n" if source else ""
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {name}\n\nAnswers {task['name']}, from a fixed list "
        f"of answers. Made with omni-lab.\n\n```python\nfrom omni_lab.training import VQAPipeline\n\n"
        f'answer = VQAPipeline.from_pretrained("{name}")("what is it?", image="picture.png")\n```\n{table}{where}'
    )


def _format(metric: Mapping[str, Any]) -> str:
    interval = metric.get("interval")
    return f"{metric['value']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
