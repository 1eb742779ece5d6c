"""What a policy is worth: its routes for many questions, carried out, and what came of them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omni_lab.batch import Modality, OmniBatch
from omni_lab.data.collate import collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.metrics.pareto import RequiredModalityScore, paired_difference, required_modality_score
from omni_lab.model import OmniModel
from omni_lab.routing.cost import FlopBreakdown
from omni_lab.routing.route import ComputeLevel, Route
from omni_lab.utils.progress import track_progress

EVAL_BATCH_SIZE = 128  # questions at a time


@dataclass(frozen=True)
class PolicyOutcome:
    """All [n], a question each. correct: 1 or 0. total, cross_modal: FLOPs; dense_total, dense_cross_modal: what they
    would be if everything ran, without a controller. encoded, needed, carriers: [n, M]."""

    correct: np.ndarray
    flops: np.ndarray
    cross_modal_flops: np.ndarray
    dense_flops: np.ndarray
    dense_cross_modal_flops: np.ndarray
    encoded: np.ndarray
    required: np.ndarray
    question_mask: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def cost(self) -> float:
        """The share of the dense FLOPs that was executed."""
        return float(self.flops.sum() / self.dense_flops.sum())

    @property
    def cross_modal_cost(self) -> float:
        return float(self.cross_modal_flops.sum() / self.dense_cross_modal_flops.sum())

    @property
    def required_f1(self) -> RequiredModalityScore:
        return required_modality_score(self.encoded, self.required, self.question_mask)


SHARED_FIELDS = (
    "dense_flops",
    "dense_cross_modal_flops",
    "required",
    "question_mask",
)  # by all policies on the same questions
POLICY_FIELDS = ("correct", "flops", "cross_modal_flops", "encoded")


def save_outcomes(file: Path, outcomes: Mapping[str, PolicyOutcome], scenes: np.ndarray) -> None:
    """Outcomes of several policies on the same questions, one file for `numpy.load`, compressed by LZMA (FLOPs as
    float32); an outcome that goes by several names is kept once. scenes: [n]."""
    first = next(iter(outcomes.values()))
    names = {id(outcome): policy for policy, outcome in reversed([*outcomes.items()])}  # the first of each
    aliases = {policy: names[id(outcome)] for policy, outcome in outcomes.items()}
    once = [outcomes[policy] for policy in dict.fromkeys(aliases.values())]
    arrays = {name: getattr(first, name) for name in SHARED_FIELDS}
    arrays |= {name: np.stack([getattr(outcome, name) for outcome in once]) for name in POLICY_FIELDS}
    kept: dict[str, Any] = {"scenes": scenes, "aliases": np.array([*aliases.items()])}
    for name, array in arrays.items():  # few different values: what is kept is which of them
        values, which = np.unique(array.astype(np.float32), return_inverse=True)
        kept |= {
            f"{name}.values": values,
            f"{name}.which": which.reshape(array.shape).astype(np.min_scalar_type(len(values))),
        }
    part = file.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in kept.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    part.replace(file)


def load_outcomes(file: Path) -> tuple[dict[str, PolicyOutcome], np.ndarray]:
    """What `save_outcomes` wrote: the outcomes by policy, and scenes [n]."""
    with np.load(file) as stored:
        kept = dict(stored)
    arrays = {name: kept[f"{name}.values"][kept[f"{name}.which"]] for name in (*SHARED_FIELDS, *POLICY_FIELDS)}
    arrays |= {name: arrays[name].astype(bool) for name in ("encoded", "required", "question_mask")}
    shared, aliases, found = {name: arrays[name] for name in SHARED_FIELDS}, dict(kept["aliases"].tolist()), {}
    for number, policy in enumerate(dict.fromkeys(aliases.values())):
        found[policy] = PolicyOutcome(**shared, **{name: arrays[name][number] for name in POLICY_FIELDS})
    return {policy: found[same] for policy, same in aliases.items()}, kept["scenes"]


def cheapest_keeping(
    share: float,
    dense: PolicyOutcome,
    candidates: Mapping[str, PolicyOutcome],
    scenes: np.ndarray,
    *,
    resamples: int,
    seed: int = 0,
) -> str:
    """The name of the cheapest policy that keeps that share of the dense accuracy, at the lower end of its 95 %
    interval; if none does, of the one that keeps most. Meant for a validation split."""
    least = {}
    for name, outcome in candidates.items():
        lost = paired_difference(outcome.correct[None], dense.correct[None], scenes, resamples=resamples, seed=seed)
        least[name] = 1 + lost.low / dense.accuracy
    good = [name for name in candidates if least[name] >= share]
    return min(good, key=lambda n: candidates[n].cost) if good else max(least, key=lambda n: least[n])


class PolicyEvaluator:
    """Questions of a split on which policies are tried, in an order of its own: those about one scene together.

    questions: which of the dataset's; default all. present, needed, carriers: [n, M]. scenes, families: [n].
    """

    def __init__(self, network: OmniModel, dataset: VQADataset, *, questions: Sequence[int] | None = None) -> None:
        chosen = np.arange(len(dataset)) if questions is None else np.asarray(questions)
        self.order = chosen[np.argsort(dataset.scenes[chosen], kind="stable")]
        self.network = network
        self.dataset = dataset
        self.space = network.space
        self.costs = build_cost_model(network)
        self.present = torch.from_numpy(dataset.present[self.order])
        self.question_mask = self.space.question_mask(self.present)
        self.scenes = dataset.scenes[self.order]
        self.families = np.array(dataset.families)[self.order]
        known = dataset.store.families
        self.required = np.array([[m in known[f].required_modalities for m in Modality] for f in self.families])
        self.token_counts = torch.cat([self.costs.count_tokens(batch) for _, batch in self._batches("measuring")])
        self.dense = self.flops(self.space.dense(self.present))
        self._tried: dict[tuple[int, bytes], float] = {}  # of a question under a route: whether the answer was right

    def __len__(self) -> int:
        return len(self.order)

    def flops(self, route: Route) -> FlopBreakdown:
        """Of each question under its route, without a controller."""
        return self.costs(self.space, route, self.token_counts)

    def cost(self, route: Route) -> float:
        """The share of the dense FLOPs that the routes would execute."""
        return float(self.flops(route).total.sum() / self.dense.total.sum())

    def collect_routes(self, policy: Callable[[OmniBatch], Route], *, name: str | None = None) -> Route:
        """What a policy runs for all questions. name: for the progress bar, if any."""
        device = self._device
        with torch.inference_mode():
            parts = [policy(batch.to(device)).to("cpu") for _, batch in self._batches(name)]
        return Route.cat(parts)

    def evaluate(self, route: Route, *, router_flops: float = 0.0, name: str | None = None) -> PolicyOutcome:
        """Carries the routes out, but for those that were tried for the same question before. controller: FLOPs of
        deciding on one. name: for the progress bar, if any. Raises ValueError if there are not as many routes as
        questions."""
        if len(route) != len(self):
            raise ValueError(f"there must be a route for each of the {len(self)} questions: got {len(route)}")
        signatures = route.signature().to(torch.int8).numpy()
        tries = [(i, signature.tobytes()) for i, signature in enumerate(signatures)]
        new = np.array([i for i, one in enumerate(tries) if one not in self._tried], dtype=int)

        def answer(batch: OmniBatch, route: Route) -> Tensor:
            return self.network(batch, heads=["answer"], route=route).head_outputs["answer"]

        for chunk, batch in self._batches(name, new):
            right = self._right(partial(answer, route=route.select(torch.from_numpy(chunk)).to(self._device)), batch)
            self._tried |= {tries[i]: value for i, value in zip(chunk.tolist(), right.tolist(), strict=True)}
        return self._outcome(np.array([self._tried[one] for one in tries]), route, router_flops)

    def evaluate_soft(
        self, answer: Callable[[OmniBatch], Tensor], *, router_flops: float = 0.0, name: str | None = None
    ) -> PolicyOutcome:
        """Where nothing is skipped, and `answer` gives the logits."""
        right = [self._right(answer, batch) for _, batch in self._batches(name)]
        return self._outcome(torch.cat(right).numpy(), self.space.dense(self.present), router_flops)

    def _right(self, answer: Callable[[OmniBatch], Tensor], batch: OmniBatch) -> Float[Tensor, " b"]:
        """1 where the likeliest answer is right, else 0."""
        with torch.inference_mode():
            answers = answer(batch.to(self._device)).cpu()
        return batch.targets["answer_scores"].gather(1, answers.argmax(dim=1, keepdim=True)).squeeze(1).double()

    def _outcome(self, correct: np.ndarray, route: Route, controller: float) -> PolicyOutcome:
        flops = self.flops(route)
        return PolicyOutcome(
            correct=correct,
            flops=(flops.total + controller).numpy(),
            cross_modal_flops=flops.cross_modal.numpy(),
            dense_flops=self.dense.total.numpy(),
            dense_cross_modal_flops=self.dense.cross_modal.numpy(),
            encoded=(route.encoder_levels > ComputeLevel.SKIP).numpy(),
            required=self.required,
            question_mask=self.question_mask.numpy(),
        )

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _batches(self, name: str | None, which: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, OmniBatch]]:
        """Where in the order the questions of a batch stand, and the batch. which: not all of them."""
        places = np.arange(len(self)) if which is None else which
        chunks = [places[start : start + EVAL_BATCH_SIZE] for start in range(0, len(places), EVAL_BATCH_SIZE)]
        for chunk in chunks if name is None else track_progress(chunks, name, total=len(chunks), unit="batch"):
            yield chunk, collate([self.dataset[int(i)] for i in self.order[chunk]])
