"""PlanRouter: decides once, from the question and the glances, which of several static routes runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.batch import NUM_MODALITIES
from omni_lab.routing.glance import WIDTH
from omni_lab.routing.router import LEAST_PENALTY, NUM_KNOTS, penalty_to_knots


class PlanRouter(nn.Module):
    """An MLP over the question's mean tokens, the modalities that are present, and the standardised glances.

    dim: width of the question tokens. num_logits: of its output, such as one per static route.
    """

    def __init__(self, *, dim: int, num_logits: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.question_proj = nn.Linear(dim, hidden_dim)
        self.facts_proj = nn.Linear(NUM_MODALITIES * (1 + WIDTH), hidden_dim)
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.penalty_gain = nn.Linear(NUM_KNOTS, hidden_dim, bias=False)
        self.logit_head = nn.Linear(hidden_dim, num_logits)
        for head in (self.penalty_gain, self.logit_head):
            nn.init.zeros_(head.weight)
        nn.init.zeros_(self.logit_head.bias)

    @property
    def flops(self) -> float:
        """Of one decision."""
        layers = [m for m in self.modules() if isinstance(m, nn.Linear)]
        return sum(2.0 * layer.in_features * layer.out_features for layer in layers)

    def forward(
        self,
        question: Float[Tensor, "b d"],
        present: Bool[Tensor, "b m"],
        glances: Float[Tensor, "b m g"],
        penalty: Float[Tensor, " b"],
    ) -> Float[Tensor, "b r"]:
        """penalty: the reward that a route of the whole dense cost loses."""
        facts = torch.cat([present.float(), glances.flatten(1)], dim=1)
        x = F.gelu(self.question_proj(F.layer_norm(question, question.shape[1:])) + self.facts_proj(facts))
        x = F.gelu(self.hidden(x)) * (1 + self.penalty_gain(penalty_to_knots(penalty, LEAST_PENALTY)))
        return self.logit_head(x)


def independent_gates(
    logits: Float[Tensor, "b f"], factors: list[Int[Tensor, " r"]], *, noise: bool
) -> Float[Tensor, "b r"]:
    """A gate per static route, 0 or 1, as the product of independent decisions, by the Gumbel softmax with a straight-
    through gradient (Jang et al. 2017, section 2.2). factors: for each decision, what each route chose."""
    gate, first = torch.ones(len(logits), len(factors[0]), device=logits.device), 0
    for chosen in factors:
        options = int(chosen.max()) + 1
        part = logits[:, first : first + options]
        first += options
        hard = F.gumbel_softmax(part, hard=True) if noise else F.one_hot(part.argmax(1), options).to(gate)
        gate = gate * hard[:, chosen]
    return gate
