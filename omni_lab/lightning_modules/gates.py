"""Gates that learn by backpropagation through the network: the controls of the controller's training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, OmniBatch
from omni_lab.config.schema import RouterConfig
from omni_lab.lightning_modules.router import LitRouterBase, RouteOutcome, deduplicate_routes, evaluate_route
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.model import OmniModel
from omni_lab.routing.baselines import StaticRoute
from omni_lab.routing.cost import CostModel
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace
from omni_lab.routing.router import Router, RouterLogits


def straight_through(logits: Tensor, *, temperature: float, noise: bool) -> Tensor:
    """0 or 1 going forward, a sigmoid going back. noise: draw, with logistic noise (Gumbel straight-through; Jang et
    al. 2017, section 2.2, for two categories)."""
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + uniform.log() - (1 - uniform).log()
    soft = (logits / temperature).sigmoid()
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft


def encoded_probs(
    opened: Float[Tensor, "b l p"], space: RouteSpace, carriers: Bool[Tensor, "b m"]
) -> Float[Tensor, "b m"]:
    """How surely each modality is encoded: the question's carrier, and what a chain of at most `space.depth` open paths
    from it leads to."""
    reached = carriers.to(opened.dtype)
    for _ in range(space.depth):
        closed = 1 - reached
        for i, path in enumerate(space.paths):
            link = 1 - (1 - opened[:, :, i]).prod(dim=1)  # open in any layer
            here = torch.arange(NUM_MODALITIES, device=closed.device) == path.key.column
            closed = closed * torch.where(here, 1 - (reached[:, path.query.column] * link)[:, None], 1.0)
        reached = 1 - closed
    return reached


GATE_ESTIMATORS = ("gumbel", "soft", "choice")


class LitGates(LitRouterBase):
    """Loss: cross-entropy + penalty x cost, whose gradient comes back through the network.

    config.estimator: "gumbel" draws every path open or shut, straight through, and runs later, in full, the encoders
    that an open path leads to; "soft" multiplies paths by sigmoids and saves nothing; "choice" picks one of `plans` per
    question by a straight-through softmax over what the network says under each (the idea of DynMM's modality-level
    gate; Xue and Marculescu, CVPR workshops 2023, section 3.1). All see what the controller sees, through layers of the
    same size.

    While "gumbel" learns, everything is encoded, and only paths are closed. If what no open path leads to was kept
    silent as well, as it will be later, or if the reward of `RouterTraining` stood in place of the cross-entropy, gates
    under a penalty let go of modalities and did not find them again: what is silent sends no gradient.
    """

    columns: ClassVar[dict[str, str]] = {
        "train loss": "train/loss",
        "cost": "train/cost",
        "validation reward": "validation/reward",
        "accuracy": "validation/accuracy",
        "validation cost": "validation/cost",
    }

    def __init__(
        self,
        model: OmniModel,
        controller: Router,
        config: RouterConfig,
        *,
        costs: CostModel,
        plans: Sequence[StaticRoute] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(model, controller, config, costs=costs, seed=seed)
        if config.estimator not in GATE_ESTIMATORS:
            raise ValueError(f"estimator must be one of {GATE_ESTIMATORS}: got {config.estimator!r}")
        if (config.estimator == "choice") != (len(plans) >= 2):
            raise ValueError(
                f"'choice', and only it, wants two plans or more: got {config.estimator!r} with {len(plans)}"
            )
        self.kind = config.estimator
        self.plans = list(plans)

    def logits(self, batch: OmniBatch) -> Any:
        """Of the controller; for "choice", logits [B, plans]."""
        wish = self.router.raw_logits if self.kind == "choice" else self.router
        return wish(self.question_embeddings(batch), batch.present)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        assert self.penalty is not None
        answers, cost = self._choose(batch) if self.kind == "choice" else self.gated(batch)
        weight = self.penalty.at(self.global_step)
        loss = answer_loss(answers, batch.targets["answer_scores"]) + weight * cost.mean()
        self.penalty.observe(float(cost.detach().mean()))
        logged: dict[str, Any] = {"train/loss": loss, "train/cost": cost.mean(), "train/penalty": weight}
        self.log_dict(logged, on_step=True, on_epoch=False, batch_size=len(batch))
        return loss

    def gated(self, batch: OmniBatch) -> tuple[Tensor, Float[Tensor, " b"]]:
        """Answers [B, answers] of the network with its paths weighed, and their cost, a share of the dense cost (of
        soft gates: as if they were the chances of paths being open); not of "choice"."""
        space, wished = self.network.space, self.logits(batch)
        if self.kind == "gumbel":
            opened = straight_through(wished.path_logits, temperature=1.0, noise=True)
        else:
            opened = wished.path_logits.sigmoid()
        encoded = encoded_probs(opened, space, space.question_mask(batch.present)) * batch.present
        openness = opened.new_ones(len(batch), space.depth, NUM_MODALITIES, NUM_MODALITIES)
        for i, path in enumerate(space.paths):
            openness[:, :, path.query.column, path.key.column] = opened[:, :, i]
        with torch.no_grad():
            tokens = self.network.encode(batch)
        answers = self.network.fuse(tokens, heads=["answer"], path_gates=openness).head_outputs["answer"]
        return answers, self._expected_cost(batch, opened, encoded)

    def _expected_cost(
        self, batch: OmniBatch, opened: Float[Tensor, "b l p"], encoded: Float[Tensor, "b m"]
    ) -> Float[Tensor, " b"]:
        """As if decisions were drawn independently; exact where all are 0 or 1."""
        space, counts = self.network.space, self.costs.count_tokens(batch)
        dense = self.costs(space, space.dense(batch.present.cpu()), counts)
        fixed = dense.heads - batch.present.sum(1).cpu() * self.costs.head_flops  # what follows the sum of the parts
        total = (fixed + dense.router).to(opened)
        for modality in space.modalities:
            tokens = counts[:, modality.column]
            each = self.costs.encoder_flops(modality, ComputeLevel.FULL, tokens) + self.costs.head_flops
            total = total + encoded[:, modality.column] * (each + self.costs.block_flops(space, modality, tokens)).to(
                opened
            )
        paths = self.costs.path_flops(space, counts).to(opened)  # [B, P]
        for i, path in enumerate(space.paths):
            both = encoded[:, path.query.column] * encoded[:, path.key.column]
            total = total + opened[:, :, i].sum(1) * paths[:, i] * both
        return total / (dense.total - dense.router).to(opened)

    def _choose(self, batch: OmniBatch) -> tuple[Tensor, Float[Tensor, " b"]]:
        space, counts = self.network.space, self.costs.count_tokens(batch)
        routes = [plan.route(space, batch.present) for plan in self.plans]
        questions, distinct, where = deduplicate_routes(batch, Route.cat(routes))
        with torch.no_grad():
            said = self.network(questions, heads=["answer"], route=distinct).head_outputs["answer"]
        said = said[where].unflatten(0, (len(routes), -1)).transpose(0, 1)
        dense = self.costs(space, space.dense(batch.present.cpu()), counts)
        costs = torch.stack([self.costs(space, r.to("cpu"), counts).total for r in routes], 1)
        shares = (costs / (dense.total - dense.router)[:, None]).to(said)
        gate = F.gumbel_softmax(self.logits(batch), tau=1.0, hard=True)  # [B, plans]
        return (said * gate[:, :, None]).sum(1), (shares * gate).sum(1)

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        if self.kind == "soft":
            answers, cost = self.gated(batch)
            target = batch.targets["answer_scores"]
            score = (answers.softmax(dim=1) * target).sum(1)
            correct = target.gather(1, answers.argmax(dim=1, keepdim=True)).squeeze(1)
            judged = RouteOutcome(score, correct, cost.float())
        else:
            judged = evaluate_route(self.network, batch, self.route(batch), costs=self.costs)
        reward = judged.answer_prob - self.config.penalty * judged.cost
        named = {"reward": reward, "accuracy": judged.correct, "cost": judged.cost}
        self.log_dict({f"validation/{k}": v.mean() for k, v in named.items()}, batch_size=len(batch))

    def route(self, batch: OmniBatch) -> Route:
        """What the trained gates run: the likeliest, and no encoder that no open path leads to. Soft gates run
        everything."""
        space, present = self.network.space, batch.present
        if self.kind == "soft":
            return space.dense(present)
        with torch.no_grad():
            wished = self.logits(batch)
        if self.kind == "choice":
            chosen = wished.argmax(dim=1)
            routes = [plan.route(space, present) for plan in self.plans]
            encoders = torch.stack([r.encoder_levels for r in routes])[chosen, torch.arange(len(batch))]
            return Route(encoders, torch.stack([r.interaction_mask for r in routes])[chosen, torch.arange(len(batch))])
        assert isinstance(wished, RouterLogits)
        opened = wished.path_logits > 0
        levels = torch.where(
            encoded_probs(opened.float(), space, space.question_mask(present)) > 0.5,
            int(ComputeLevel.FULL),
            int(ComputeLevel.SKIP),
        )
        return space.project(levels, opened, present)
