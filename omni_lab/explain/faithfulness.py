"""Are the maps true? Against the boxes and word times that worlds know, by taking away what a map calls important, and
against a network that knows nothing."""

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
    """hit: whether the largest value lies on what the question asks about (the pointing game, Zhang et al. 2018).
    deletion: mean probability of the answer while tokens go, the most important first; low if the map is true.
    insertion: while they come back, in the same order; high (Petsiuk et al. 2018)."""

    hit: float
    deletion: float
    insertion: float


def cells_in_box(box: Sequence[float], grid: tuple[int, int], stride: int) -> Bool[Tensor, " n"]:
    """Cells whose centre lies in a box (left, top, right, bottom) in pixels."""
    left, top, right, bottom = box
    y, x = torch.meshgrid(*(torch.arange(n) * stride + stride / 2 for n in grid), indexing="ij")
    return ((x >= left) & (x <= right) & (y >= top) & (y <= bottom)).flatten()


def spans_in_time(start: float, end: float, count: int, seconds: float) -> Bool[Tensor, " n"]:
    """Tokens of so many seconds each whose middle lies between two times."""
    middles = (torch.arange(count) + 0.5) * seconds
    return (middles >= start) & (middles <= end)


def baseline_map(name: str, count: int, grid: tuple[int, int] | None, rng: np.random.Generator) -> Float[Tensor, " n"]:
    """What needs no model: "random" values, or nearness to the "centre" of the picture or the sound."""
    if name == "random":
        return torch.from_numpy(rng.random(count)).float()
    height, width = grid or (1, count)
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return -(y.square() + x.square()).sqrt().flatten()


def deletion_insertion_curves(
    altered: PerturbedModel, found: Float[Tensor, " n"], answer: int, *, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the answer, [steps + 1] each: while tokens go, and while they come, the most important first."""
    windows = token_windows(altered.model, altered.modality, altered.values)
    order = found.argsort(descending=True, stable=True).tolist()
    cuts = [round(i * len(order) / steps) for i in range(steps + 1)]
    variants = [without_tokens(altered.values, windows, order[:cut]) for cut in cuts]
    variants += [without_tokens(altered.values, windows, order[cut:]) for cut in cuts]
    with torch.inference_mode():
        said = altered(torch.cat(variants)).softmax(1)[:, answer].double().numpy()
    return said[: steps + 1], said[steps + 1 :]


def score_faithfulness(
    model: OmniModel,
    batch: OmniBatch,
    modality: Modality,
    truth: Bool[Tensor, " n"],
    *,
    methods: Sequence[str],
    rng: np.random.Generator,
    steps: int = 8,
) -> Mapping[str, FaithfulnessScores]:
    """Every method and both baselines on one question, all of the answer that the model gives."""
    altered = PerturbedModel(model, batch, modality)
    with torch.inference_mode():
        answer = int(altered(altered.values).argmax())
    grid = getattr(model.encoders[modality.value], "grid", None)
    judged = {}
    for name in (*methods, *BASELINES):
        if name in BASELINES:
            found = baseline_map(name, len(truth), grid, rng)
        else:
            found = explain(model, batch, modality, name, answer=answer)[: len(truth)]
        gone, back = deletion_insertion_curves(altered, found, answer, steps=steps)
        judged[name] = FaithfulnessScores(float(truth[found.argmax()]), float(gone.mean()), float(back.mean()))
    return judged


def randomize_weights(model: OmniModel, *, parts: Callable[[str], bool] = bool, seed: int = 0) -> OmniModel:
    """A copy in which the entries of every parameter whose name `parts` accepts are shuffled: it has the same weights
    and knows nothing (the model parameter randomisation test, Adebayo et al. 2018)."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if parts(name):
                weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
    return twin


def rank_correlation(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Spearman's, 1 where both put the tokens in the same order; 0 where one has no order."""
    return float(spearman_corrcoef(first.double(), second.double()).nan_to_num())
