"""Models that are ready to answer: exported ones by ONNX Runtime, in several versions, replaced without a pause."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from omni_lab.batch import Modality
from omni_lab.engine.decisions import Decision
from omni_lab.engine.flops import count_tokens, dense_route, route_flops
from omni_lab.engine.inputs import as_arrays, load_tokenizer, single_medium, single_text
from omni_lab.engine.library import TOKENIZER
from omni_lab.engine.route_graph import RouteSignature
from omni_lab.engine.runtime import ExportedOmniModel
from omni_lab.engine.stacking import Sample, select_decision, stack_decisions, stack_samples
from omni_lab.utils.lookup import lookup

log = logging.getLogger(__name__)


class UnknownModelError(LookupError):
    """No model of that name, or no such version of it."""


class RoutedAnswer(NamedTuple):
    """An answer, and what it took.

    top: the likeliest answers with their probabilities, the best first.
    levels: of each modality that was given, the level at which its encoder ran, 0 where it was skipped.
    flops_saved: fraction of the dense FLOPs; None where the model's costs are not known.
    """

    text: str
    top: Sequence[tuple[str, float]]
    route: RouteSignature
    levels: Mapping[str, int]
    flops_saved: float | None

    @property
    def confidence(self) -> float:
        return self.top[0][1]


class ServedModel:
    """One version of an exported model. Its methods may be called by several threads.

    name, version: as clients ask for it. budget: fraction of the dense cost, for routers that take one.
    """

    def __init__(
        self, model: ExportedOmniModel, *, name: str, version: int = 1, budget: float | None = None, source: str = ""
    ) -> None:
        self.model, self.name, self.version, self.budget, self.source = model, name, version, budget, source
        self.description: Mapping[str, Any] = model.library.model
        self.loaded_at = time.time()

    @classmethod
    def from_folder(cls, folder: Path, *, name: str, version: int = 1, budget: float | None = None) -> ServedModel:
        """What `omni-lab export` wrote. Raises ArtifactError for broken files."""
        return cls(ExportedOmniModel.from_folder(folder), name=name, version=version, budget=budget, source=str(folder))

    @property
    def modalities(self) -> Sequence[str]:
        return self.model.modalities

    @property
    def shapes(self) -> dict[Modality, tuple[int, ...]]:
        """Of images and videos: [3, H, W] and [F, 3, h, w]."""
        return {Modality(m): tuple(shape) for m, shape in self.description["shapes"].items() if shape}

    def sample(self, question: str = "", **media: np.ndarray) -> Sample:
        """A question and its media as inputs; see `ExportedOmniModel.ask`. Raises ValueError for a modality that the
        model does not have, for no question at all, and for one that has no known word."""
        inputs = {}
        if question.strip():
            ids = load_tokenizer(self.model.library.folder / TOKENIZER).encode(question).ids
            if not ids:
                raise ValueError("the question has no word that this model could read")
            inputs["text"] = single_text(ids)
        for name, values in media.items():
            inputs[name] = single_medium(name, values)
        unknown = [name for name in inputs if name not in self.modalities]
        if unknown:
            raise ValueError(f"this model takes {', '.join(self.modalities)}: it cannot use {unknown[0]}")
        if "text" not in inputs and "audio" not in inputs:
            raise ValueError("expected a question, written or spoken: got neither")
        return inputs

    def decide(self, samples: Sequence[Sample]) -> list[Decision]:
        """What runs for each sample, and the tokens that were needed to decide."""
        stacked = as_arrays(stack_samples(samples), self.description["samples_per_token"])
        if self.model.routed:
            decision = self.model.select_route(stacked, budget=self.budget)
        else:
            decision = self.model.dense(stacked)
        return [select_decision(decision, stacked, i) for i in range(len(samples))]

    def answer(self, samples: Sequence[Sample], decisions: Sequence[Decision], *, top: int = 3) -> list[RoutedAnswer]:
        """The answers, from the routes that were decided."""
        stacked = as_arrays(stack_samples(samples), self.description["samples_per_token"])
        logits = self.model.run(stacked, stack_decisions(decisions, stacked)).astype(np.float64)
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        answers = []
        for i, decision in enumerate(decisions):
            best = np.argsort(-probabilities[i], kind="stable")[:top]
            pairs = [(self.model.library.answers[k], float(probabilities[i, k])) for k in best]
            route = self.model.signature(decision.levels[0], decision.paths[0])
            levels = {m: dict(route.levels).get(m, 0) for m in samples[i]}
            saved = None
            if self.description.get("flops"):
                tokens = count_tokens(self.description, stacked, i)
                dense = route_flops(self.description, dense_route(self.description, tokens), tokens)
                saved = 1 - route_flops(self.description, route, tokens) / dense
            answers.append(RoutedAnswer(pairs[0][0], pairs, route, levels, saved))
        return answers

    def warm_up(self) -> float:
        """Answers a question about blank media of every modality, so that the first client does not wait; seconds."""
        start = time.perf_counter()
        media: dict[str, np.ndarray] = {m.value: np.zeros(shape, np.uint8) for m, shape in self.shapes.items()}
        if "audio" in self.modalities:
            media["audio"] = np.zeros(16_000, np.float32)
        question = "what is it?" if "text" in self.modalities else ""
        sample = self.sample(question, **{m: x for m, x in media.items() if m in self.modalities})
        self.answer([sample], self.decide([sample]))
        return time.perf_counter() - start

    def release(self, modality: str) -> int:
        """Frees what only this modality needs, until it comes again; returns the number of graphs."""
        return self.model.pool.release_modality(modality)

    def close(self) -> None:
        self.model.pool.close()


class ModelRepository:
    """Models by name and version. The newest version answers whoever asks for none."""

    def __init__(self) -> None:
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._lock = threading.Lock()

    def add(self, model: ServedModel) -> None:
        """Makes a model available, warm. One of the same name and version is replaced: batches that run finish with
        the old one, requests that wait go to the new one."""
        seconds = model.warm_up()
        with self._lock:
            self._models.setdefault(model.name, {})[model.version] = model
        log.info("%s version %d is ready after %.2f s", model.name, model.version, seconds)

    def remove(self, name: str, version: int) -> None:
        """Raises UnknownModelError for one that is not there."""
        with self._lock:
            self._find(name, version)
            del self._models[name][version]
            if not self._models[name]:
                del self._models[name]

    def get(self, name: str = "", version: int | None = None) -> ServedModel:
        """The model of that name, its newest version by default; without a name, the first that was added. Raises
        UnknownModelError naming the nearest."""
        with self._lock:
            return self._find(name, version)

    def list(self) -> list[ServedModel]:
        with self._lock:
            return [model for versions in self._models.values() for _, model in sorted(versions.items())]

    def _find(self, name: str, version: int | None) -> ServedModel:
        if not self._models:
            raise UnknownModelError("no model is loaded")
        versions = lookup(name or next(iter(self._models)), self._models, "model", error=UnknownModelError)
        if version is not None and version not in versions:
            raise UnknownModelError(f"model {name!r} has no version {version}: it has {sorted(versions)}")
        return versions[max(versions) if version is None else version]
