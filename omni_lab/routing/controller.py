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

from omni_lab.modalities import M, Modality, Tokens
from omni_lab.routing.route import Level, Route, RouteSpace

CLOSED = -1e9  # logit of what may not be chosen
LEAST, MOST, KNOTS = 0.0125, 3.2, 9  # between which penalties a conditioned controller learns; known at so many of them


class Wishes(NamedTuple):
    """Logits of the decisions. levels: [B, M, 3]. opened: [B, L, P], of a path being open."""

    levels: Float[Tensor, "b m 3"]
    opened: Float[Tensor, "b l p"]


class ControllerOutput(NamedTuple):
    """route: what was decided. probabilities: [B, L, P], of each path being open. log_probability, entropy: [B], over
    the decisions that made a difference."""

    route: Route
    probabilities: Float[Tensor, "b l p"]
    log_probability: Float[Tensor, " b"]
    entropy: Float[Tensor, " b"]


class Controller(nn.Module):
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
        self.conditioned = conditioned
        self.plans = plans
        self.read = nn.ModuleDict({m.value: nn.Linear(width, hidden) for m in space.modalities})
        self.context = nn.Linear(M, hidden)
        self.wish = nn.Linear(hidden, plans or M * len(Level) + space.depth * len(space.paths))
        if conditioned:  # by how much each hidden unit counts more or less under each penalty
            self.gain = nn.Linear(KNOTS, hidden, bias=False)
            nn.init.zeros_(self.gain.weight)
            self.register_buffer("costs", torch.full((KNOTS,), torch.nan))
        nn.init.zeros_(self.wish.weight)
        nn.init.zeros_(self.wish.bias)
        allowed = torch.zeros(M, len(Level), dtype=torch.bool)
        for modality in space.modalities:
            allowed[modality.column, [int(level) for level in space.choices(modality)]] = True
        self.register_buffer("allowed", allowed, persistent=False)

    allowed: Tensor
    costs: Tensor

    @property
    def flops(self) -> float:
        """Of one decision: one question is read, by one of the readers."""
        reader: nn.Linear = next(iter(self.read.values()))  # type: ignore[assignment]
        layers = (reader, self.context, self.wish, *((self.gain,) if self.conditioned else ()))
        return sum(2.0 * layer.in_features * layer.out_features for layer in layers)

    def forward(
        self,
        question: Mapping[Modality, Float[Tensor, "b w"]],
        present: Bool[Tensor, "b m"],
        penalty: Float[Tensor, " b"] | None = None,
    ) -> Wishes:
        """question: per modality that carries any of the questions, the mean of its tokens. Raises ValueError if a
        conditioned controller is given no penalty, or one that is not conditioned is given one."""
        wishes = self.preference(question, present, penalty)
        levels, opened = wishes.split([M * len(Level), self.space.depth * len(self.space.paths)], dim=1)
        levels = levels.unflatten(1, (M, len(Level))).masked_fill(~self.allowed, CLOSED)
        return Wishes(levels, opened.unflatten(1, (self.space.depth, len(self.space.paths))))

    def preference(
        self,
        question: Mapping[Modality, Float[Tensor, "b w"]],
        present: Bool[Tensor, "b m"],
        penalty: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """The last layer's output as it is: of a controller that chooses among plans, their logits."""
        if (penalty is not None) != self.conditioned:
            raise ValueError(
                "this controller is conditioned: it wants a penalty, or `penalty_for` a budget"
                if self.conditioned
                else "this controller was trained under one penalty: it cannot follow another, nor a budget"
            )
        near = None if penalty is None else nearness(penalty)
        carriers = self.space.carriers(present)
        wishes = self.wish.weight.new_zeros(len(present), self.wish.out_features)
        for modality, summary in question.items():
            carried = carriers[:, modality.column].nonzero().squeeze(1)
            told = None if near is None else near[carried]
            said = self.heard(modality, summary[carried], present[carried].float(), told)
            wishes = wishes.index_add(0, carried, said.to(wishes.dtype))
        return wishes

    def heard(
        self,
        modality: Modality,
        summary: Float[Tensor, "b w"],
        present: Float[Tensor, "b m"],
        near: Float[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b o"]:
        """`preference`, of questions that all come in one modality. near: to which knots the penalty lies."""
        gain = None if near is None else self.gain(near)
        return decision(self.read[modality.value], self.context, self.wish, summary, present, gain)

    def penalty_for(self, budget: float) -> float:
        """Under which a conditioned controller spends, on average over validation, that share of the dense cost: the
        least one if it never spends as much. Raises ValueError for a budget that it does not meet under any, and
        before it is trained."""
        if not self.conditioned:
            raise ValueError("this controller was trained under one penalty: it cannot follow another, nor a budget")
        if self.costs.isnan().any():
            raise ValueError("this controller's costs are not known yet: train it with `train_controller`")
        costs = self.costs.cummin(0).values.flip(0).double().cpu().numpy()  # the cheapest first
        if not budget >= costs[0] - 1e-6:  # float32 was kept
            raise ValueError(f"no penalty meets a budget of {budget:g} of the dense cost: the least is {costs[0]:.3f}")
        return float(np.exp(np.interp(budget, costs, penalties().log().flip(0).numpy())))

    def decide(
        self, wishes: Wishes, present: Bool[Tensor, "b m"], *, generator: torch.Generator | None = None
    ) -> ControllerOutput:
        """Draws a route. What is certain is drawn all the same: see `greedy`."""
        uniform = torch.rand(wishes.levels.shape, generator=generator).to(wishes.levels.device).clamp(min=1e-9)
        levels = (wishes.levels - (-uniform.log()).log()).argmax(dim=2)  # Gumbel's way to draw from a softmax
        chance = torch.rand(wishes.opened.shape, generator=generator).to(wishes.opened.device)
        return self.output(wishes, levels, chance < wishes.opened.sigmoid(), present)

    def greedy(self, wishes: Wishes, present: Bool[Tensor, "b m"]) -> Route:
        """The likeliest of each decision."""
        return self.space.route(wishes.levels.argmax(dim=2), wishes.opened > 0, present)

    def output(
        self, wishes: Wishes, levels: Int[Tensor, "b m"], opened: Bool[Tensor, "b l p"], present: Bool[Tensor, "b m"]
    ) -> ControllerOutput:
        """What decisions come to. The question's carrier and absent modalities are not decided, nor are paths one of
        whose ends is not encoded."""
        route = self.space.route(levels, opened, present)
        free = present & ~self.space.carriers(present)
        log_levels = wishes.levels.log_softmax(dim=2)
        chosen = log_levels.gather(2, levels[:, :, None]).squeeze(2)
        log_probability = (chosen * free).sum(1)
        entropy = (-(log_levels.exp() * log_levels).sum(2) * free).sum(1)
        encoded = route.encoders > Level.SKIP
        real = torch.stack([encoded[:, p.query.column] & encoded[:, p.key.column] for p in self.space.paths], dim=1)
        log_open, log_shut = F.logsigmoid(wishes.opened), F.logsigmoid(-wishes.opened)
        probability = wishes.opened.sigmoid()
        log_probability = log_probability + (torch.where(opened, log_open, log_shut) * real[:, None]).sum((1, 2))
        spread = -(probability * log_open + (1 - probability) * log_shut)
        entropy = entropy + (spread * real[:, None]).sum((1, 2))
        return ControllerOutput(route, probability, log_probability, entropy)


def decision(
    read: nn.Module, context: nn.Module, wish: nn.Module, summary: Tensor, present: Tensor, gain: Tensor | None
) -> Tensor:
    """What the layers of a controller make of questions that all come in one modality. gain: see `Controller`."""
    hidden = F.gelu(context(present) + read(F.layer_norm(summary, summary.shape[-1:])))
    return wish(hidden if gain is None else hidden * (1 + gain))


def nearness(penalty: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
    """How near a penalty lies to each knot, on a logarithmic scale: linear in between."""
    place = (penalty.log() - math.log(LEAST)) / math.log(MOST / LEAST) * (KNOTS - 1)
    knots = torch.arange(KNOTS, device=place.device)
    return (1 - (place.clamp(0, KNOTS - 1)[:, None] - knots).abs()).clamp(min=0)


def penalties() -> Float[Tensor, " k"]:
    """The knots of a conditioned controller's penalties, evenly on a logarithmic scale."""
    return torch.logspace(math.log10(LEAST), math.log10(MOST), KNOTS)


def question_means(
    encoded: Mapping[Modality, Tokens], carriers: Bool[Tensor, "b m"]
) -> dict[Modality, Float[Tensor, "b w"]]:
    """The mean of the tokens of every modality that carries a question of the batch."""
    return {m: tokens.pooled() for m, tokens in encoded.items() if carriers[:, m.column].any()}
