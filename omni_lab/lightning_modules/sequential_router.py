"""LitSequentialRouter: policy-gradient training of a `SequentialRouter` over trajectories, on a frozen network."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality, OmniBatch
from omni_lab.config.schema import RouterConfig
from omni_lab.lightning_modules.router import LitRouterBase, RouteOutcome, deduplicate_routes
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.model import OmniModel
from omni_lab.rollout import initial_state
from omni_lab.routing.cost import CostModel
from omni_lab.routing.policy_gradient import centred_advantages, policy_loss
from omni_lab.routing.route import RouteSpace
from omni_lab.routing.router import LEAST_PENALTY
from omni_lab.routing.sequential import (
    NUM_LEVELS,
    RouterState,
    SequentialRouter,
    Trajectory,
    check_actions,
)


class LitSequentialRouter(LitRouterBase):
    """REINFORCE over trajectories: reward = answer probability - penalty x cost, minus the mean of the trajectories of
    the same question. The entropy bonus falls to zero. The early head is trained beside it, on random states.

    Batches hold precomputed tokens at every level, and raw "glances" [B, M, G] among the targets. The network is
    frozen, and no submodule. Raises ValueError if the router's actions or conditioning are not those of model and
    configuration.
    """

    estimators = ("sequential",)
    least_penalty = LEAST_PENALTY
    columns: ClassVar[dict[str, str]] = {
        "reward": "train/reward",
        "cost": "train/cost",
        "steps": "train/steps",
        "early loss": "train/early_loss",
        "validation reward": "validation/reward",
        "accuracy": "validation/accuracy",
        "validation cost": "validation/cost",
    }

    def __init__(
        self,
        model: OmniModel,
        router: SequentialRouter,
        config: RouterConfig,
        *,
        costs: CostModel,
        glance_flops: float,
        seed: int = 0,
    ) -> None:
        """glance_flops: of a sample with every modality."""
        super().__init__(model, router, config, costs=costs, seed=seed)
        check_actions(router.actions, model.space)
        self.check_conditioning()
        self.glance_flops = glance_flops
        self._validation: list[RouteOutcome] = []

    def start(self, batch: OmniBatch) -> tuple[RouterState, Float[Tensor, "b m l d"]]:
        """The state before the first step, and the mean tokens of every modality at every level."""
        with torch.no_grad():
            questions = self.network.encode_questions(batch)
            glances = self.router.glance(batch.targets["glances"], batch.present)
            state = initial_state(self.network, batch, questions, glances)
            return state, summaries_by_level(batch, self.network.space, state.question.shape[1])

    def outcome(self, batch: OmniBatch, trajectory: Trajectory) -> RouteOutcome:
        """Runs the network at the end of G trajectories for each of B samples, [G * B], each distinct route once."""
        unique, routes, index = deduplicate_routes(batch, trajectory.route)
        with torch.no_grad():
            logits = self.network(unique, heads=["answer"], route=routes).head_outputs["answer"]
        answers = RouteOutcome.from_logits(logits, unique.targets["answer_scores"], torch.zeros(len(unique)))
        cost = trajectory_costs(
            self.costs,
            self.network.space,
            batch,
            trajectory,
            step=self.router.step_flops,
            glance=self.glance_flops,
        )
        return RouteOutcome(answers.answer_prob[index], answers.correct[index], cost.to(answers.correct.device))

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        group, progress = self.config.group_size, min(1.0, self.global_step / self.steps)
        penalty, condition = self.training_penalty(len(batch))
        state, summaries = self.start(batch)
        sample = torch.arange(len(batch), device=self.device).repeat(group)

        def look(samples: Tensor, modality: Modality, level: ComputeLevel) -> Tensor:
            return summaries[sample[samples], modality.column, level]

        repeated = None if condition is None else condition.repeat(group)
        trajectory, _ = self.router.run(state.repeat(group), look, penalty=repeated, greedy=False)
        outcome = self.outcome(batch, trajectory)
        answer_prob, cost = (x.unflatten(0, (group, -1)) for x in (outcome.answer_prob, outcome.cost))
        rewards = answer_prob - penalty * cost
        self.penalty.observe(float(cost.mean()))
        log_prob, entropy = (x.unflatten(0, (group, -1)) for x in (trajectory.log_prob, trajectory.entropy))
        entropy_coef = self.config.entropy_coef * (1 - progress)
        loss = policy_loss(log_prob, centred_advantages(rewards), entropy, entropy_coef=entropy_coef)
        early = self.early_loss(batch, state, summaries)
        metrics = {
            "train/reward": rewards.mean(),
            "train/cost": cost.mean(),
            "train/steps": trajectory.steps.float().mean(),
            "train/entropy": entropy.mean(),
            "train/early_loss": early,
        }
        self.log_dict(metrics, on_step=True, on_epoch=False, batch_size=len(batch))
        return loss + early

    def early_loss(self, batch: OmniBatch, state: RouterState, summaries: Float[Tensor, "b m l d"]) -> Tensor:
        """Cross-entropy of the early head where every encoder ran at a random level, or not at all."""
        for modality in self.network.space.modalities:
            levels = self.network.space.allowed_levels(modality)
            able = state.present[:, modality.column] & ~state.question_mask[:, modality.column]
            drawn = torch.randint(len(levels), (len(batch),), device=self.device)
            for k, level in enumerate(levels):
                samples = ((drawn == k) & able).nonzero().squeeze(1)
                if level is not ComputeLevel.SKIP and len(samples):
                    state = state.after(samples, modality, level, summaries[samples, modality.column, level])
        return answer_loss(self.router.early_answer(state), batch.targets["answer_scores"])

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        state, summaries = self.start(batch)
        penalty, condition = self.validation_penalty(len(batch))

        def look(samples: Tensor, modality: Modality, level: ComputeLevel) -> Tensor:
            return summaries[samples, modality.column, level]

        outcome = self.outcome(batch, self.router.run(state, look, penalty=condition)[0])
        self._validation.append(outcome)
        self.log("validation/reward", (outcome.answer_prob - penalty * outcome.cost).mean(), batch_size=len(batch))

    def on_validation_epoch_end(self) -> None:
        _, correct, cost = (torch.cat(values) for values in zip(*self._validation, strict=True))
        self.log("validation/accuracy", correct.mean())
        self.log("validation/cost", cost.mean())
        self._validation.clear()


def summaries_by_level(batch: OmniBatch, space: RouteSpace, dim: int) -> Float[Tensor, "b m l d"]:
    """Mean tokens of every modality at every level, from precomputed tokens; zero where there are none."""
    table = torch.zeros(len(batch), NUM_MODALITIES, NUM_LEVELS, dim, device=batch.present.device)
    for modality, inputs in batch.inputs.items():
        if not inputs.is_encoded:
            continue
        here = inputs.entry_index >= 0
        weight = inputs.mask[:, :, None].float()
        for level, values in (*inputs.lower_values.items(), (ComputeLevel.FULL, inputs.values)):
            means = (values * weight).sum(1) / weight.sum(1).clamp(min=1)
            table[here, modality.column, level] = means[inputs.entry_index[here]]
    return table


def trajectory_costs(
    costs: CostModel, space: RouteSpace, batch: OmniBatch, trajectory: Trajectory, *, step: float, glance: float
) -> Float[Tensor, " n"]:
    """FLOPs of G trajectories of each of B samples, [G * B], as a fraction of the dense cost, without a router."""
    tokens = costs.count_tokens(batch)
    dense = costs(space, space.dense(batch.present.cpu()), tokens)
    times = len(trajectory.steps) // len(batch)
    on_cpu = trajectory.to("cpu")
    looked = torch.full((len(on_cpu.steps),), glance, dtype=torch.double)
    parts = costs.of_trajectory(space, on_cpu, tokens.repeat(times, 1), step=step, glances=looked)
    return (parts.total / dense.total.repeat(times)).float()
