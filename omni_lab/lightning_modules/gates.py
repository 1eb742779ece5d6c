"""LitGates: gates trained by backpropagation through the network, as baselines of the router's policy gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, OmniBatch
from omni_lab.config.schema import RouterConfig
from omni_lab.lightning_modules.router import LitRouterBase, RouteOutcome, deduplicate_routes, relative_costs
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.model import OmniModel
from omni_lab.routing.baselines import StaticRoute
from omni_lab.routing.cost import CostModel
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace
from omni_lab.routing.router import Router


def straight_through(logits: Tensor, *, temperature: float, noise: bool) -> Tensor:
    """Hard gates, 0 or 1, with the gradient of a sigmoid.

    noise: sample them, with logistic noise (Gumbel straight-through, Jang et al. 2017, section 2.2, for two classes).
    """
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + uniform.log() - (1 - uniform).log()
    soft = (logits / temperature).sigmoid()
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft


def encoded_probs(
    path_gates: Float[Tensor, "b l p"], space: RouteSpace, question_mask: Bool[Tensor, "b m"]
) -> Float[Tensor, "b m"]:
    """Probability that each modality is encoded: it carries the question, or a chain of at most `space.depth` open
    paths leads from the question to it."""
    encoded = question_mask.to(path_gates.dtype)
    for _ in range(space.depth):
        skipped = 1 - encoded
        for i, path in enumerate(space.paths):
            is_open = 1 - (1 - path_gates[:, :, i]).prod(dim=1)  # in any layer
            is_key = torch.arange(NUM_MODALITIES, device=skipped.device) == path.key.column
            skipped = skipped * torch.where(is_key, 1 - (encoded[:, path.query.column] * is_open)[:, None], 1.0)
        encoded = 1 - skipped
    return encoded


class LitGates(LitRouterBase):
    """Loss: cross-entropy + penalty x cost, with gradients through the frozen network. Estimators:

    "gumbel": every path has a straight-through gate; inference runs, in full, the encoders that open paths lead to.
    "soft": paths are multiplied by sigmoids; nothing is skipped.
    "choice": a straight-through softmax picks one of several static routes per question (the idea of DynMM's
    modality-level gate, Xue and Marculescu, CVPR workshops 2023, section 3.1).

    All have a router's inputs and layer sizes. "gumbel" encodes every modality in training and gates paths only. When
    unreachable modalities were skipped in training too, or the reward of `LitRouter` replaced the cross-entropy, gates
    under a penalty closed modalities and never reopened them, because a skipped modality has no gradient.
    """

    estimators = ("gumbel", "soft", "choice")
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
        router: Router,
        config: RouterConfig,
        *,
        costs: CostModel,
        static_routes: Sequence[StaticRoute] = (),
        seed: int = 0,
    ) -> None:
        """static_routes: what "choice" chooses from. Raises ValueError if their number does not suit that."""
        super().__init__(model, router, config, costs=costs, seed=seed)
        self.estimator = config.estimator
        if (self.estimator == "choice") != (len(static_routes) >= 2):
            raise ValueError(
                "'choice' needs at least two static routes, the other estimators none: "
                f"got {self.estimator!r} with {len(static_routes)}"
            )
        self.static_routes = list(static_routes)

    def logits(self, batch: OmniBatch) -> Any:
        """The router's `RouterLogits`; of "choice" logits [B, static routes]."""
        router = self.router.raw_logits if self.estimator == "choice" else self.router
        return router(self.question_embeddings(batch), batch.present)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        logits, cost = self._forward_choice(batch) if self.estimator == "choice" else self.forward_gated(batch)
        penalty = self.penalty.at(self.global_step)
        loss = answer_loss(logits, batch.targets["answer_scores"]) + penalty * cost.mean()
        self.penalty.observe(float(cost.detach().mean()))
        metrics: dict[str, Any] = {"train/loss": loss, "train/cost": cost.mean(), "train/penalty": penalty}
        self.log_dict(metrics, on_step=True, on_epoch=False, batch_size=len(batch))
        return loss

    def forward_gated(self, batch: OmniBatch) -> tuple[Float[Tensor, "b a"], Float[Tensor, " b"]]:
        """The network's answer logits with gated paths, and the relative cost; of soft gates the expected cost if they
        were probabilities of paths being open. Not of "choice"."""
        space, logits = self.network.space, self.logits(batch)
        if self.estimator == "gumbel":
            gates = straight_through(logits.path_logits, temperature=1.0, noise=True)
        else:
            gates = logits.path_logits.sigmoid()
        encoded = encoded_probs(gates, space, space.question_mask(batch.present)) * batch.present
        path_gates = gates.new_ones(len(batch), space.depth, NUM_MODALITIES, NUM_MODALITIES)
        for i, path in enumerate(space.paths):
            path_gates[:, :, path.query.column, path.key.column] = gates[:, :, i]
        with torch.no_grad():
            tokens = self.network.encode(batch)
        answers = self.network.fuse(tokens, heads=["answer"], path_gates=path_gates).head_outputs["answer"]
        return answers, self._expected_cost(batch, gates, encoded)

    def _expected_cost(
        self, batch: OmniBatch, gates: Float[Tensor, "b l p"], encoded: Float[Tensor, "b m"]
    ) -> Float[Tensor, " b"]:
        """Expected relative cost if all decisions were independent; exact where all are 0 or 1."""
        space, costs, counts = self.network.space, self.costs, self.costs.count_tokens(batch)
        dense = costs(space, space.dense(batch.present.cpu()), counts)
        fixed = dense.heads - batch.present.sum(1).cpu() * costs.head_flops[1]  # the part of no single modality
        total = (fixed + dense.router).to(gates)
        for modality in space.modalities:
            tokens = counts[:, modality.column]
            each = costs.encoder_flops(modality, ComputeLevel.FULL, tokens) + costs.head_flops[1]
            each = each + costs.block_flops(space, modality, tokens)
            total = total + encoded[:, modality.column] * each.to(gates)
        path_flops = costs.path_flops(space, counts).to(gates)  # [B, P]
        for i, path in enumerate(space.paths):
            both_encoded = encoded[:, path.query.column] * encoded[:, path.key.column]
            total = total + gates[:, :, i].sum(1) * path_flops[:, i] * both_encoded
        return total / (dense.total - dense.router).to(gates)

    def _forward_choice(self, batch: OmniBatch) -> tuple[Float[Tensor, "b a"], Float[Tensor, " b"]]:
        """Answer logits and relative cost under the static route that the gate picks."""
        space = self.network.space
        routes = [static.route(space, batch.present) for static in self.static_routes]
        unique_samples, unique_routes, index = deduplicate_routes(batch, Route.cat(routes))
        with torch.no_grad():
            answers = self.network(unique_samples, heads=["answer"], route=unique_routes).head_outputs["answer"]
        answers = answers[index].unflatten(0, (len(routes), -1)).transpose(0, 1)  # [B, static routes, A]
        costs = relative_costs(self.costs, space, batch, routes).to(answers)
        gate = F.gumbel_softmax(self.logits(batch), tau=1.0, hard=True)  # [B, static routes]
        return (answers * gate[:, :, None]).sum(1), (costs * gate).sum(1)

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        if self.estimator == "soft":
            logits, cost = self.forward_gated(batch)
            outcome = RouteOutcome.from_logits(logits, batch.targets["answer_scores"], cost)
        else:
            outcome = self.evaluate_route(batch, self.route(batch))
        reward = outcome.answer_prob - self.config.penalty * outcome.cost
        metrics = {"reward": reward, "accuracy": outcome.correct, "cost": outcome.cost}
        self.log_dict({f"validation/{k}": v.mean() for k, v in metrics.items()}, batch_size=len(batch))

    def route(self, batch: OmniBatch) -> Route:
        """The most probable route of the trained gates, without the encoders that no open path leads to; of soft gates
        the dense route."""
        space, present = self.network.space, batch.present
        if self.estimator == "soft":
            return space.dense(present)
        with torch.no_grad():
            logits = self.logits(batch)
        if self.estimator == "choice":
            routes = Route.cat([static.route(space, present) for static in self.static_routes])
            return routes.select(logits.argmax(dim=1) * len(batch) + torch.arange(len(batch), device=logits.device))
        path_mask = logits.path_logits > 0
        encoded = encoded_probs(path_mask.float(), space, space.question_mask(present)) > 0.5
        return space.project(torch.where(encoded, int(ComputeLevel.FULL), int(ComputeLevel.SKIP)), path_mask, present)
