"""A router that looks, decides, looks again and stops: a policy over encoders whose state holds what they found.

At each step it runs one encoder at one level, or stops and opens cross-modal paths. With no step before the stop it is
the one-shot `Router` with glances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality
from omni_lab.routing.glance import WIDTH, Glance
from omni_lab.routing.route import Route, RouteSpace
from omni_lab.routing.router import (
    LEAST_PENALTY,
    MASKED_LOGIT,
    NO_PENALTY_INPUT,
    NUM_KNOTS,
    path_decisions,
    penalty_to_knots,
    sample_action,
)

NUM_LEVELS = len(ComputeLevel)
# Runs one encoder at one level for some samples of the batch [P], and returns their mean tokens [P, D].
Encode = Callable[[Tensor, Modality, ComputeLevel], Tensor]


@dataclass(frozen=True)
class RouterState:
    """What the router knows of each sample.

    question: mean of the question's tokens.
    glances: see `Glance`.
    ran: True for each level at which an encoder ran, the question's included.
    summaries: mean tokens of each modality, from the highest level that ran; zero where none did.
    """

    question: Float[Tensor, "b d"]
    present: Bool[Tensor, "b m"]
    question_mask: Bool[Tensor, "b m"]
    glances: Float[Tensor, "b m g"]
    ran: Bool[Tensor, "b m l"]
    summaries: Float[Tensor, "b m d"]

    @classmethod
    def initial(
        cls,
        question: Float[Tensor, "b d"],
        present: Bool[Tensor, "b m"],
        question_mask: Bool[Tensor, "b m"],
        glances: Tensor,
    ) -> RouterState:
        """Before the first step: the question alone has run."""
        ran = torch.zeros(*present.shape, NUM_LEVELS, dtype=torch.bool, device=present.device)
        ran[:, :, ComputeLevel.FULL] = question_mask
        summaries = question[:, None] * question_mask[:, :, None]
        return cls(question, present, question_mask, glances, ran, summaries)

    def __len__(self) -> int:
        return len(self.question)

    def select(self, samples: Int[Tensor, " p"]) -> RouterState:
        return RouterState(**{name: value[samples] for name, value in vars(self).items()})

    def repeat(self, times: int) -> RouterState:
        """The whole batch so many times, one after the other."""
        return RouterState(**{name: value.repeat(times, *[1] * (value.ndim - 1)) for name, value in vars(self).items()})

    @property
    def levels(self) -> Int[Tensor, "b m"]:
        """The highest level that ran."""
        order = torch.arange(NUM_LEVELS, device=self.ran.device)
        return (self.ran * order).amax(dim=2)

    def after(self, samples: Int[Tensor, " p"], modality: Modality, level: ComputeLevel, found: Tensor) -> RouterState:
        """With the summaries [P, D] that an encoder found in some of the samples."""
        ran, summaries = self.ran.clone(), self.summaries.clone()
        ran[samples, modality.column, level] = True
        summaries[samples, modality.column] = found.to(summaries.dtype)
        return replace(self, ran=ran, summaries=summaries)


class SequentialLogits(NamedTuple):
    """action_logits: of stopping, then of each of `SequentialRouter.actions`. answer_logits: the early head's."""

    action_logits: Float[Tensor, "b k"]
    path_logits: Float[Tensor, "b l p"]
    answer_logits: Float[Tensor, "b a"]


class Trajectory(NamedTuple):
    """What ran for each sample, and how it was decided.

    ran: True for each level at which an encoder ran. steps: decisions, the stop included.
    log_prob, entropy: summed over the decisions; entropy is that of the policy at each.
    confidence: the largest probability of the early head at the stop.
    """

    route: Route
    ran: Bool[Tensor, "b m l"]
    steps: Int[Tensor, " b"]
    log_prob: Float[Tensor, " b"]
    entropy: Float[Tensor, " b"]
    confidence: Float[Tensor, " b"]

    def to(self, device: torch.device | str) -> Trajectory:
        return self._replace(**{name: part.to(device) for name, part in self._asdict().items()})


