"""Gates that learn by backpropagation through the network: the controls of the controller's training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from omni_lab.config import RouterConfig
from omni_lab.learning.multitask import answer_loss
from omni_lab.learning.routing import Judged, judge
from omni_lab.learning.schedule import seed_step
from omni_lab.modalities import M, OmniBatch
from omni_lab.model import OmniModel
from omni_lab.routing import Level, Route, RouteSpace
from omni_lab.routing.controller import Controller, Wishes, question_means
from omni_lab.routing.controls import Plan
from omni_lab.routing.cost import CostModel


def straight_through(logits: Tensor, *, temperature: float, noise: bool) -> Tensor:
    """0 or 1 going forward, a sigmoid going back. noise: draw, with logistic noise (Gumbel straight-through; Jang et
    al. 2017, section 2.2, for two categories)."""
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + uniform.log() - (1 - uniform).log()
    soft = (logits / temperature).sigmoid()
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft


def used(opened: Float[Tensor, "b l p"], space: RouteSpace, carriers: Bool[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """How surely each modality is encoded: the question's carrier, and what any open path from a carrier leads to,
    directly or over one stop."""
    reached = carriers.to(opened.dtype)
    for _ in range(space.depth):
        closed = 1 - reached
        for i, path in enumerate(space.paths):
            link = 1 - (1 - opened[:, :, i]).prod(dim=1)  # open in any layer
            here = torch.arange(M, device=closed.device) == path.key.column
            closed = closed * torch.where(here, 1 - (reached[:, path.query.column] * link)[:, None], 1.0)
        reached = 1 - closed
    return reached


GATES = ("gumbel", "soft", "choice")


class GateTraining(L.LightningModule):
    """config.estimator: "gumbel" draws every path open or shut, straight through; "soft" multiplies paths by sigmoids
    and saves nothing; "choice" picks one of `plans` per question by a straight-through softmax over what the network
    says under each (the idea of DynMM's modality-level gate; Xue and Marculescu, CVPR workshops 2023, section 3.1).

    All see what the controller sees, through layers of the same size. Loss: cross-entropy + penalty x cost.
    """

    columns: ClassVar = {
        "train loss": "train/loss",
        "cost": "train/cost",
        "validation reward": "validation/reward",
        "accuracy": "validation/accuracy",
        "validation cost": "validation/cost",
    }

    def __init__(
        self,
        model: OmniModel,
        controller: Controller,
        config: RouterConfig,
        *,
        costs: CostModel,
        plans: Sequence[Plan] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if config.estimator not in GATES:
            raise ValueError(f"estimator must be one of {GATES}: got {config.estimator!r}")
        if (config.estimator == "choice") != (len(plans) >= 2):
            raise ValueError(
                f"'choice', and only it, wants two plans or more: got {config.estimator!r} with {len(plans)}"
            )
        self.kind = config.estimator
        self.config = config
        self.costs = costs
        self.plans = list(plans)
        self.seed_value = seed
        self.controller = controller
        self._network = [model.eval().requires_grad_(False)]

    @property
    def network(self) -> OmniModel:
        return self._network[0]

    def wishes(self, batch: OmniBatch) -> Any:
        """Of the controller; for "choice", logits [B, plans]."""
        with torch.no_grad():
            question = question_means(self.network.questions(batch), self.network.space.carriers(batch.present))
        wish = self.controller.preference if self.kind == "choice" else self.controller
        return wish(question, batch.present)

    def on_fit_start(self) -> None:
        self.network.to(self.device)

    def on_train_batch_start(self, batch: OmniBatch, batch_idx: int) -> None:
        seed_step(self, self.seed_value, batch_idx)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        target = batch.targets["answer_scores"]
        if self.kind == "choice":
            answers, cost = self._choose(batch)
        else:
            answers, cost = self.gated(batch)
        loss = answer_loss(answers, target) + self.config.penalty * cost.mean()
        self.log_dict(
            {"train/loss": loss, "train/cost": cost.mean()}, on_step=False, on_epoch=True, batch_size=len(batch)
        )
        return loss

    def gated(self, batch: OmniBatch) -> tuple[Tensor, Float[Tensor, " b"]]:
        """Answers [B, answers] of the network with its paths weighed, and the expected cost; of "gumbel" and "soft"."""
        space, wished = self.network.space, self.wishes(batch)
        if self.kind == "gumbel":
            opened = straight_through(wished.opened, temperature=1.0, noise=True)
        else:
            opened = wished.opened.sigmoid()
        openness = opened.new_ones(len(batch), space.depth, M, M)
        for i, path in enumerate(space.paths):
            spot = torch.zeros(M, M, dtype=torch.bool, device=opened.device)
            spot[path.query.column, path.key.column] = True
            openness = torch.where(spot, opened[:, :, i, None, None], openness)
        with torch.no_grad():
            encoded = self.network.encode(batch)
        answers = self.network.fuse(encoded, heads=["answer"], openness=openness).heads["answer"]
        return answers, self._expected_cost(batch, opened)

    def _expected_cost(self, batch: OmniBatch, opened: Float[Tensor, "b l p"]) -> Float[Tensor, " b"]:
        """The share of the dense cost, as if all decisions were independent."""
        space, counts = self.network.space, self.costs.tokens(batch)
        dense = self.costs(space, space.dense(batch.present.cpu()), counts)
        carriers = space.carriers(batch.present)
        encoded = used(opened, space, carriers)
        total = (dense.heads + dense.digestion).to(opened)
        for modality in space.modalities:
            each = self.costs.encoder_flops(modality, Level.FULL, counts[:, modality.column]).to(opened)
            total = total + encoded[:, modality.column] * each * batch.present[:, modality.column]
        paths = self.costs.per_path(space, counts).to(opened)  # [B, P]
        both = torch.stack([batch.present[:, p.query.column] & batch.present[:, p.key.column] for p in space.paths], 1)
        total = total + (opened.sum(1) * paths * both).sum(1)
        return total / dense.total.to(opened)

    def _choose(self, batch: OmniBatch) -> tuple[Tensor, Float[Tensor, " b"]]:
        space, counts = self.network.space, self.costs.tokens(batch)
        with torch.no_grad():
            routes = [plan.route(space, batch.present) for plan in self.plans]
            said = torch.stack([self.network(batch, heads=["answer"], route=r).heads["answer"] for r in routes], 1)
        dense = self.costs(space, space.dense(batch.present.cpu()), counts).total
        costs = torch.stack([self.costs(space, r.to("cpu"), counts).total / dense for r in routes], 1).to(said)
        gate = F.gumbel_softmax(self.wishes(batch), tau=1.0, hard=True)  # [B, plans]
        return (said * gate[:, :, None]).sum(1), (costs * gate).sum(1)

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        if self.kind == "soft":
            answers, cost = self.gated(batch)
            target = batch.targets["answer_scores"]
            score = (answers.softmax(dim=1) * target).sum(1)
            correct = target.gather(1, answers.argmax(dim=1, keepdim=True)).squeeze(1)
            judged = Judged(score, correct, cost.float())
        else:
            judged = judge(self.network, batch, self.route(batch), costs=self.costs)
        reward = judged.score - self.config.penalty * judged.cost
        named = {"reward": reward, "accuracy": judged.correct, "cost": judged.cost}
        self.log_dict({f"validation/{k}": v.mean() for k, v in named.items()}, batch_size=len(batch))

    def route(self, batch: OmniBatch) -> Route:
        """What the trained gates run: the likeliest, and no encoder that no open path leads to. Soft gates run
        everything."""
        space, present = self.network.space, batch.present
        if self.kind == "soft":
            return space.dense(present)
        with torch.no_grad():
            wished = self.wishes(batch)
        if self.kind == "choice":
            chosen = wished.argmax(dim=1)
            routes = [plan.route(space, present) for plan in self.plans]
            encoders = torch.stack([r.encoders for r in routes])[chosen, torch.arange(len(batch))]
            return Route(encoders, torch.stack([r.interactions for r in routes])[chosen, torch.arange(len(batch))])
        assert isinstance(wished, Wishes)
        opened = wished.opened > 0
        levels = torch.where(
            used(opened.float(), space, space.carriers(present)) > 0.5, int(Level.FULL), int(Level.SKIP)
        )
        return space.route(levels, opened, present)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.controller.parameters(), lr=self.config.learning_rate)
