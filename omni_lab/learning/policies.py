"""What a policy is worth: its routes for many questions, carried out, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omni_lab.data.module import QuestionDataset
from omni_lab.data.samples import collate
from omni_lab.evaluation.flops import cost_model
from omni_lab.evaluation.pareto import NeedsScore, needs_score
from omni_lab.modalities import Modality, OmniBatch
from omni_lab.model import OmniModel
from omni_lab.progress import track
from omni_lab.routing import Level, Route
from omni_lab.routing.cost import Flops

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


class Bench:
    """Questions of a split on which policies are tried, in an order of its own: those about one scene together.

    questions: which of the dataset's; default all. present, needed, carriers: [n, M]. scenes, families: [n].
    """

    def __init__(self, network: OmniModel, dataset: QuestionDataset, *, questions: Sequence[int] | None = None) -> None:
        chosen = np.arange(len(dataset)) if questions is None else np.asarray(questions)
        self.order = chosen[np.argsort(dataset.scenes[chosen], kind="stable")]
        self.network = network
        self.dataset = dataset
        self.space = network.space
        self.costs = cost_model(network)
        self.present = torch.from_numpy(dataset.present[self.order])
        self.carriers = self.space.carriers(self.present)
        self.scenes = dataset.scenes[self.order]
        self.families = np.array(dataset.families)[self.order]
        known = dataset.store.families
        self.needed = np.array([[m in known[f].needs for m in Modality] for f in self.families])
        self.counts = torch.cat([self.costs.tokens(batch) for batch in self._batches("measuring")])
        self.dense = self.flops(self.space.dense(self.present))

    def __len__(self) -> int:
        return len(self.order)

    def flops(self, route: Route) -> Flops:
        """Of each question under its route, without a controller."""
        return self.costs(self.space, route, self.counts)

    def cost(self, route: Route) -> float:
        """The share of the dense FLOPs that the routes would execute."""
        return float(self.flops(route).total.sum() / self.dense.total.sum())

    def routes(self, policy: Callable[[OmniBatch], Route], *, name: str = "deciding") -> Route:
        """What a policy runs for all questions. name: for the progress bar."""
        device = self._device
        with torch.inference_mode():
            parts = [policy(batch.to(device)).to("cpu") for batch in self._batches(name)]
        return Route(torch.cat([p.encoders for p in parts]), torch.cat([p.interactions for p in parts]))

    def run(self, route: Route, *, controller: float = 0.0, name: str | None = "running") -> Outcome:
        """Carries the routes out. controller: FLOPs of deciding on one. name: for the progress bar, if any. Raises
        ValueError if there are not as many routes as questions."""
        if len(route) != len(self):
            raise ValueError(f"there must be a route for each of the {len(self)} questions: got {len(route)}")
        correct: list[Tensor] = []
        for batch in self._batches(name):
            start = TOGETHER * len(correct)
            taken = route.of(torch.arange(start, start + len(batch))).to(self._device)
            with torch.inference_mode():
                answers = self.network(batch.to(self._device), heads=["answer"], route=taken).heads["answer"].cpu()
            scores = batch.targets["answer_scores"]
            correct.append(scores.gather(1, answers.argmax(dim=1, keepdim=True)).squeeze(1))
        flops = self.flops(route)
        return Outcome(
            correct=torch.cat(correct).double().numpy(),
            total=(flops.total + controller).numpy(),
            cross_modal=flops.cross_modal.numpy(),
            dense_total=self.dense.total.numpy(),
            dense_cross_modal=self.dense.cross_modal.numpy(),
            encoded=(route.encoders > Level.SKIP).numpy(),
            needed=self.needed,
            carriers=self.carriers.numpy(),
        )

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _batches(self, name: str | None) -> Iterator[OmniBatch]:
        chunks = [self.order[start : start + TOGETHER] for start in range(0, len(self.order), TOGETHER)]
        for chunk in chunks if name is None else track(chunks, name, total=len(chunks), unit="batch"):
            yield collate([self.dataset[int(i)] for i in chunk])
