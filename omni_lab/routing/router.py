"""The controller: what to run for a question, decided from the question alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.batch import NUM_MODALITIES, Modality, Tokens
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace

MASKED_LOGIT = -1e9  # logit of what may not be chosen
MIN_PENALTY, MAX_PENALTY, NUM_KNOTS = (
    0.0125,
    3.2,
    9,
)  # between which penalties a conditioned controller learns; known at so many of them


class RouterLogits(NamedTuple):
    """Logits of the decisions. levels: [B, M, 3]. opened: [B, L, P], of a path being open."""

    level_logits: Float[Tensor, "b m 3"]
    path_logits: Float[Tensor, "b l p"]


class RouterOutput(NamedTuple):
    """route: what was decided. probabilities: [B, L, P], of each path being open. log_probability, entropy: [B], over
    the decisions that made a difference."""

    route: Route
    probabilities: Float[Tensor, "b l p"]
    log_prob: Float[Tensor, " b"]
    entropy: Float[Tensor, " b"]


class Router(nn.Module):
    """Two linear layers from what is cheap: the mean of the tokens that carry the question, which modalities are
    present, and, if it is `conditioned`, the penalty on cost that it is to decide under (as Dosovitskiy and Djolonga
    2020 train one network for all weights of a loss).

    It never sees the output of an encoder that it may skip. All decisions of a sample are drawn independently of each
    other; paths whose ends are not both encoded are not decisions. plans: with any, it only chooses among so many.
    costs: [KNOTS], of a conditioned controller that is trained: the mean share of the dense cost under each of
    `penalties()`, measured on validation.
    """

    def __init__(
        self, space: RouteSpace, *, width: int, hidden: int = 128, conditioned: bool = False, plans: int = 0
    ) -> None:
        super().__init__()
        self.space = space
        self.penalty_conditioned = conditioned
        self.num_choices = plans
        self.question_proj = nn.ModuleDict({m.value: nn.Linear(width, hidden) for m in space.modalities})
        self.presence_proj = nn.Linear(NUM_MODALITIES, hidden)
        self.logit_head = nn.Linear(
            hidden, plans or NUM_MODALITIES * len(ComputeLevel) + space.depth * len(space.paths)
        )
        if conditioned:  # by how much each hidden unit counts more or less under each penalty
            self.penalty_gain = nn.Linear(NUM_KNOTS, hidden, bias=False)
            nn.init.zeros_(self.penalty_gain.weight)
            self.register_buffer("costs", torch.full((NUM_KNOTS,), torch.nan))
        nn.init.zeros_(self.logit_head.weight)
        nn.init.zeros_(self.logit_head.bias)
        allowed = torch.zeros(NUM_MODALITIES, len(ComputeLevel), dtype=torch.bool)
        for modality in space.modalities:
            allowed[modality.column, [int(level) for level in space.allowed_levels(modality)]] = True
        self.register_buffer("allowed", allowed, persistent=False)

    allowed: Tensor
    costs: Tensor

    @property
    def flops(self) -> float:
        """Of one decision: one question is read, by one of the readers."""
        reader: nn.Linear = next(iter(self.question_proj.values()))  # type: ignore[assignment]
        layers = (
            reader,
            self.presence_proj,
            self.logit_head,
            *((self.penalty_gain,) if self.penalty_conditioned else ()),
        )
        return sum(2.0 * layer.in_features * layer.out_features for layer in layers)

    def forward(
        self,
        question_embeddings: Mapping[Modality, Float[Tensor, "b w"]],
        present: Bool[Tensor, "b m"],
        penalty: Float[Tensor, " b"] | None = None,
    ) -> RouterLogits:
        """question: per modality that carries any of the questions, the mean of its tokens. Raises ValueError if a
        conditioned controller is given no penalty, or one that is not conditioned is given one."""
        wishes = self.raw_logits(question_embeddings, present, penalty)
        levels, opened = wishes.split(
            [NUM_MODALITIES * len(ComputeLevel), self.space.depth * len(self.space.paths)], dim=1
        )
        levels = levels.unflatten(1, (NUM_MODALITIES, len(ComputeLevel))).masked_fill(~self.allowed, MASKED_LOGIT)
        return RouterLogits(levels, opened.unflatten(1, (self.space.depth, len(self.space.paths))))

    def raw_logits(
        self,
        question: Mapping[Modality, Float[Tensor, "b w"]],
        present: Bool[Tensor, "b m"],
        penalty: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """The last layer's output as it is: of a controller that chooses among plans, their logits."""
        if (penalty is not None) != self.penalty_conditioned:
            raise ValueError(
                "this controller is conditioned: it wants a penalty, or `penalty_for` a budget"
                if self.penalty_conditioned
                else "this controller was trained under one penalty: it cannot follow another, nor a budget"
            )
        near = None if penalty is None else penalty_to_knots(penalty)
        carriers = self.space.question_mask(present)
        wishes = self.logit_head.weight.new_zeros(len(present), self.logit_head.out_features)
        for modality, summary in question.items():
            carried = carriers[:, modality.column].nonzero().squeeze(1)
            told = None if near is None else near[carried]
            said = self.modality_logits(modality, summary[carried], present[carried].float(), told)
            wishes = wishes.index_add(0, carried, said.to(wishes.dtype))
        return wishes

    def modality_logits(
        self,
        modality: Modality,
        summary: Float[Tensor, "b w"],
        present: Float[Tensor, "b m"],
        near: Float[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b o"]:
        """`preference`, of questions that all come in one modality. near: to which knots the penalty lies."""
        gain = None if near is None else self.penalty_gain(near)
        return router_mlp(
            self.question_proj[modality.value], self.presence_proj, self.logit_head, summary, present, gain
        )

    def penalty_for_budget(self, budget: float) -> float:
        """Under which a conditioned controller spends, on average over validation, that share of the dense cost: the
        least one if it never spends as much. Raises ValueError for a budget that it does not meet under any, and
        before it is trained."""
        if not self.penalty_conditioned:
            raise ValueError("this controller was trained under one penalty: it cannot follow another, nor a budget")
        if self.costs.isnan().any():
            raise ValueError("this controller's costs are not known yet: train it with `train_controller`")
        costs = self.costs.cummin(0).values.flip(0).double().cpu().numpy()  # the cheapest first
        if not budget >= costs[0] - 1e-6:  # float32 was kept
            raise ValueError(f"no penalty meets a budget of {budget:g} of the dense cost: the least is {costs[0]:.3f}")
        return float(np.exp(np.interp(budget, costs, penalty_knots().log().flip(0).numpy())))

    def sample(
        self, logits: RouterLogits, present: Bool[Tensor, "b m"], *, generator: torch.Generator | None = None
    ) -> RouterOutput:
        """Draws a route. What is certain is drawn all the same: see `greedy`."""
        uniform = (
            torch.rand(logits.level_logits.shape, generator=generator).to(logits.level_logits.device).clamp(min=1e-9)
        )
        levels = (logits.level_logits - (-uniform.log()).log()).argmax(dim=2)  # Gumbel's way to draw from a softmax
        chance = torch.rand(logits.path_logits.shape, generator=generator).to(logits.path_logits.device)
        return self.evaluate_actions(logits, levels, chance < logits.path_logits.sigmoid(), present)

    def greedy(self, wishes: RouterLogits, present: Bool[Tensor, "b m"]) -> Route:
        """The likeliest of each decision."""
        return self.space.project(wishes.level_logits.argmax(dim=2), wishes.path_logits > 0, present)

    def evaluate_actions(
        self,
        wishes: RouterLogits,
        levels: Int[Tensor, "b m"],
        opened: Bool[Tensor, "b l p"],
        present: Bool[Tensor, "b m"],
    ) -> RouterOutput:
        """What decisions come to. The question's carrier and absent modalities are not decided, nor are paths one of
        whose ends is not encoded."""
        route = self.space.project(levels, opened, present)
        free = present & ~self.space.question_mask(present)
        log_levels = wishes.level_logits.log_softmax(dim=2)
        chosen = log_levels.gather(2, levels[:, :, None]).squeeze(2)
        log_probability = (chosen * free).sum(1)
        entropy = (-(log_levels.exp() * log_levels).sum(2) * free).sum(1)
        encoded = route.encoder_levels > ComputeLevel.SKIP
        real = torch.stack([encoded[:, p.query.column] & encoded[:, p.key.column] for p in self.space.paths], dim=1)
        log_open, log_shut = F.logsigmoid(wishes.path_logits), F.logsigmoid(-wishes.path_logits)
        probability = wishes.path_logits.sigmoid()
        log_probability = log_probability + (torch.where(opened, log_open, log_shut) * real[:, None]).sum((1, 2))
        spread = -(probability * log_open + (1 - probability) * log_shut)
        entropy = entropy + (spread * real[:, None]).sum((1, 2))
        return RouterOutput(route, probability, log_probability, entropy)


def router_mlp(
    read: nn.Module, context: nn.Module, wish: nn.Module, summary: Tensor, present: Tensor, gain: Tensor | None
) -> Tensor:
    """What the layers of a controller make of questions that all come in one modality. gain: see `Controller`."""
    hidden = F.gelu(context(present) + read(F.layer_norm(summary, summary.shape[-1:])))
    return wish(hidden if gain is None else hidden * (1 + gain))


def penalty_to_knots(penalty: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
    """How near a penalty lies to each knot, on a logarithmic scale: linear in between."""
    place = (penalty.log() - math.log(MIN_PENALTY)) / math.log(MAX_PENALTY / MIN_PENALTY) * (NUM_KNOTS - 1)
    knots = torch.arange(NUM_KNOTS, device=place.device)
    return (1 - (place.clamp(0, NUM_KNOTS - 1)[:, None] - knots).abs()).clamp(min=0)


def penalty_knots() -> Float[Tensor, " k"]:
    """The knots of a conditioned controller's penalties, evenly on a logarithmic scale."""
    return torch.logspace(math.log10(MIN_PENALTY), math.log10(MAX_PENALTY), NUM_KNOTS)


def pool_questions(
    encoded: Mapping[Modality, Tokens], carriers: Bool[Tensor, "b m"]
) -> dict[Modality, Float[Tensor, "b w"]]:
    """The mean of the tokens of every modality that carries a question of the batch."""
    return {m: tokens.mean_pool() for m, tokens in encoded.items() if carriers[:, m.column].any()}