class SequentialRouter(nn.Module):
    """The policy, and an early answer head on the summaries, whose posterior is part of the state.

    dim: width of the tokens. num_answers: of the early head.
    penalty_conditioned: also read the cost penalty, as `Router` does.
    """

    def __init__(
        self, space: RouteSpace, *, dim: int, num_answers: int, hidden_dim: int = 64, penalty_conditioned: bool = False
    ) -> None:
        super().__init__()
        self.space = space
        self.glance = Glance(space.modalities)
        self.penalty_conditioned = penalty_conditioned
        self.actions = encoder_actions(space)
        names = [m.value for m in space.modalities]
        self.early_proj = nn.ModuleDict({name: nn.Linear(dim, hidden_dim) for name in names})
        self.early_head = nn.Linear(hidden_dim, num_answers)
        self.question_proj = nn.Linear(dim, hidden_dim)
        self.summary_proj = nn.ModuleDict({name: nn.Linear(dim, hidden_dim) for name in names})
        self.facts_proj = nn.Linear(NUM_MODALITIES * (1 + NUM_LEVELS + WIDTH), hidden_dim)
        self.posterior_proj = nn.Linear(num_answers + 2, hidden_dim)
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.action_head = nn.Linear(hidden_dim, 1 + len(self.actions))
        self.path_head = nn.Linear(hidden_dim, space.depth * len(space.paths))
        if penalty_conditioned:
            self.penalty_gain = nn.Linear(NUM_KNOTS, hidden_dim, bias=False)
            nn.init.zeros_(self.penalty_gain.weight)
        for head in (self.action_head, self.path_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        nn.init.constant_(self.path_head.bias, 2.0)  # what was encoded is combined, until something else proves better

    @property
    def step_flops(self) -> float:
        """Of one decision, with the early head, for a sample of all modalities."""
        layers = [m for m in self.modules() if isinstance(m, nn.Linear)]
        return sum(2.0 * layer.in_features * layer.out_features for layer in layers)

    @property
    def early_flops(self) -> float:
        """Of the early head alone."""
        layers: list[Any] = [*self.early_proj.values(), self.early_head]
        return sum(2.0 * layer.in_features * layer.out_features for layer in layers)

    def early_answer(self, state: RouterState) -> Float[Tensor, "b a"]:
        """Logits of the early head, from the summaries alone."""
        return self.early_head(F.gelu(self.project_summaries(self.early_proj, state)))

    def project_summaries(self, layers: nn.ModuleDict, state: RouterState) -> Float[Tensor, "b h"]:
        """The sum of each modality's own projection of its normalised summary, of those that ran: one product."""
        columns = [m.column for m in self.space.modalities]
        ran = state.ran.any(2).float()[:, columns]
        summaries = F.layer_norm(state.summaries[:, columns], state.summaries.shape[2:]) * ran[:, :, None]
        own: list[Any] = [layers[m.value] for m in self.space.modalities]
        weight = torch.cat([layer.weight for layer in own], dim=1)  # [H, M * D]
        bias = torch.stack([layer.bias for layer in own])  # [M, H]
        return summaries.flatten(1) @ weight.T + (ran[:, :, None] * bias).sum(1)

    def forward(self, state: RouterState, penalty: Float[Tensor, " b"] | None = None) -> SequentialLogits:
        """Raises ValueError for a missing penalty if `penalty_conditioned`, else for a given one."""
        if (penalty is not None) != self.penalty_conditioned:
            raise ValueError(
                "this router is conditioned on a penalty: pass one" if penalty is None else NO_PENALTY_INPUT
            )
        answers = self.early_answer(state)
        probs = answers.detach().float().softmax(1)
        top = probs.topk(2, dim=1).values
        posterior = torch.cat([probs, top[:, :1], top[:, :1] - top[:, 1:]], dim=1)
        facts = torch.cat([state.present.float(), state.ran.flatten(1).float(), state.glances.flatten(1)], dim=1)
        x = self.question_proj(F.layer_norm(state.question, state.question.shape[1:]))
        x = x + self.facts_proj(facts) + self.posterior_proj(posterior)
        x = x + self.project_summaries(self.summary_proj, state)
        x = F.gelu(self.hidden(F.gelu(x)))
        if penalty is not None:
            x = x * (1 + self.penalty_gain(penalty_to_knots(penalty, LEAST_PENALTY)))
        path_logits = self.path_head(x).unflatten(1, (self.space.depth, len(self.space.paths)))
        action_logits = self.action_head(x).masked_fill(~self.legal_actions(state), MASKED_LOGIT)
        return SequentialLogits(action_logits, path_logits, answers)

    def legal_actions(self, state: RouterState) -> Bool[Tensor, "b k"]:
        """Stopping; an encoder of a modality that is present and not the question, above the levels it ran at."""
        levels, legal = state.levels, [torch.ones_like(state.present[:, 0])]
        for modality, level in self.actions:
            open_ = state.present[:, modality.column] & ~state.question_mask[:, modality.column]
            legal.append(open_ & (levels[:, modality.column] < level))
        return torch.stack(legal, dim=1)

    def run(
        self,
        state: RouterState,
        encode: Encode,
        *,
        penalty: Float[Tensor, " b"] | None = None,
        generator: torch.Generator | None = None,
        greedy: bool = True,
        lockstep: bool = True,
    ) -> tuple[Trajectory, RouterState]:
        """Decides until every sample has stopped. Samples that wait for the same action are encoded together; nothing
        else runs. Returns the trajectory and the last state.

        lockstep: every waiting sample is encoded before the next decision: few decisions, for an `encode` that looks
            up. Otherwise one action runs at a time, and samples wait for others that will want the same: few, large
            batches for encoders that run for real. The decisions are the same.
        """
        size, device, depth, paths = len(state), state.question.device, self.space.depth, len(self.space.paths)
        log_prob, entropy, confidence = (torch.zeros(size, device=device) for _ in range(3))
        steps = torch.zeros(size, dtype=torch.long, device=device)
        path_mask = torch.zeros(size, depth, paths, dtype=torch.bool, device=device)
        waiting_for = torch.zeros(size, dtype=torch.long, device=device)  # index of the action, 0: none
        deciding = torch.arange(size, device=device)
        queries, keys = self.space.path_columns
        while len(deciding):
            logits = self(state.select(deciding), None if penalty is None else penalty[deciding])
            chosen, log_p, h = choose(logits.action_logits, greedy, generator)
            steps[deciding] += 1
            log_prob, entropy = log_prob.index_add(0, deciding, log_p), entropy.index_add(0, deciding, h)
            stops = chosen == 0
            if stops.any():
                here = deciding[stops]
                path_logits, encoded = logits.path_logits[stops], state.levels[here] > ComputeLevel.SKIP
                uniform = torch.rand(path_logits.shape, generator=generator).to(device)
                path_mask[here] = path_logits > 0 if greedy else uniform < path_logits.sigmoid()
                log_p, h = path_decisions(path_logits, path_mask[here], encoded[:, queries] & encoded[:, keys])
                log_prob, entropy = log_prob.index_add(0, here, log_p), entropy.index_add(0, here, h)
                confidence[here] = logits.answer_logits[stops].detach().float().softmax(1).amax(1)
            waiting_for[deciding] = chosen
            queues = torch.bincount(waiting_for, minlength=1 + len(self.actions)).tolist()
            wanted = [k for k in range(1, len(queues)) if queues[k]]
            if not lockstep and wanted:  # the cheapest level first: after it many will want the same
                wanted = [min(wanted, key=lambda k: (self.actions[k - 1][1], -queues[k]))]
            served = []
            for k in wanted:
                served.append(samples := (waiting_for == k).nonzero().squeeze(1))
                modality, level = self.actions[k - 1]
                state = state.after(samples, modality, level, encode(samples, modality, level))
            deciding = torch.cat(served).sort().values if served else deciding[:0]
            waiting_for[deciding] = 0
        route = self.space.project(state.levels, path_mask, state.present)
        return Trajectory(route, state.ran, steps, log_prob, entropy, confidence), state


def choose(
    logits: Float[Tensor, "b k"], greedy: bool, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """An action per sample, its log-probability, and the entropy of the policy."""
    log_probs = logits.log_softmax(1)
    chosen = logits.argmax(1) if greedy else sample_action(logits, generator)
    return chosen, log_probs.gather(1, chosen[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(1)


def encoder_actions(space: RouteSpace) -> list[tuple[Modality, ComputeLevel]]:
    """What a sequential router may run: every encoder but that of text, at every level."""
    media = [m for m in space.modalities if m is not Modality.TEXT]
    return [(m, level) for m in media for level in space.allowed_levels(m) if level is not ComputeLevel.SKIP]


def check_actions(actions: Sequence[tuple[Modality, ComputeLevel]], space: RouteSpace) -> None:
    """Raises ValueError if a router of these actions cannot route a model of this space."""
    expected = encoder_actions(space)
    if list(actions) != expected:
        names = [[f"{m} {level.name.lower()}" for m, level in each] for each in (actions, expected)]
        raise ValueError(f"a router with the actions {names[0]} cannot route a model with {names[1]}")
