"""How a controller learns from what its routes were worth: REINFORCE (Williams 1992) with a baseline per sample."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def group_advantages(rewards: Float[Tensor, "g b"]) -> Float[Tensor, "g b"]:
    """How much better each of a sample's G routes did than the others on average, in units of their spread
    (group-relative policy optimisation, Shao et al. 2024, section 4.1.2; without a clipped ratio, as every route is
    used once). Zero where all did alike. Raises ValueError for a single route."""
    if len(rewards) < 2:
        raise ValueError(f"a group needs at least two routes: got {len(rewards)}")
    return _in_spreads(rewards - rewards.mean(dim=0, keepdim=True), rewards)


def self_critical_advantages(rewards: Float[Tensor, "g b"], greedy: Float[Tensor, " b"]) -> Float[Tensor, "g b"]:
    """How much better than the likeliest route (self-critical sequence training, Rennie et al. 2017, eq. 8), in the
    same units, so that the two estimators differ in their baseline alone."""
    return _in_spreads(rewards - greedy, rewards)


def _in_spreads(advantages: Float[Tensor, "g b"], rewards: Float[Tensor, "g b"]) -> Float[Tensor, "g b"]:
    """Dividing by each question's spread weighs the questions anew: those whose routes are worth nearly the same
    count as much as those where one route is right and another wrong."""
    return advantages / (rewards.std(dim=0, keepdim=True) + 1e-3)


def policy_loss(
    log_prob: Float[Tensor, "g b"],
    advantages: Float[Tensor, "g b"],
    entropy: Float[Tensor, "g b"],
    *,
    entropy_coef: float,
) -> Float[Tensor, ""]:
    """REINFORCE with an entropy bonus; to be minimised. With advantages that are rewards less a baseline its gradient
    is that of the expected reward, with the sign turned; divided by a spread, of the reward reweighted question by
    question."""
    return -(advantages.detach() * log_prob).mean() - entropy_coef * entropy.mean()


class CostPenalty:
    """What a unit of cost (a share of the dense cost) takes off the reward.

    Fixed at `weight`; or, given a `budget`, adapted by dual ascent (the weight as Lagrange multiplier; Boyd and
    Vandenberghe 2004, chapter 5) until the mean cost meets it: what is too dear raises it, what is too cheap lowers
    it. In the first `anneal` of the updates it grows from nothing.
    """

    def __init__(self, *, weight: float, anneal: int, budget: float | None = None, dual_lr: float = 0.05) -> None:
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(f"budget must be a share of the dense cost, above 0 and at most 1: got {budget}")
        self.weight = weight
        self.anneal = anneal
        self.budget = budget
        self.rate = dual_lr

    def at(self, update: int) -> float:
        return self.weight * min(1.0, (update + 1) / max(1, self.anneal))

    def observe(self, mean_cost: float) -> None:
        """After an update."""
        if self.budget is not None:
            self.weight = max(0.0, self.weight + self.rate * (mean_cost - self.budget))
