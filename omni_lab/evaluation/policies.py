"""Runs routing policies on many questions, and keeps their answers and FLOPs."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from omni_lab.rollout import answer_sequentially
from omni_lab.routing.cost import FlopBreakdown
from omni_lab.routing.route import ComputeLevel, Route
from omni_lab.routing.sequential import SequentialRouter, Trajectory
from omni_lab.utils.progress import track_progress

EVAL_BATCH_SIZE = 128
SHARED_FIELDS = ("dense_flops", "dense_cross_modal_flops", "required", "question_mask")  # equal for all policies
POLICY_FIELDS = ("correct", "flops", "cross_modal_flops", "encoded")


@dataclass(frozen=True)
class PolicyOutcome:
    """What a policy did on n questions. The dense FLOPs are those of the whole model, without a router."""

    correct: np.ndarray  # [n], 1 for a right answer, else 0
    flops: np.ndarray  # [n], including the router
    cross_modal_flops: np.ndarray  # [n]
    dense_flops: np.ndarray  # [n]
    dense_cross_modal_flops: np.ndarray  # [n]
    encoded: np.ndarray  # [n, M] bool
    required: np.ndarray  # [n, M] bool
    question_mask: np.ndarray  # [n, M] bool

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def cost(self) -> float:
        """Executed FLOPs as a fraction of the dense FLOPs."""
        return float(self.flops.sum() / self.dense_flops.sum())

    @property
    def cross_modal_cost(self) -> float:
        return float(self.cross_modal_flops.sum() / self.dense_cross_modal_flops.sum())

    @property
    def required_f1(self) -> RequiredModalityScore:
        return required_modality_score(self.encoded, self.required, self.question_mask)


def save_outcomes(file: Path, outcomes: Mapping[str, PolicyOutcome], scenes: np.ndarray) -> None:
    """Writes the outcomes of several policies on the same questions to one file for `numpy.load`, compressed by LZMA,
    numbers as float32. An outcome with several names is stored once. scenes: [n]."""
    first = next(iter(outcomes.values()))
    names = {id(outcome): policy for policy, outcome in reversed([*outcomes.items()])}  # the first name of each
    aliases = {policy: names[id(outcome)] for policy, outcome in outcomes.items()}
    distinct = [outcomes[policy] for policy in dict.fromkeys(aliases.values())]
    columns = {name: getattr(first, name) for name in SHARED_FIELDS}
    columns |= {name: np.stack([getattr(outcome, name) for outcome in distinct]) for name in POLICY_FIELDS}
    arrays: dict[str, Any] = {"scenes": scenes, "aliases": np.array([*aliases.items()])}
    for name, column in columns.items():  # of few distinct values: store these, and an index into them
        values, index = np.unique(column.astype(np.float32), return_inverse=True)
        arrays[f"{name}.values"] = values
        arrays[f"{name}.which"] = index.reshape(column.shape).astype(np.min_scalar_type(len(values)))
    part = file.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    part.replace(file)


def load_outcomes(file: Path, *, scenes: np.ndarray | None = None) -> tuple[dict[str, PolicyOutcome], np.ndarray]:
    """Reads a file of `save_outcomes`: outcomes by policy, and scenes [n]. scenes: only questions about these."""
    with np.load(file) as archive:
        arrays = dict(archive)
    columns = {name: arrays[f"{name}.values"][arrays[f"{name}.which"]] for name in (*SHARED_FIELDS, *POLICY_FIELDS)}
    chosen = np.isin(arrays["scenes"], arrays["scenes"] if scenes is None else scenes)
    columns = {n: c[chosen] if n in SHARED_FIELDS else c[:, chosen] for n, c in columns.items()}
    columns |= {name: columns[name].astype(bool) for name in ("encoded", "required", "question_mask")}
    shared, aliases, distinct = {name: columns[name] for name in SHARED_FIELDS}, dict(arrays["aliases"].tolist()), {}
    for number, policy in enumerate(dict.fromkeys(aliases.values())):
        distinct[policy] = PolicyOutcome(**shared, **{name: columns[name][number] for name in POLICY_FIELDS})
    return {policy: distinct[name] for policy, name in aliases.items()}, arrays["scenes"][chosen]


def cheapest_keeping(
    fraction: float,
    dense: PolicyOutcome,
    candidates: Mapping[str, PolicyOutcome],
    scenes: np.ndarray,
    *,
    resamples: int,
    seed: int = 0,
) -> str:
    """The name of the cheapest policy that keeps a fraction of the dense accuracy, by the lower end of its 95 %
    interval; if none does, of the policy that keeps most. Use it on a validation split."""
    lowest = {}
    for name, outcome in candidates.items():
        change = paired_difference(outcome.correct[None], dense.correct[None], scenes, resamples=resamples, seed=seed)
        lowest[name] = 1 + change.low / dense.accuracy
    good = [name for name in candidates if lowest[name] >= fraction]
    return min(good, key=lambda n: candidates[n].cost) if good else max(lowest, key=lambda n: lowest[n])


class PolicyEvaluator:
    """Evaluates policies on questions of a split, reordered so that questions about one scene are neighbours.

    questions: indices into the dataset; default all.
    name (of methods): of a progress bar; None for no bar.
    order: [n], index into the dataset of each question here; all other arrays follow it.
    present, question_mask, required: [n, M] bool; nothing is required of a family whose requirements are unknown.
    """

    def __init__(self, model: OmniModel, dataset: VQADataset, *, questions: Sequence[int] | None = None) -> None:
        chosen = np.arange(len(dataset)) if questions is None else np.asarray(questions)
        self.order = chosen[np.argsort(dataset.scenes[chosen], kind="stable")]
        self.model = model
        self.dataset = dataset
        self.space = model.space
        self.costs = build_cost_model(model)
        self.present = torch.from_numpy(dataset.present[self.order])
        self.question_mask = self.space.question_mask(self.present)
        self.scenes = dataset.scenes[self.order]
        self.families = np.array(dataset.families)[self.order]
        required = {name: family.required_modalities for name, family in dataset.store.families.items()}
        self.required = np.array([[m in required.get(family, ()) for m in Modality] for family in self.families])
        self.token_counts = torch.cat([self.costs.count_tokens(batch) for _, batch in self._batches("measuring")])
        self.dense = self.flops(self.space.dense(self.present))
        self._cache: dict[tuple[int, bytes], float] = {}  # correct, by question and route

    def __len__(self) -> int:
        return len(self.order)

    def flops(self, route: Route) -> FlopBreakdown:
        """Of each question under its route, without a router."""
        return self.costs(self.space, route, self.token_counts)

    def cost(self, route: Route) -> float:
        """FLOPs of the routes as a fraction of the dense FLOPs."""
        return float(self.flops(route).total.sum() / self.dense.total.sum())

    def collect_routes(self, policy: Callable[[OmniBatch], Route], *, name: str | None = None) -> Route:
        """A policy's routes for all questions."""
        with torch.inference_mode():
            parts = [policy(batch.to(self._device)).to("cpu") for _, batch in self._batches(name)]
        return Route.cat(parts)

    @torch.inference_mode()
    def evaluate(self, route: Route, *, router_flops: float = 0.0, name: str | None = None) -> PolicyOutcome:
        """Runs one route per question, except those that ran before. router_flops: added to each question."""
        if len(route) != len(self):
            raise ValueError(f"there must be a route for each of the {len(self)} questions: got {len(route)}")
        keys = self._keys(route)
        new = np.array([i for i, key in enumerate(keys) if key not in self._cache], dtype=int)
        for chunk, batch in self._batches(name, new):
            some = route.select(torch.from_numpy(chunk)).to(self._device)
            logits = self.model(batch.to(self._device), heads=["answer"], route=some).head_outputs["answer"]
            self._cache |= zip([keys[i] for i in chunk], _correct(logits, batch).tolist(), strict=True)
        return self._outcome(np.array([self._cache[key] for key in keys]), route, router_flops)

    def remember(self, route: Route, correct: np.ndarray) -> None:
        """Takes over what is known already, so that it is not run: correct [n] under one route per question."""
        self._cache |= zip(self._keys(route), correct.tolist(), strict=True)

    @staticmethod
    def _keys(route: Route) -> list[tuple[int, bytes]]:
        return [(i, signature.tobytes()) for i, signature in enumerate(route.signature().to(torch.int8).numpy())]

    @torch.inference_mode()
    def evaluate_soft(
        self, answer: Callable[[OmniBatch], Tensor], *, router_flops: float = 0.0, name: str | None = None
    ) -> PolicyOutcome:
        """Of a policy that skips nothing. answer: a function from a batch to answer logits."""
        correct = [_correct(answer(batch.to(self._device)), batch) for _, batch in self._batches(name)]
        return self._outcome(torch.cat(correct).numpy(), self.space.dense(self.present), router_flops)

    @torch.inference_mode()
    def evaluate_sequential(
        self, router: SequentialRouter, *, glances: float, penalty: float | None = None, name: str | None = None
    ) -> tuple[PolicyOutcome, Trajectory]:
        """Of a sequential router, run for real. glances: FLOPs of looking at all inputs of a question."""
        hits, parts = [], []
        for _, batch in self._batches(name):
            output, trajectory = answer_sequentially(self.model, router, batch.to(self._device), penalty=penalty)
            hits.append(_correct(output.head_outputs["answer"], batch))
            parts.append(trajectory.to("cpu"))
        route = Route.cat([part.route for part in parts])
        trajectory = Trajectory(route, *map(torch.cat, list(zip(*parts, strict=True))[1:]))
        looked = torch.full((len(self),), glances, dtype=torch.double)
        flops = self.costs.of_trajectory(
            self.space, trajectory, self.token_counts, step=router.step_flops, glances=looked
        )
        outcome = self._outcome(torch.cat(hits).numpy(), route, 0.0)
        return replace(outcome, flops=flops.total.numpy()), trajectory

    def _outcome(self, correct: np.ndarray, route: Route, router_flops: float) -> PolicyOutcome:
        flops = self.flops(route)
        return PolicyOutcome(
            correct=correct,
            flops=(flops.total + router_flops).numpy(),
            cross_modal_flops=flops.cross_modal.numpy(),
            dense_flops=self.dense.total.numpy(),
            dense_cross_modal_flops=self.dense.cross_modal.numpy(),
            encoded=(route.encoder_levels > ComputeLevel.SKIP).numpy(),
            required=self.required,
            question_mask=self.question_mask.numpy(),
        )

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _batches(self, name: str | None, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, OmniBatch]]:
        """Yields rows of `order`, and the batch of their questions. rows: default all."""
        rows = np.arange(len(self)) if rows is None else rows
        chunks = [rows[start : start + EVAL_BATCH_SIZE] for start in range(0, len(rows), EVAL_BATCH_SIZE)]
        for chunk in chunks if name is None else track_progress(chunks, name, total=len(chunks), unit="batch"):
            yield chunk, collate([self.dataset[int(i)] for i in self.order[chunk]])


def _correct(logits: Float[Tensor, "b a"], batch: OmniBatch) -> Float[Tensor, " b"]:
    """The score of the likeliest answer, 1 for a right one."""
    predicted = logits.cpu().argmax(dim=1, keepdim=True)
    return batch.targets["answer_scores"].gather(1, predicted).squeeze(1).double()
