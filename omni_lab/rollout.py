"""A model answers under a sequential router: look, decide, look again, stop, and combine what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni_lab.batch import ComputeLevel, Modality, OmniBatch, Tokens
from omni_lab.model import HeadRequests, OmniModel, OmniOutput, stack_entries
from omni_lab.routing.route import RouteError
from omni_lab.routing.router import pool_questions
from omni_lab.routing.sequential import RouterState, SequentialRouter, Trajectory, check_actions


class BatchEncoders:
    """Runs encoders for some samples of a batch at a time, and keeps their tokens. An entry that several samples share
    runs once per level."""

    def __init__(self, model: OmniModel, batch: OmniBatch, questions: dict[Modality, Tokens]) -> None:
        self.model, self.batch = model, batch
        self._parts: dict[Modality, list[Tokens]] = {m: [replace(t, entry_index=None)] for m, t in questions.items()}
        unused = torch.full((len(batch),), -1, device=batch.present.device)
        self._entries = {m: questions[m].entry_index if m in questions else unused for m in batch.inputs}
        self._means = {m: replace(t, entry_index=None).mean_pool() for m, t in questions.items()}
        self._known: dict[tuple[Modality, ComputeLevel], Int[Tensor, " u"]] = {}  # where the tokens of an entry are

    def __call__(self, samples: Int[Tensor, " p"], modality: Modality, level: ComputeLevel) -> Float[Tensor, "p d"]:
        """Raises RouteError for samples that lack the modality."""
        inputs = self.batch.inputs.get(modality)
        entries = None if inputs is None else inputs.entry_index[samples]
        if inputs is None or entries is None or bool((entries < 0).any()):
            missing = samples[0] if entries is None else samples[entries < 0][0]
            raise RouteError(f"sample {self.batch.ids[int(missing)]!r} has no {modality} to encode")
        parts = self._parts.setdefault(modality, [])
        nowhere = torch.full((len(inputs.values),), -1, device=entries.device)
        known = self._known.setdefault((modality, level), nowhere)
        new = entries[known[entries] < 0].unique()
        if len(new):
            known[new] = sum(map(len, parts)) + torch.arange(len(new), device=new.device)
            parts.append(self.model.encode_entries(level, modality, inputs, new))
            means = parts[-1].mean_pool()
            self._means[modality] = torch.cat([self._means[modality], means]) if modality in self._means else means
        index = self._entries[modality]
        assert index is not None
        self._entries[modality] = index.index_copy(0, samples, known[entries])
        return self._means[modality][known[entries]]

    def tokens(self) -> dict[Modality, Tokens]:
        """Of every modality that ran, from the last level that ran for each sample."""
        return {m: replace(stack_entries(p), entry_index=self._entries[m]) for m, p in self._parts.items() if p}


@torch.no_grad()
def answer_sequentially(
    model: OmniModel,
    router: SequentialRouter,
    batch: OmniBatch,
    *,
    penalty: float | None = None,
    heads: HeadRequests = ("answer",),
) -> tuple[OmniOutput, Trajectory]:
    """The most likely trajectory of each sample, run for real, and the heads on what it found.

    Raises ValueError for a router of another action space, or a penalty that it does not take.
    """
    check_actions(router.actions, model.space)
    questions = model.encode_questions(batch)
    raw = batch.targets["glances"] if "glances" in batch.targets else router.glance.raw(batch)
    state = initial_state(model, batch, questions, router.glance(raw, batch.present))
    encoders = BatchEncoders(model, batch, questions)
    condition = None if penalty is None else torch.full((len(batch),), penalty, device=state.question.device)
    trajectory, _ = router.run(state, encoders, penalty=condition, lockstep=False)
    requests: Any = heads
    return model.fuse(encoders.tokens(), heads=requests, route=trajectory.route), trajectory


def initial_state(
    model: OmniModel, batch: OmniBatch, questions: dict[Modality, Tokens], glances: Float[Tensor, "b m g"]
) -> RouterState:
    """Before anything but the questions was encoded."""
    question_mask = model.space.question_mask(batch.present)
    pooled = pool_questions(questions, question_mask)
    width = next(iter(pooled.values())).shape[1]
    question = torch.zeros(len(batch), width, device=batch.present.device)
    for modality, means in pooled.items():
        question = torch.where(question_mask[:, modality.column, None], means, question)
    return RouterState.initial(question, batch.present, question_mask, glances)
