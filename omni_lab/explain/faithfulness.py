"""Whether explanation maps are faithful: the pointing game, deletion and insertion, and randomised weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from omni_lab.batch import Modality, OmniBatch
from omni_lab.explain.maps import PerturbedModel, explain, token_windows, without_tokens
from omni_lab.model import OmniModel

BASELINES = ("random", "centre")


class FaithfulnessScores(NamedTuple):
    """Of one map of one question.

    hit: 1 if the highest value lies on the evidence, else 0 (the pointing game, Zhang et al. 2018).
    deletion: mean probability of the answer while tokens are removed, the most important first; low is faithful.
    insertion: the same while they are added in that order; high is faithful (Petsiuk et al. 2018).
    """

    hit: float
    deletion: float
    insertion: float


def cells_in_box(box: Sequence[float], grid: tuple[int, int], stride: int) -> Bool[Tensor, " n"]:
    """Cells whose centre lies in a box (left, top, right, bottom) in pixels."""
    left, top, right, bottom = box
    y, x = torch.meshgrid(*(torch.arange(n) * stride + stride / 2 for n in grid), indexing="ij")
    return ((x >= left) & (x <= right) & (y >= top) & (y <= bottom)).flatten()


def spans_in_time(start: float, end: float, count: int, seconds: float) -> Bool[Tensor, " n"]:
    """Which of `count` tokens, each of so many seconds, have their centre between two times."""
    centres = (torch.arange(count) + 0.5) * seconds
    return (centres >= start) & (centres <= end)


def baseline_map(name: str, count: int, grid: tuple[int, int] | None, rng: np.random.Generator) -> Float[Tensor, " n"]:
    """A map without a model: "random", or "centre", higher near the centre of the image or audio."""
    if name == "random":
        return torch.from_numpy(rng.random(count)).float()
    height, width = grid or (1, count)
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return -(y.square() + x.square()).sqrt().flatten()


def deletion_insertion_curves(
    perturbed: PerturbedModel, importance: Float[Tensor, " n"], answer: int, *, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two curves [steps + 1] of the answer's probability: tokens are removed, then added, the most important first."""
    windows = token_windows(perturbed.model, perturbed.modality, perturbed.values)
    order = importance.argsort(descending=True, stable=True).tolist()
    cuts = [round(i * len(order) / steps) for i in range(steps + 1)]
    variants = [without_tokens(perturbed.values, windows, order[:cut]) for cut in cuts]
    variants += [without_tokens(perturbed.values, windows, order[cut:]) for cut in cuts]
    with torch.inference_mode():
        probabilities = perturbed(torch.cat(variants)).softmax(1)[:, answer].double().numpy()
    return probabilities[: steps + 1], probabilities[steps + 1 :]


def score_faithfulness(
    model: OmniModel,
    batch: OmniBatch,
    modality: Modality,
    evidence: Bool[Tensor, " n"],
    *,
    methods: Sequence[str],
    rng: np.random.Generator,
    steps: int = 8,
) -> Mapping[str, FaithfulnessScores]:
    """Scores of every method and of the baseline maps for the model's own answer to one question.

    evidence: True for the tokens that the question is about.
    """
    perturbed = PerturbedModel(model, batch, modality)
    with torch.inference_mode():
        answer = int(perturbed(perturbed.values).argmax())
    grid = getattr(model.encoders[modality.value], "grid", None)
    scores = {}
    for name in (*methods, *BASELINES):
        if name in BASELINES:
            importance = baseline_map(name, len(evidence), grid, rng)
        else:
            importance = explain(model, batch, modality, name, answer=answer)[: len(evidence)]
        deletion, insertion = deletion_insertion_curves(perturbed, importance, answer, steps=steps)
        hit = float(evidence[importance.argmax()])
        scores[name] = FaithfulnessScores(hit, float(deletion.mean()), float(insertion.mean()))
    return scores


def randomize_weights(model: OmniModel, *, parts: Callable[[str], bool] = bool, seed: int = 0) -> OmniModel:
    """A copy for the model parameter randomisation test (Adebayo et al. 2018): the entries of every parameter are
    shuffled, so that it has the same weights but no knowledge. parts: selects parameters by name; default all."""
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if parts(name):
                weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
    return copied


def rank_correlation(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Spearman's; 0 if all values of one are equal."""
    return float(spearman_corrcoef(first.double(), second.double()).nan_to_num())
