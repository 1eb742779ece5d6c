"""Routers that decide once, as baselines, trained on an `OutcomeTable`: every outcome is known, so no network runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omni_lab.batch import Modality
from omni_lab.evaluation.outcome_table import OutcomeTable
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.routing.glance import Glance
from omni_lab.routing.plan_router import PlanRouter, independent_gates
from omni_lab.routing.router import LEAST_PENALTY, MAX_PENALTY
from omni_lab.utils.progress import track_progress

ONE_SHOT = ("expected", "gumbel", "choice", "supervised")
LEARNING_RATE, BATCH_SIZE = 2e-3, 256
ENTROPY_COEF = 0.1  # at the start; it falls to zero


@dataclass(frozen=True)
class OneShot:
    """A trained one-shot baseline. estimator: one of `ONE_SHOT`. factors: see `independent_gates`."""

    estimator: str
    router: PlanRouter
    glance: Glance
    factors: list[Int[Tensor, " r"]]
    mean_cost: Float[Tensor, " r"]  # of each plan

    @torch.inference_mode()
    def choose(self, table: OutcomeTable, penalty: float) -> Int[Tensor, " n"]:
        """The plan of each question."""
        logits = self._logits(table, torch.full((len(table),), penalty))
        if self.estimator == "gumbel":
            return independent_gates(logits, self.factors, noise=False).argmax(1)
        if self.estimator == "supervised":
            return (logits.sigmoid() - penalty * self.mean_cost).argmax(1)
        return logits.argmax(1)

    def _logits(self, table: OutcomeTable, penalty: Tensor) -> Tensor:
        glances = self.glance(table.glances, table.present)
        return self.router(table.question, table.present, glances, penalty)


def train_one_shot(table: OutcomeTable, estimator: str, *, steps: int = 3000, seed: int = 0) -> OneShot:
    """Trains a router that decides once, for all penalties at a time. Estimators:

    "expected": the gradient of the expected reward over all plans (Sutton et al. 2000), which needs no samples.
    "gumbel": cross-entropy + penalty x cost through independent gates per encoder and for the paths.
    "choice": the same through one softmax over the plans.
    "supervised": predicts for each plan whether its answer will be right; decides by probability - penalty x cost.
    Raises ValueError for another estimator.
    """
    if estimator not in ONE_SHOT:
        raise ValueError(f"estimator must be one of {ONE_SHOT}: got {estimator!r}")
    factors = plan_factors(table)
    outputs = sum(int(f.max()) + 1 for f in factors) if estimator == "gumbel" else len(table.plans)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        glance = Glance([*Modality])
        glance.fit(table.glances, table.present)
        router = PlanRouter(dim=table.question.shape[1], num_logits=outputs)
        trained = OneShot(estimator, router, glance, factors, table.cost.mean(0).float())
        optimizer = torch.optim.Adam(router.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        cost = table.cost.float()
        for step in track_progress(range(steps), estimator, total=steps, unit="step"):
            rows = torch.randint(len(table), (BATCH_SIZE,))
            part, penalty = table.select(rows.numpy()), sample_penalties(BATCH_SIZE)
            logits = trained._logits(part, penalty)
            loss = _one_shot_loss(estimator, logits, part, cost[rows], penalty, factors, 1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    router.eval()
    return trained


def _one_shot_loss(
    estimator: str,
    logits: Tensor,
    part: OutcomeTable,
    cost: Tensor,
    penalty: Tensor,
    factors: list[Tensor],
    remaining: float,
) -> Tensor:
    """remaining: fraction of the training that is left, for the entropy bonus."""
    if estimator == "supervised":
        return F.binary_cross_entropy_with_logits(logits, part.correct.float())
    if estimator == "expected":
        reward = part.answer_prob - penalty[:, None] * cost
        return -(logits.softmax(1) * reward).sum(1).mean() - ENTROPY_COEF * remaining * _entropy(logits)
    sizes = [int(factor.max()) + 1 for factor in factors] if estimator == "gumbel" else [logits.shape[1]]
    entropy = torch.stack([_entropy(decision) for decision in logits.split(sizes, dim=1)]).sum()
    if estimator == "gumbel":
        gate = independent_gates(logits, factors, noise=True)
    else:
        gate = F.gumbel_softmax(logits, hard=True)
    answers = (part.logits * gate[:, :, None]).sum(1)
    cost_loss = (penalty * (cost * gate).sum(1)).mean()
    return answer_loss(answers, part.scores) + cost_loss - ENTROPY_COEF * remaining * entropy


def _entropy(logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    log_probs = logits.log_softmax(1)
    return -(log_probs.exp() * log_probs).sum(1).mean()


def plan_factors(table: OutcomeTable) -> list[Int[Tensor, " r"]]:
    """What each plan decides: the level of each modality beside text, as its rank, and whether paths are open."""
    levels = torch.stack([plan.encoder_levels for plan in table.plans])
    factors = [levels[:, m.column].unique(return_inverse=True)[1] for m in Modality if m is not Modality.TEXT]
    factors = [factor for factor in factors if factor.max() > 0]
    return [*factors, torch.tensor([int(plan.path_mask.all()) for plan in table.plans])]


def sample_penalties(size: int) -> Float[Tensor, " b"]:
    """Evenly on a logarithmic scale, over the range of routers that see the glances."""
    return LEAST_PENALTY * (MAX_PENALTY / LEAST_PENALTY) ** torch.rand(size)
