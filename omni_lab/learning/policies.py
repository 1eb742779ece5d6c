"""What a policy is worth: its routes for a whole split, carried out, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from omni_lab.data.module import QuestionDataset
from omni_lab.data.samples import collate
from omni_lab.evaluation.pareto import NeedsScore, needs_score
from omni_lab.modalities import Modality, OmniBatch
from omni_lab.model import OmniModel
from omni_lab.progress import track
from omni_lab.routing import Level, Route
from omni_lab.routing.cost import CostModel

TOGETHER = 128  # questions at a time


@dataclass(frozen=True)
class Outcome:
    """All [n], a question each. correct: 1 or 0. total, cross_modal: FLOPs; dense_total, dense_cross_modal: what they
    would be if everything ran, without a controller. encoded, needed, carriers: [n, M]."""

    correct: np.ndarray
    total: np.ndarray
    cross_modal: np.ndarray
    dense_total: np.ndarray
    dense_cross_modal: np.ndarray
    encoded: np.ndarray
    needed: np.ndarray
    carriers: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def cost(self) -> float:
        """The share of the dense FLOPs that was executed."""
        return float(self.total.sum() / self.dense_total.sum())

    @property
    def cross_modal_cost(self) -> float:
        return float(self.cross_modal.sum() / self.dense_cross_modal.sum())

    @property
    def needs(self) -> NeedsScore:
        return needs_score(self.encoded, self.needed, self.carriers)


def in_order(dataset: QuestionDataset, questions: Sequence[int] | None = None) -> list[list[int]]:
    """The questions (default all) in batches of `TOGETHER`, those about one scene together."""
    chosen = np.arange(len(dataset)) if questions is None else np.asarray(questions)
    chosen = chosen[np.argsort(dataset.scenes[chosen], kind="stable")]
    return [chosen[start : start + TOGETHER].tolist() for start in range(0, len(chosen), TOGETHER)]


def presence(dataset: QuestionDataset, batches: Sequence[Sequence[int]]) -> Bool[Tensor, "n m"]:
    """Which modalities the questions of the batches have, one after the other."""
    return torch.from_numpy(dataset.present[np.concatenate(batches)])


def decide_all(
    policy: Callable[[OmniBatch], Route],
    dataset: QuestionDataset,
    batches: Sequence[Sequence[int]],
    *,
    device: torch.device | str = "cpu",
) -> Route:
    """What a policy runs for all questions of the batches, one after the other. device: where it works."""
    with torch.inference_mode():
        routes = [policy(collate([dataset[i] for i in batch]).to(device)).to("cpu") for batch in batches]
    return Route(torch.cat([r.encoders for r in routes]), torch.cat([r.interactions for r in routes]))


def carry_out(
    network: OmniModel,
    route: Route,
    dataset: QuestionDataset,
    batches: Sequence[Sequence[int]],
    *,
    costs: CostModel,
    name: str = "policy",
) -> Outcome:
    """Runs the network under the routes [n] of all questions of the batches. costs: with the controller's own FLOPs if
    the routes are a controller's. Raises ValueError if there are not as many routes as questions."""
    count = sum(len(batch) for batch in batches)
    if len(route) != count:
        raise ValueError(f"there must be a route for each of the {count} questions: got {len(route)}")
    device, space = next(network.parameters()).device, network.space
    correct, totals, cross, dense_totals, dense_cross = [], [], [], [], []
    start = 0
    for numbers in track(batches, name, total=len(batches), unit="batch"):
        samples: Int[Tensor, " b"] = torch.arange(start, start + len(numbers))
        start += len(numbers)
        batch, taken = collate([dataset[i] for i in numbers]), route.of(samples)
        with torch.inference_mode():
            answers = network(batch.to(device), heads=["answer"], route=taken.to(device)).heads["answer"].cpu()
        right = batch.targets["answer_scores"].gather(1, answers.argmax(dim=1, keepdim=True)).squeeze(1)
        counts = costs.tokens(batch)
        flops, dense = (costs(space, r, counts) for r in (taken, space.dense(batch.present)))
        correct.append(right)
        totals.append(flops.total)
        cross.append(flops.cross_modal)
        dense_totals.append(dense.total - dense.controller)
        dense_cross.append(dense.cross_modal)
    known = [dataset.families[i] for i in np.concatenate(batches)]
    needs = {family: dataset.store.families[family].needs for family in set(known)}
    present = presence(dataset, batches)
    names = ("correct", "total", "cross_modal", "dense_total", "dense_cross_modal")
    parts = (correct, totals, cross, dense_totals, dense_cross)
    return Outcome(
        **{name: torch.cat(part).double().numpy() for name, part in zip(names, parts, strict=True)},
        encoded=(route.encoders > Level.SKIP).numpy(),
        needed=np.array([[m in needs[f] for m in Modality] for f in known]),
        carriers=space.carriers(present).numpy(),
    )
