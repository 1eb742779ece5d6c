"""The router: a policy that decides what to run for a question from the question alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality, Tokens
from omni_lab.routing.route import Route, RouteSpace
from omni_lab.utils.penalties import penalty_for_budget

MASKED_LOGIT = -1e9  # of levels that may not be chosen
MIN_PENALTY, MAX_PENALTY = 0.0125, 3.2  # the range that a penalty-conditioned router is trained on
LEAST_PENALTY = 0.002  # of routers that see the glances: where the range starts that they are trained on
NUM_KNOTS = 9  # penalties in that range at which it has weights of its own and a measured cost
NO_PENALTY_INPUT = "this router was trained with one penalty: it takes neither another penalty nor a budget"


class RouterLogits(NamedTuple):
    """Logits of all decisions. path_logits: of a path running."""

    level_logits: Float[Tensor, "b m l"]
    path_logits: Float[Tensor, "b l p"]


class RouterOutput(NamedTuple):
    """Sampled routes.

    path_probs: the probability that each path runs.
    log_prob, entropy: summed over the decisions that make a difference.
    """

    route: Route
    path_probs: Float[Tensor, "b l p"]
    log_prob: Float[Tensor, " b"]
    entropy: Float[Tensor, " b"]


class Router(nn.Module):
    """A two-layer MLP over the mean of the question's tokens and the modalities that are present.

    It never sees the output of an encoder that it may skip. The decisions of a sample are independent of each other.

    dim: width of the question tokens.
    penalty_conditioned: also read the cost penalty (one network for all weights of a loss, Dosovitskiy and Djolonga
        2020). Training sets the buffer `costs` [K], the mean fraction of the dense cost at each of `penalty_knots`.
    num_choices: if not 0, choose among so many static routes instead; only `raw_logits` applies then.
    """

    def __init__(
        self,
        space: RouteSpace,
        *,
        dim: int,
        hidden_dim: int = 128,
        penalty_conditioned: bool = False,
        num_choices: int = 0,
    ) -> None:
        super().__init__()
        self.space = space
        self.penalty_conditioned = penalty_conditioned
        self.num_choices = num_choices
        allowed = {level for modality in space.modalities for level in space.allowed_levels(modality)}
        self.levels = sorted(allowed)  # that there are logits for
        self.num_logits = (NUM_MODALITIES * len(self.levels), space.depth * len(space.paths))  # of levels, of paths
        self.question_proj = nn.ModuleDict({m.value: nn.Linear(dim, hidden_dim) for m in space.modalities})
        self.presence_proj = nn.Linear(NUM_MODALITIES, hidden_dim)
        self.logit_head = nn.Linear(hidden_dim, num_choices or sum(self.num_logits))
        if penalty_conditioned:  # scales each hidden unit by 1 + gain
            self.penalty_gain = nn.Linear(NUM_KNOTS, hidden_dim, bias=False)
            nn.init.zeros_(self.penalty_gain.weight)
            self.register_buffer("costs", torch.full((NUM_KNOTS,), torch.nan))
        nn.init.zeros_(self.logit_head.weight)
        nn.init.zeros_(self.logit_head.bias)
        table = torch.zeros(NUM_MODALITIES, len(ComputeLevel), dtype=torch.bool)
        for modality in space.modalities:
            table[modality.column, [int(level) for level in space.allowed_levels(modality)]] = True
        self.register_buffer("allowed", table, persistent=False)

    allowed: Tensor
    costs: Tensor

    @property
    def flops(self) -> float:
        """Of one decision, which reads one question through one of the projections."""
        layers: list[Any] = [next(iter(self.question_proj.values())), self.presence_proj, self.logit_head]
        layers += [self.penalty_gain] if self.penalty_conditioned else []
        return sum(2.0 * layer.in_features * layer.out_features for layer in layers)

    def forward(
        self,
        question_embeddings: Mapping[Modality, Float[Tensor, "b w"]],
        present: Bool[Tensor, "b m"],
        penalty: Float[Tensor, " b"] | None = None,
    ) -> RouterLogits:
        """question_embeddings: see `pool_questions`.

        Raises ValueError for a missing penalty if `penalty_conditioned`, else for a given one.
        """
        return self.split_logits(self.raw_logits(question_embeddings, present, penalty))

    def split_logits(self, logits: Float[Tensor, "b k"]) -> RouterLogits:
        """The logits of each decision, from the output of the last layer."""
        level_logits, path_logits = logits.split(self.num_logits, dim=1)
        every_level = logits.new_full((logits.shape[0], NUM_MODALITIES, len(ComputeLevel)), MASKED_LOGIT)
        every_level[:, :, self.levels] = level_logits.unflatten(1, (NUM_MODALITIES, len(self.levels)))
        path_logits = path_logits.unflatten(1, (self.space.depth, len(self.space.paths)))
        return RouterLogits(every_level.masked_fill(~self.allowed, MASKED_LOGIT), path_logits)

    def raw_logits(
        self,
        question_embeddings: Mapping[Modality, Float[Tensor, "b w"]],
        present: Bool[Tensor, "b m"],
        penalty: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """The output of the last layer; with `num_choices`, the logits of the static routes."""
        if (penalty is not None) != self.penalty_conditioned:
            raise ValueError(
                "this router is conditioned on a penalty: pass one, or `penalty_for_budget(budget)`"
                if self.penalty_conditioned
                else NO_PENALTY_INPUT
            )
        knot_weights = None if penalty is None else penalty_to_knots(penalty)
        question_mask = self.space.question_mask(present)
        logits = self.logit_head.weight.new_zeros(len(present), self.logit_head.out_features)
        for modality, embeddings in question_embeddings.items():
            samples = question_mask[:, modality.column].nonzero().squeeze(1)
            knots = None if knot_weights is None else knot_weights[samples]
            output = self.modality_logits(modality, embeddings[samples], present[samples].float(), knots)
            logits = logits.index_add(0, samples, output.to(logits.dtype))
        return logits

    def modality_logits(
        self,
        modality: Modality,
        question_embedding: Float[Tensor, "b w"],
        present: Float[Tensor, "b m"],
        knot_weights: Float[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b o"]:
        """`raw_logits` of questions that all come in one modality. knot_weights: see `penalty_to_knots`."""
        layers = (self.question_proj[modality.value], self.presence_proj, self.logit_head)
        gain = None if knot_weights is None else self.penalty_gain(knot_weights)
        return router_mlp(*layers, question_embedding, present, gain)

    def penalty_for_budget(self, budget: float) -> float:
        """The smallest penalty whose mean cost on validation is within `budget`, a fraction of the dense cost.

        Raises ValueError if no penalty meets it, if the router takes no penalty, or before it is trained.
        """
        if not self.penalty_conditioned:
            raise ValueError(NO_PENALTY_INPUT)
        if self.costs.isnan().any():
            raise ValueError("this router's costs are not measured yet: train it with `load_or_train_router`")
        return penalty_for_budget(budget, self.costs.cpu().numpy(), penalty_knots().numpy())

    def sample(
        self, logits: RouterLogits, present: Bool[Tensor, "b m"], *, generator: torch.Generator | None = None
    ) -> RouterOutput:
        """Samples a route per sample."""
        device = logits.path_logits.device
        sampled = sample_action(logits.level_logits[:, :, self.levels], generator)
        levels = torch.tensor(self.levels, device=device)[sampled]
        uniform = torch.rand(logits.path_logits.shape, generator=generator).to(device)
        return self.evaluate_actions(logits, levels, uniform < logits.path_logits.sigmoid(), present)

    def greedy(self, logits: RouterLogits, present: Bool[Tensor, "b m"]) -> Route:
        """The most likely choice of each decision."""
        return self.space.project(logits.level_logits.argmax(dim=2), logits.path_logits > 0, present)

    def evaluate_actions(
        self,
        logits: RouterLogits,
        levels: Int[Tensor, "b m"],
        path_mask: Bool[Tensor, "b l p"],
        present: Bool[Tensor, "b m"],
    ) -> RouterOutput:
        """The route of given decisions, their log-probability and entropy. Levels of absent modalities and of the
        question are no decisions, nor are paths without both ends encoded: they add nothing."""
        route = self.space.project(levels, path_mask, present)
        decided = present & ~self.space.question_mask(present)
        level_log_probs = logits.level_logits.log_softmax(dim=2)
        log_prob = (level_log_probs.gather(2, levels[:, :, None]).squeeze(2) * decided).sum(1)
        entropy = (-(level_log_probs.exp() * level_log_probs).sum(2) * decided).sum(1)
        encoded = route.encoder_levels > ComputeLevel.SKIP
        queries, keys = self.space.path_columns
        decided = encoded[:, queries] & encoded[:, keys]
        path_log_prob, path_entropy = path_decisions(logits.path_logits, path_mask, decided)
        return RouterOutput(route, logits.path_logits.sigmoid(), log_prob + path_log_prob, entropy + path_entropy)


def sample_action(logits: Float[Tensor, "*b k"], generator: torch.Generator | None = None) -> Int[Tensor, "*b"]:
    """A sample of the categorical distribution of the last axis, by the Gumbel-max trick."""
    uniform = torch.rand(logits.shape, generator=generator).to(logits.device).clamp(min=1e-9)
    return (logits - (-uniform.log()).log()).argmax(dim=-1)


def path_decisions(
    path_logits: Float[Tensor, "b l p"], path_mask: Bool[Tensor, "b l p"], decided: Bool[Tensor, "b p"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Log-probability and entropy of the paths that run. decided: the others are no decisions and add nothing."""
    log_open, log_closed = F.logsigmoid(path_logits), F.logsigmoid(-path_logits)
    probs = path_logits.sigmoid()
    log_prob = (torch.where(path_mask, log_open, log_closed) * decided[:, None]).sum((1, 2))
    entropy = -(probs * log_open + (1 - probs) * log_closed)
    return log_prob, (entropy * decided[:, None]).sum((1, 2))


