"""Depth allocation, a baseline: every question gets the same number of encoder layers, and a glance at its media says
which (ADMN, Wu et al. 2025, sections 3.2 and 3.3, arXiv 2502.07862).

The network is trained with LayerDrop. Then a controller learns on the frozen network, through the largest of its logits
with Gumbel noise and a straight-through gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omni_lab.batch import ComputeLevel, Modality, OmniBatch
from omni_lab.data.collate import collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.evaluation.contenders import PolicySet, cheapest_policy
from omni_lab.evaluation.flops import build_cost_model, encoder_polynomial
from omni_lab.evaluation.policies import EVAL_BATCH_SIZE, PolicyOutcome
from omni_lab.layers.layer_drop import DroppableLayer, allocate_layers
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.model import OmniModel
from omni_lab.rollout import initial_state
from omni_lab.routing.glance import Glance
from omni_lab.routing.plan_router import PlanRouter
from omni_lab.routing.router import LEAST_PENALTY
from omni_lab.training.content_study import ContentStudy
from omni_lab.training.fit import load_or_train
from omni_lab.training.recipes import TrainedModel, get_recipe
from omni_lab.training.sequential_recipes import held_out
from omni_lab.utils.progress import track_progress

LEARNING_RATE, BATCH_SIZE = 2e-3, 32


def droppable_layers(model: OmniModel) -> list[DroppableLayer]:
    """Those of the image encoder, then those of the audio encoder."""
    return [layer for layer in model.modules() if isinstance(layer, DroppableLayer)]


def top_layers(logits: Float[Tensor, "b k"], budget: int, *, noise: bool) -> Float[Tensor, "b k"]:
    """1 for the `budget` layers of the largest logits, else 0.

    noise: add Gumbel noise, and give the result the gradient of a softmax over the noisy logits (straight-through).
    """
    if noise:
        logits = logits - torch.empty_like(logits).exponential_().log()
    hard = torch.zeros_like(logits).scatter(1, logits.topk(budget, dim=1).indices, 1.0)
    soft = logits.softmax(1)
    return hard + soft - soft.detach() if noise else hard


@dataclass(frozen=True)
class DepthAllocator:
    """budget: layers of each question. router: gives a logit per layer, from the question and the glances."""

    budget: int
    router: PlanRouter
    glance: Glance

    def __call__(self, model: OmniModel, batch: OmniBatch, *, noise: bool = False) -> Float[Tensor, "b k"]:
        """Which layers run, see `top_layers`."""
        glances = self.glance(self.glance.raw(batch), batch.present)
        with torch.no_grad():
            state = initial_state(model, batch, model.encode_questions(batch), glances)
        least = torch.full((len(batch),), LEAST_PENALTY)
        return top_layers(self.router(state.question, state.present, glances, least), self.budget, noise=noise)

    def flops(self, batch: OmniBatch) -> Float[Tensor, " b"]:
        """Of the glances and the decision."""
        sizes = {m: torch.tensor([i.values[0].numel()] * len(batch)) for m, i in batch.inputs.items()}
        return self.glance.flops(sizes) + self.router.flops


def train_depth_allocator(network: TrainedModel, budget: int, *, steps: int, seed: int = 0) -> DepthAllocator:
    """On questions that the network was not trained on. Raises ValueError for a budget of no layer, or of too many."""
    model, dataset = network.model.eval(), held_out(network).data.dataset("train")
    layers = droppable_layers(model)
    if not 0 < budget <= len(layers):
        raise ValueError(f"budget must be from 1 to the {len(layers)} layers of the encoders: got {budget}")
    dataset.build_media()
    rng = np.random.default_rng(seed)

    def draw(size: int) -> OmniBatch:
        return own_entries(collate([dataset[int(i)] for i in rng.integers(len(dataset), size=size)]))

    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dim = next(iter(model.fusion.layers[0].cross.values())).attention.dim
        allocator = DepthAllocator(budget, PlanRouter(dim=dim, num_logits=len(layers)), Glance(model.space.modalities))
        sample = draw(EVAL_BATCH_SIZE)
        allocator.glance.fit(allocator.glance.raw(sample), sample.present)
        optimizer = torch.optim.Adam(allocator.router.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in track_progress(range(steps), f"{budget} of {len(layers)} layers", total=steps, unit="step"):
            batch = draw(BATCH_SIZE)
            with allocate_layers(layers, allocator(model, batch, noise=True)):
                logits = model(batch, heads=["answer"]).head_outputs["answer"]
            loss = answer_loss(logits, batch.targets["answer_scores"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for parameter, requires_grad in frozen:
        parameter.requires_grad_(requires_grad)
    return allocator


def own_entries(batch: OmniBatch) -> OmniBatch:
    """A copy of shared inputs for each sample, so that each can have its own layers."""
    inputs = {}
    for modality, i in batch.inputs.items():
        rows, every = i.entry_index.clamp(min=0), torch.arange(len(batch), device=i.entry_index.device)
        entry_index = torch.where(i.entry_index >= 0, every, -1)
        inputs[modality] = replace(i, values=i.values[rows], mask=i.mask[rows], entry_index=entry_index)
    return replace(batch, inputs=inputs)


@torch.inference_mode()
def evaluate_depth(
    model: OmniModel, dataset: VQADataset, questions: Sequence[int], allocator: DepthAllocator | None
) -> PolicyOutcome:
    """What a model answers, and its FLOPs, where an allocator decides; None: with all layers. questions: indices."""
    layers, costs, columns = droppable_layers(model), build_cost_model(model), []
    coefs, owners = _layer_coefs(model)
    dataset.build_media()
    chunks = [questions[start : start + EVAL_BATCH_SIZE] for start in range(0, len(questions), EVAL_BATCH_SIZE)]
    for chunk in track_progress(chunks, "depth", total=len(chunks), unit="batch"):
        batch = own_entries(collate([dataset[int(i)] for i in chunk]))
        keep = torch.ones(len(batch), len(layers)) if allocator is None else allocator(model, batch)
        with allocate_layers(layers, keep):
            logits = model(batch, heads=["answer"]).head_outputs["answer"]
        tokens = costs.count_tokens(batch)
        dense = costs(model.space, model.space.dense(batch.present), tokens)
        n = tokens[:, owners].double()  # [B, K]
        skipped = ((1 - keep) * (coefs[:, 0] + coefs[:, 1] * n + coefs[:, 2] * n**2)).sum(1)
        spent = dense.total - skipped + (0.0 if allocator is None else allocator.flops(batch))
        right = batch.targets["answer_scores"].gather(1, logits.argmax(1, keepdim=True))[:, 0].double()
        question = model.space.question_mask(batch.present)
        columns.append((right, spent, dense.cross_modal, dense.total, batch.present, question))
    correct, flops, cross, total, encoded, asked = (torch.cat(parts).numpy() for parts in zip(*columns, strict=True))
    return PolicyOutcome(correct, flops, cross, total, cross, encoded, np.zeros_like(encoded), asked)


def _layer_coefs(model: OmniModel) -> tuple[Float[Tensor, "k 3"], list[int]]:
    """FLOPs of each layer, coefficients of 1, n and n^2 for n tokens; and the column of its modality."""
    layers, level = droppable_layers(model), ComputeLevel.FULL
    found: list[Tensor] = []
    owners: list[int] = []
    for modality in (Modality.IMAGE, Modality.AUDIO):
        inside = {id(layer) for layer in model.encoders[modality.value].modules()}
        own = [k for k, layer in enumerate(layers) if id(layer) in inside]
        whole = encoder_polynomial(model, modality, level)
        for k in own:
            keep = torch.ones(1, len(layers))
            keep[0, k] = 0.0
            with allocate_layers(layers, keep):
                found.append(whole - encoder_polynomial(model, modality, level))
        owners += [modality.column] * len(own)
    return torch.stack(found), owners


def depth_operating_point(
    study: ContentStudy, fractions: Sequence[float], *, kept: float, steps: int
) -> tuple[PolicyOutcome, PolicyOutcome, float]:
    """On the test questions of a study: the cheapest depth that surely keeps a fraction of the accuracy on validation,
    all layers, and which fraction of them was chosen. The network is that of the study's world with LayerDrop."""
    recipe = get_recipe(f"{study.world}_layer_drop", study.profile, seed=study.network_seed)
    network = load_or_train(recipe, retrain=study.retrain)
    total = len(droppable_layers(network.model))
    allocators = [train_depth_allocator(network, max(1, round(f * total)), steps=steps) for f in fractions]
    validation, test = (study.data_of(split).dataset(split) for split in ("validation", "test"))
    some = validation.sample(len(test))
    outcomes = [evaluate_depth(network.model, validation, some, allocator) for allocator in allocators]
    dense = evaluate_depth(network.model, validation, some, None).correct
    best = cheapest_policy(kept, PolicySet.from_outcomes(outcomes), dense, validation.scenes[some])
    every = range(len(test))
    chosen, whole = (evaluate_depth(network.model, test, every, policy) for policy in (allocators[best], None))
    return chosen, whole, fractions[best]
