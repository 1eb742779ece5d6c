"""Every outcome that a frozen network can have: its answers to each question under each combination of encoder levels.

Policies that only choose such a combination are then evaluated, and baselines trained, without running the network.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality, OmniBatch, Tokens
from omni_lab.data.collate import collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.encoders.levels import at_levels
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.evaluation.policies import EVAL_BATCH_SIZE, PolicyOutcome
from omni_lab.model import OmniModel
from omni_lab.rollout import initial_state
from omni_lab.routing.baselines import StaticRoute
from omni_lab.routing.route import Route, RouteSpace
from omni_lab.utils.progress import track_progress


def level_combinations(space: RouteSpace) -> list[StaticRoute]:
    """Every combination of encoder levels of the modalities beside text, the cheapest first: those that use paths with
    all paths open, then the same with none."""
    media = [m for m in space.modalities if m is not Modality.TEXT]
    found = []
    for open_, chosen in itertools.product((True, False), itertools.product(*map(space.allowed_levels, media))):
        levels = torch.full((NUM_MODALITIES,), int(ComputeLevel.SKIP))
        levels[Modality.TEXT.column] = int(ComputeLevel.FULL)
        levels[[m.column for m in media]] = torch.tensor([int(level) for level in chosen])
        paths = torch.full((space.depth, len(space.paths)), open_)
        if open_ or any(chosen):  # without any medium both are the same
            found.append(StaticRoute(levels, paths))
    return found


@dataclass(frozen=True)
class OutcomeTable:
    """Of n questions under R static routes, `plans`.

    logits: of the answers. scores: of the labels.
    encoder_flops: of the encoders. fusion_flops: of paths, blocks and the answer head. cross_modal_flops: of paths.
    question, glances: what a router may read beforehand; glances are raw.
    summaries: mean tokens of each modality at each level.
    """

    plans: list[StaticRoute]
    logits: Float[Tensor, "n r a"]
    scores: Float[Tensor, "n a"]
    encoder_flops: Float[Tensor, "n r"]
    fusion_flops: Float[Tensor, "n r"]
    cross_modal_flops: Float[Tensor, "n r"]
    dense_flops: Float[Tensor, " n"]
    dense_cross_modal_flops: Float[Tensor, " n"]
    question: Float[Tensor, "n d"]
    glances: Float[Tensor, "n m g"]
    summaries: Float[Tensor, "n m l d"]
    present: Bool[Tensor, "n m"]
    question_mask: Bool[Tensor, "n m"]
    families: np.ndarray
    scenes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def correct(self) -> Float[Tensor, "n r"]:
        """The score of the likeliest answer, 1 for a right one."""
        return self.scores.gather(1, self.logits.argmax(2)).double()

    @cached_property
    def answer_prob(self) -> Float[Tensor, "n r"]:
        """The probability of the right answer."""
        return (self.logits.softmax(2) * self.scores[:, None]).sum(2)

    @cached_property
    def confidence(self) -> Float[Tensor, "n r"]:
        """The largest probability."""
        return self.logits.softmax(2).amax(2)

    @cached_property
    def cost(self) -> Float[Tensor, "n r"]:
        """FLOPs as a fraction of the dense ones."""
        return (self.encoder_flops + self.fusion_flops) / self.dense_flops[:, None]

    def plan_index(self, levels: Int[Tensor, " m"], *, paths: bool = True) -> int:
        """Of the plan with these levels, and all paths or none."""
        for index, plan in enumerate(self.plans):
            if torch.equal(plan.encoder_levels, levels) and bool(plan.path_mask.all()) == paths:
                return index
        raise ValueError(f"levels must be those of a plan: got {levels.tolist()}")

    def select(self, questions: np.ndarray) -> OutcomeTable:
        """Of some of the questions."""
        rows = torch.as_tensor(questions)
        names = [name for name in self.__dataclass_fields__ if isinstance(getattr(self, name), Tensor)]
        parts: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        return replace(self, **parts, families=self.families[questions], scenes=self.scenes[questions])

    def outcome(self, choice: Int[Tensor, " n"], *, extra_flops: Tensor | float = 0.0) -> PolicyOutcome:
        """Of one plan per question. extra_flops: of the policy, or of what it ran before."""
        rows = torch.arange(len(self))
        levels = torch.stack([plan.encoder_levels for plan in self.plans])[choice]
        nothing = np.zeros((len(self), NUM_MODALITIES), dtype=bool)
        return PolicyOutcome(
            correct=self.correct[rows, choice].numpy(),
            flops=(self.encoder_flops[rows, choice] + self.fusion_flops[rows, choice] + extra_flops).numpy(),
            cross_modal_flops=self.cross_modal_flops[rows, choice].numpy(),
            dense_flops=self.dense_flops.numpy(),
            dense_cross_modal_flops=self.dense_cross_modal_flops.numpy(),
            encoded=(levels > ComputeLevel.SKIP).numpy() & self.present.numpy(),
            required=nothing,
            question_mask=self.question_mask.numpy(),
        )


@torch.inference_mode()
def build_outcome_table(
    model: OmniModel, dataset: VQADataset, *, questions: np.ndarray | None = None, name: str | None = "outcomes"
) -> OutcomeTable:
    """Encodes every medium once per level, and answers under all `level_combinations`.

    dataset: with cached latents and glances. questions: indices; default all. name: of a progress bar.
    """
    space, costs, plans = model.space, build_cost_model(model), level_combinations(model.space)
    chosen = np.arange(len(dataset)) if questions is None else np.asarray(questions)
    columns: dict[str, list[Tensor]] = {}
    chunks = [chosen[start : start + EVAL_BATCH_SIZE] for start in range(0, len(chosen), EVAL_BATCH_SIZE)]
    for chunk in chunks if name is None else track_progress(chunks, name, total=len(chunks), unit="batch"):
        batch = collate([dataset[int(i)] for i in chunk])
        for key, value in _outcomes(model, batch, plans).items():
            columns.setdefault(key, []).append(value)
        tokens = costs.count_tokens(batch)
        parts = [costs(space, plan.route(space, batch.present), tokens) for plan in plans]
        dense = costs(space, space.dense(batch.present), tokens)
        flops = {
            "encoder_flops": torch.stack([part.encoders for part in parts], 1),
            "fusion_flops": torch.stack([part.total - part.encoders for part in parts], 1),
            "cross_modal_flops": torch.stack([part.cross_modal for part in parts], 1),
            "dense_flops": dense.total,
            "dense_cross_modal_flops": dense.cross_modal,
        }
        for key, value in flops.items():
            columns.setdefault(key, []).append(value)
    joined = {key: torch.cat(values) for key, values in columns.items()}
    return OutcomeTable(
        plans=plans, **joined, families=np.array(dataset.families)[chosen], scenes=dataset.scenes[chosen]
    )


def _outcomes(model: OmniModel, batch: OmniBatch, plans: list[StaticRoute]) -> dict[str, Tensor]:
    """Of one batch."""
    space, present = model.space, batch.present
    questions = model.encode_questions(batch)
    state = initial_state(model, batch, questions, batch.targets["glances"])
    summaries = torch.zeros(len(batch), NUM_MODALITIES, len(ComputeLevel), state.question.shape[1])
    encoded: dict[Modality, tuple[Tokens, Tensor]] = {}
    for modality, inputs in batch.inputs.items():
        here = inputs.entry_index >= 0
        tokens, first = encoded[modality] = model.encode_levels(modality, inputs)
        means = tokens.mean_pool()
        for level in space.allowed_levels(modality)[1:]:
            summaries[here, modality.column, level] = means[first[level] + inputs.entry_index[here]]
    logits = []
    for plan in plans:
        route: Route = plan.route(space, present)
        streams = at_levels(batch, encoded, route.encoder_levels)
        logits.append(model.fuse(streams, heads=["answer"], route=route).head_outputs["answer"].float())
    return {
        "logits": torch.stack(logits, dim=1),
        "scores": batch.targets["answer_scores"],
        "question": state.question,
        "glances": batch.targets["glances"],
        "summaries": summaries,
        "present": present,
        "question_mask": space.question_mask(present),
    }
