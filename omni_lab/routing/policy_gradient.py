"""How the router learns: REINFORCE (Williams 1992) with a baseline per question, and a penalty on cost."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def group_advantages(rewards: Float[Tensor, "g b"]) -> Float[Tensor, "g b"]:
    """Rewards of the G routes sampled per question, minus their mean, over their standard deviation.

    Group-relative policy optimisation (GRPO, Shao et al. 2024, section 4.1.2), without a clipped ratio, as every route
    is used once. Zero where all rewards are equal. Raises ValueError for a group of one.
    """
    return _normalize(centred_advantages(rewards), rewards)


def centred_advantages(rewards: Float[Tensor, "g b"]) -> Float[Tensor, "g b"]:
    """Rewards minus the mean of their group, not divided by their spread, which weighs questions whose routes hardly
    differ as much as others (Liu et al. 2025, "Understanding R1-Zero-like training"). ValueError for a group of one."""
    if len(rewards) < 2:
        raise ValueError(f"a group needs at least two routes: got {len(rewards)}")
    return rewards - rewards.mean(dim=0, keepdim=True)


def self_critical_advantages(
    rewards: Float[Tensor, "g b"], greedy_rewards: Float[Tensor, " b"]
) -> Float[Tensor, "g b"]:
    """Rewards minus that of the greedy route (self-critical sequence training, Rennie et al. 2017, eq. 8), normalised
    as `group_advantages`, so that the two estimators differ in their baseline alone."""
    return _normalize(rewards - greedy_rewards, rewards)


def _normalize(advantages: Float[Tensor, "g b"], rewards: Float[Tensor, "g b"]) -> Float[Tensor, "g b"]:
    """Divides by each question's standard deviation, which reweights the questions: those whose routes differ little
    in reward count as much as those where one route is right and another wrong."""
    return advantages / (rewards.std(dim=0, keepdim=True) + 1e-3)


def policy_loss(
    log_prob: Float[Tensor, "g b"],
    advantages: Float[Tensor, "g b"],
    entropy: Float[Tensor, "g b"],
    *,
    entropy_coef: float,
) -> Float[Tensor, ""]:
    """The REINFORCE loss with an entropy bonus. With rewards minus a baseline as advantages, its gradient is minus that
    of the expected reward; divided by a standard deviation, of the reward reweighted per question."""
    return -(advantages.detach() * log_prob).mean() - entropy_coef * entropy.mean()


class CostPenalty:
    """The weight of cost in reward = answer probability - weight x cost; cost is a fraction of the dense cost.

    Constant, or with a budget adapted by dual ascent (the weight is a Lagrange multiplier; Boyd and Vandenberghe 2004,
    chapter 5) until the mean cost meets the budget. It is annealed up from zero over the first `anneal` steps.
    Raises ValueError for a budget outside (0, 1].
    """

    def __init__(self, *, weight: float, anneal: int, budget: float | None = None, dual_lr: float = 0.05) -> None:
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(f"budget must be a fraction of the dense cost, above 0 and at most 1: got {budget}")
        self.weight = weight
        self.anneal = anneal
        self.budget = budget
        self.dual_lr = dual_lr

    def at(self, step: int) -> float:
        return self.weight * min(1.0, (step + 1) / max(1, self.anneal))

    def observe(self, mean_cost: float) -> None:
        """Adapts the weight to the mean cost of a training step."""
        if self.budget is not None:
            self.weight = max(0.0, self.weight + self.dual_lr * (mean_cost - self.budget))