def router_mlp(
    question_proj: nn.Module,
    presence_proj: nn.Module,
    logit_head: nn.Module,
    question_embedding: Tensor,
    present: Tensor,
    gain: Tensor | None,
) -> Tensor:
    """The router's forward pass over its layers, for questions in one modality. gain: of the hidden units."""
    normed = F.layer_norm(question_embedding, question_embedding.shape[-1:])
    hidden = F.gelu(presence_proj(present) + question_proj(normed))
    return logit_head(hidden if gain is None else hidden * (1 + gain))


def penalty_to_knots(penalty: Float[Tensor, " b"], least: float = MIN_PENALTY) -> Float[Tensor, "b k"]:
    """Weights of the two knots next to each penalty: linear interpolation on a logarithmic scale, from `least` on."""
    position = (penalty.log() - math.log(least)) / math.log(MAX_PENALTY / least) * (NUM_KNOTS - 1)
    knots = torch.arange(NUM_KNOTS, device=position.device)
    return (1 - (position.clamp(0, NUM_KNOTS - 1)[:, None] - knots).abs()).clamp(min=0)


def penalty_knots() -> Float[Tensor, " k"]:
    """The penalties at the knots, evenly spaced on a logarithmic scale."""
    return torch.logspace(math.log10(MIN_PENALTY), math.log10(MAX_PENALTY), NUM_KNOTS)


def pool_questions(
    encoded: Mapping[Modality, Tokens], question_mask: Bool[Tensor, "b m"]
) -> dict[Modality, Float[Tensor, "b w"]]:
    """Mean tokens of each modality that carries a question of the batch."""
    return {m: tokens.mean_pool() for m, tokens in encoded.items() if question_mask[:, m.column].any()}
