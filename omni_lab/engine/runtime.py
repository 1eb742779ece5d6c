"""An exported model, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omni_lab.engine.decisions import Answer, Decision, TokenTable, choose_penalty
from omni_lab.engine.inputs import (
    Media,
    MediaInput,
    as_arrays,
    chunks,
    distinct,
    load_tokenizer,
    scatter_rows,
    single_medium,
    single_text,
)
from omni_lab.engine.library import TOKENIZER, GraphLibrary
from omni_lab.engine.route_graph import (
    ANSWER,
    RouteSignature,
    gate_name,
    may_run,
)
from omni_lab.engine.sequential import decide_sequentially
from omni_lab.engine.sessions import ModelSessions, Session

Inputs = Mapping[str, MediaInput]  # by modality: those of an `OmniBatch`, say


class ExportedOmniModel:
    """An exported model.

    library: what was exported.
    background: answer under a route without a graph by that of all routes, while its own is built; else build it first.
    whole: answer single questions by one graph that holds the encoders too: one or two calls fewer, but three megabytes
        more for each route, and five times as long to build. It was not faster where it was measured.
    ahead: build what answers need now: encoders, routers, and the routes that are frequent on validation.
    options: see `SessionPool`.
    """

    def __init__(
        self,
        library: GraphLibrary,
        *,
        background: bool = True,
        whole: bool = False,
        ahead: bool = True,
        **options: Any,
    ) -> None:
        self.library, self.pool = library, ModelSessions(library, **options)
        self.background, self.whole = background, whole
        model = library.model
        self.modalities: Sequence[str] = model["modalities"]
        self.columns: Mapping[str, int] = model["columns"]
        self._paths = {(layer, q, k) for layer, q, k in model["paths"]}
        self._path_columns = [[self.columns[q], self.columns[k]] for q, k in model["router_paths"]]
        self.routed = any(name.startswith("router.") for name in library.parts)
        if ahead:
            self.pool.build_ahead(routed=self.routed)
            for stored in library.manifest["routes"]:
                self.prepare(RouteSignature.from_json(stored))

    @classmethod
    def from_folder(cls, folder: str | Path, *, source: str | None = None, **options: Any) -> ExportedOmniModel:
        """What `omni-lab export` wrote. source: digest of the weights that it must be made from; None: any.

        Raises ArtifactError for broken files and other weights, ValueError for options that this machine lacks."""
        return cls(GraphLibrary(Path(folder), source=source), **options)

    def ask(
        self, question: str = "", *, budget: float | None = None, penalty: float | None = None, **media: np.ndarray
    ) -> Answer:
        """Answers one question. media: image [3, H, W] uint8, audio [S] float at 16 kHz, video [F, 3, h, w] uint8.

        budget, penalty: see `select_route`.
        Raises ValueError for no input at all, a modality that the model does not have, or another number of axes.
        """
        inputs: dict[str, MediaInput] = {}
        if question:
            inputs["text"] = single_text(load_tokenizer(self.library.folder / TOKENIZER).encode(question).ids)
        for name, values in media.items():
            inputs[name] = single_medium(name, np.asarray(values))
        if not inputs:
            raise ValueError("ask needs a question, or a medium that holds one: got neither")
        decision = self.select_route(inputs, budget=budget, penalty=penalty)
        logits = self.run(inputs, decision)[0]
        shifted = np.exp(logits - logits.max())
        best = int(logits.argmax())
        route = self.signature(decision.levels[0], decision.paths[0])
        return Answer(self.library.answers[best], float(shifted[best] / shifted.sum()), logits, route)

    def answer(self, inputs: Inputs, *, budget: float | None = None, penalty: float | None = None) -> np.ndarray:
        """Logits [B, A] under the routes that the router selects. inputs: those of an `OmniBatch`, say."""
        arrays = self._arrays(inputs)
        return self.run(arrays, self.select_route(arrays, budget=budget, penalty=penalty))

    def select_route(self, inputs: Inputs, *, budget: float | None = None, penalty: float | None = None) -> Decision:
        """The router's most likely routes, and the tokens of what it looked at: of the questions, if it decides once.

        budget: mean fraction of the dense cost, for a penalty-conditioned router that decides once; ValueError where it
            cannot be met.
        penalty: of costs in place of a budget, for any penalty-conditioned router.
        """
        if not self.routed:
            raise ValueError("this model was exported without a router")
        arrays, chosen = self._arrays(inputs), choose_penalty(self.library, budget, penalty)
        present, question = self._present(arrays), {}
        if self.library.model["actions"]:
            return decide_sequentially(self.pool, arrays, present, chosen)
        size, model = len(present), self.library.model
        levels = np.zeros((size, len(self.columns)), int)
        paths = np.zeros((size, model["depth"], len(model["router_paths"])), bool)
        unasked = np.ones(size, bool)
        for name in model["question_order"]:
            samples = np.flatnonzero(unasked & present[:, self.columns[name]])
            if len(samples) == 0:
                continue
            unasked[samples] = False
            values, mask, entry = arrays[name]
            used, entry = distinct(entry[samples])
            feed = {f"{name}.values": values[used], f"{name}.mask": mask[used], f"{name}.entry": entry}
            feed["present"] = present[samples].astype(np.float32)
            if chosen is not None:
                feed["penalty"] = np.full(len(samples), chosen, np.float32)
            found = self.pool.decide(name)(feed)
            levels[samples], paths[samples] = found["levels"], found["paths"]
            key = (name, self._full_level(name), True)
            question[key] = scatter_rows(len(values), used, found["tokens"], found["token_mask"])
        return Decision(levels, paths, question)

    def dense(self, inputs: Inputs) -> Decision:
        """The routes that run everything."""
        present = self._present(self._arrays(inputs))
        full = np.array([self._full_level(m) for m in self.columns])
        queries, keys = np.array(self._path_columns).T
        runs = present[:, queries] & present[:, keys]
        return Decision(present * full, np.repeat(runs[:, None], self.library.model["depth"], 1), {})

    def run(self, inputs: Inputs, decision: Decision | None = None) -> np.ndarray:
        """Logits [B, A]. decision: what runs for which sample; None: everything.

        Samples of one route are answered together, and each distinct input is encoded once.
        """
        arrays = self._arrays(inputs)
        decision = self.dense(inputs) if decision is None else decision
        groups = self._groups(decision)
        tokens: TokenTable = {**decision.tokens}
        if len(groups) > 1 or not self.whole:
            self._encode_shared(arrays, groups, tokens)
        logits = np.zeros((len(decision.levels), len(self.library.answers)), np.float32)
        parts = 1 if self.whole else self.pool.workers
        tasks = [(signature, part) for signature, rows in groups.items() for part in chunks(rows, parts)]
        found = self.pool.map(lambda task: self._run_group(arrays, task[0], task[1], tokens), tasks)
        for (_, samples), answers in zip(tasks, found, strict=True):
            logits[samples] = answers
        return logits

    def run_part(self, name: str, *inputs: Any) -> list[np.ndarray]:
        """One part of the model alone, for measurements. Raises KeyError for a name that no part has."""
        session = self.pool.part(name)
        return [*session(dict(zip(session.inputs, map(np.asarray, inputs), strict=False))).values()]

    def prepare(self, signature: RouteSignature) -> Session:
        """Builds the graph of a route for single questions now."""
        keys = self._token_keys(signature)
        if self.whole:
            return self.pool.route(signature, tuple(m for m, (_, _, asked) in keys.items() if asked and self.routed))
        return self.pool.route(signature, tuple(keys))

    def signature(self, levels: np.ndarray, paths: np.ndarray) -> RouteSignature:
        """What one sample runs. levels: [M]. paths: [L, P], see `Decision`."""
        runs = tuple((m, int(levels[self.columns[m]])) for m in self.modalities if levels[self.columns[m]])
        opened = [(int(layer), *self.library.model["router_paths"][p]) for layer, p in np.argwhere(paths)]
        return RouteSignature(runs, tuple(path for path in opened if path in self._paths))

    def _run_group(
        self,
        arrays: Mapping[str, Media],
        signature: RouteSignature,
        samples: np.ndarray,
        tokens: TokenTable,
    ) -> np.ndarray:
        keys = self._token_keys(signature)
        given = tuple(m for m, key in keys.items() if key in tokens)
        session = self.pool.ready((signature, given))
        if session is None and not self.background:
            session = self.pool.route(signature, given)
        if session is None:
            self.pool.route_soon(signature, given)
            self._encode_shared(arrays, {signature: samples}, tokens)
            return self._run_gated(arrays, signature, samples, tokens)
        feed: dict[str, np.ndarray] = {}
        for m in keys:
            used, entry = distinct(arrays[m].entry_index[samples])
            names = ("tokens", "token_mask") if m in given else ("values", "mask")
            source = tokens[keys[m]] if m in given else arrays[m][:2]
            feed |= {f"{m}.{name}": array[used] for name, array in zip(names, source, strict=True)}
            feed[f"{m}.entry"] = entry
        return session(feed)[ANSWER]

    def _run_gated(
        self,
        arrays: Mapping[str, Media],
        signature: RouteSignature,
        samples: np.ndarray,
        tokens: TokenTable,
    ) -> np.ndarray:
        """The same from tokens, by the graph of all routes."""
        keys = self._token_keys(signature)
        question = next(m for m, (_, _, asked) in keys.items() if asked)
        feed: dict[str, np.ndarray] = {}
        one = np.ones((len(samples), 1), np.float32)
        for m in self.modalities:
            if not may_run(self.library, question, m):
                continue
            if m in keys:
                values, mask = tokens[keys[m]]
                entry = arrays[m].entry_index[samples]
            else:
                values, mask = np.zeros((1, 1, self.library.model["dim"]), np.float32), np.ones((1, 1), bool)
                entry = np.zeros(len(samples), np.int64)
            feed |= {f"{m}.tokens": values, f"{m}.token_mask": mask, f"{m}.entry": entry}
            feed[f"keep.{m}"] = one * (m in keys)
        for path in self._paths:
            feed[gate_name(path)] = one[:, None] * (path in signature.paths)
        return self.pool.gated(question)(feed)[ANSWER]

    def _encode_shared(
        self,
        arrays: Mapping[str, Media],
        groups: Mapping[RouteSignature, np.ndarray],
        tokens: TokenTable,
    ) -> None:
        """Adds the tokens that these groups need and that are not there."""
        needed: dict[tuple[str, int, bool], list[np.ndarray]] = {}
        for signature, samples in groups.items():
            for m, key in self._token_keys(signature).items():
                if key not in tokens:
                    needed.setdefault(key, []).append(arrays[m].entry_index[samples])
        used = {key: distinct(np.concatenate(entries))[0] for key, entries in needed.items()}
        tasks = [(key, part) for key, rows in used.items() for part in chunks(rows, self.pool.workers)]

        def encode(task: tuple[tuple[str, int, bool], np.ndarray]) -> dict[str, np.ndarray]:
            (m, level, _), rows = task
            feed = {f"{m}.values": arrays[m].values[rows], f"{m}.mask": arrays[m].mask[rows]}
            return self.pool.encoder(m, level)(feed)

        found = self.pool.map(encode, tasks)
        for key, rows in used.items():
            parts = [part for (k, _), part in zip(tasks, found, strict=True) if k == key]
            values, mask = (np.concatenate([part[name] for part in parts]) for name in ("tokens", "token_mask"))
            tokens[key] = scatter_rows(len(arrays[key[0]].values), rows, values, mask)

    def _token_keys(self, signature: RouteSignature) -> dict[str, tuple[str, int, bool]]:
        """Where the tokens of each modality of a route stand in a `TokenTable`."""
        levels = dict(signature.levels)
        question = next(m for m in self.library.model["question_order"] if m in levels)
        return {m: (m, level, m == question) for m, level in levels.items()}

    def _groups(self, decision: Decision) -> dict[RouteSignature, np.ndarray]:
        """The samples of each route."""
        samples: dict[RouteSignature, list[int]] = {}
        for i, (levels, paths) in enumerate(zip(decision.levels, decision.paths, strict=True)):
            samples.setdefault(self.signature(levels, paths), []).append(i)
        return {signature: np.array(rows) for signature, rows in samples.items()}

    def _arrays(self, inputs: Inputs) -> dict[str, Media]:
        return as_arrays(inputs, self.library.model["samples_per_token"])

    def _present(self, arrays: Mapping[str, Media]) -> np.ndarray:
        """[B, M], True where a sample has a modality."""
        size = len(next(iter(arrays.values())).entry_index)
        present = np.zeros((size, len(self.columns)), bool)
        for name, media in arrays.items():
            if name not in self.modalities:
                raise ValueError(f"this model has no encoder for {name}: it has {list(self.modalities)}")
            present[:, self.columns[name]] = media.entry_index >= 0
        return present

    def _full_level(self, modality: str) -> int:
        return max(map(int, self.library.model["encoders"].get(modality, {0: 0})))
