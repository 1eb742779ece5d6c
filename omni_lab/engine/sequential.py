"""Decisions of a sequential router: look, decide, look again, stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from omni_lab.engine.decisions import Decision, TokenTable
from omni_lab.engine.inputs import Media, chunks, distinct, scatter_rows
from omni_lab.engine.sessions import ModelSessions, Session


def decide_sequentially(
    pool: ModelSessions, arrays: Mapping[str, Media], present: np.ndarray, penalty: float | None
) -> Decision:
    """What a sequential router decides, and the tokens of all that it ran.

    The cheapest levels run first, and one action at a time if that keeps the workers busy: samples wait for others that
    will want the same. present: [B, M].
    """
    return _Trajectories(pool, arrays, present, penalty).run()


class _Trajectories:
    def __init__(
        self, pool: ModelSessions, arrays: Mapping[str, Media], present: np.ndarray, penalty: float | None
    ) -> None:
        model, step, size = pool.library.model, pool.library.parts["router.step"], len(present)
        self.pool, self.arrays, self.present = pool, arrays, present
        self.columns: Mapping[str, int] = model["columns"]
        self.actions = [(m, int(level)) for m, level in model["actions"]]
        self.state = {spec.name: np.zeros((size, *spec.shape[1:]), np.float32) for spec in step.inputs}
        self.state["present"][:] = present
        if penalty is not None:
            self.state["penalty"][:] = penalty
        self.levels = np.zeros((size, len(self.columns)), int)
        self.paths = np.zeros((size, model["depth"], len(model["router_paths"])), bool)
        self.waiting_for = np.zeros(size, int)  # 1 + index of the action, 0: none
        self.tokens: TokenTable = {}

    def run(self) -> Decision:
        model, unasked = self.pool.library.model, np.ones(len(self.present), bool)
        for question in model["question_order"]:
            samples = np.flatnonzero(unasked & self.present[:, self.columns[question]])
            if len(samples):
                unasked[samples] = False
                self._first_step(question, max(map(int, model["encoders"][question])), samples)
        while self.waiting_for.any():
            queues = np.bincount(self.waiting_for, minlength=1 + len(self.actions))[1:]
            order = sorted(np.flatnonzero(queues).tolist(), key=lambda k: (self.actions[k][1], -queues[k]))
            tasks: list[tuple[int, np.ndarray]] = []
            while order and len(tasks) < self.pool.workers:
                k = order.pop(0)
                tasks += [(k, part) for part in chunks(np.flatnonzero(self.waiting_for == k + 1), self.pool.workers)]
            found = self.pool.map(lambda task: self._step(*task), tasks)
            for (k, samples), (used, outputs) in zip(tasks, found, strict=True):
                modality, level = self.actions[k]
                self.state[f"summary.{modality}"][samples] = outputs["summary"]
                self._note((modality, level, False), used[modality], samples, outputs)
        return Decision(self.levels, self.paths, self.tokens)

    def _first_step(self, question: str, level: int, samples: np.ndarray) -> None:
        parts = self.pool.library.parts
        media = tuple(
            m for m in self.arrays if f"router.glance.{m}" in parts and self.present[samples, self.columns[m]].any()
        )
        column = self.columns[question]
        self.state["asked"][samples, column] = self.state["ran"][samples, column, level] = 1
        session, inputs = self.pool.first_step(question, media), dict.fromkeys((question, *media))
        tasks = chunks(samples, self.pool.workers)
        found = self.pool.map(lambda part: self._call(session, part, inputs), tasks)
        for part, (used, outputs) in zip(tasks, found, strict=True):
            self.state["question"][part] = self.state[f"summary.{question}"][part] = outputs["question"]
            for m in media:
                self.state[f"glance.{m}"][part] = outputs[f"glance.{m}"]
            self._note((question, level, True), used[question], part, outputs)

    def _step(self, k: int, samples: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        modality, level = self.actions[k]
        self.state["ran"][samples, self.columns[modality], level] = 1
        return self._call(self.pool.step(modality, level), samples, [modality])

    def _call(
        self, session: Session, samples: np.ndarray, media: Sequence[str] | Mapping[str, None]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The distinct inputs that were used of each medium, and the outputs."""
        feed, used = {name: x[samples] for name, x in self.state.items() if name in session.inputs}, {}
        for m in media:
            values, mask, entry = self.arrays[m]
            used[m], index = distinct(np.maximum(entry[samples], 0))  # of an absent one anything: it counts as zero
            feed |= {f"{m}.values": values[used[m]], f"{m}.mask": mask[used[m]], f"{m}.entry": index}
        return used, session(feed)

    def _note(
        self, key: tuple[str, int, bool], used: np.ndarray, samples: np.ndarray, outputs: Mapping[str, np.ndarray]
    ) -> None:
        """Keeps what a call decided for these samples, and the tokens that it found."""
        self.levels[samples], self.paths[samples] = outputs["levels"], outputs["paths"]
        self.waiting_for[samples] = outputs["action"]
        found = outputs["tokens"], outputs["token_mask"]
        if key not in self.tokens:
            self.tokens[key] = scatter_rows(len(self.arrays[key[0]].values), used, *found)
        else:
            for table, rows in zip(self.tokens[key], found, strict=True):
                table[used] = rows
