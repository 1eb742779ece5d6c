"""Batch samplers: which samples go into which batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

PerQuestion = Sequence[Any] | np.ndarray  # [n], one entry per question


class ResumableBatchSampler(Sampler[list[int]]):
    """A batch sampler whose order depends on the epoch; set `start_batch` to continue an interrupted epoch there."""

    epoch = 0
    start_batch = 0

    @property
    def sampler(self) -> ResumableBatchSampler:
        return self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@dataclass(eq=False, repr=False)
class OmniBatchSampler(ResumableBatchSampler):
    """Batches of whole scenes with the same modalities that cost at most `max_batch_cost`.

    A unit is all questions about one scene that carry one combination of modalities. Every unit comes once an epoch,
    so its media are encoded once an epoch however many questions there are; which of its questions are used is sampled
    anew each epoch. The order depends on (seed, epoch) and the number of replicas alone.

    A unit costs as much as its costliest question. The units of a combination are divided into up to `buckets` buckets
    at the quantiles of their costs; equal costs share a bucket, and all units of a bucket are charged its largest cost.
    A batch holds as many units of one bucket as `max_batch_cost` allows, at least one. So the number of batches is the
    same in every epoch.

    Every process gets the same number of batches: until the total is a multiple of `replicas`, the batch of most units
    is split in two. In each step of a shuffled epoch the batches of all ranks cost about the same.
    Raises ValueError for arguments out of range, and where no batch is left to split.
    """

    groups: PerQuestion  # the scene of each question
    _: KW_ONLY
    max_batch_cost: float
    costs: PerQuestion | None = None  # of each padded sample; None: 1, so that `max_batch_cost` counts scenes
    combinations: PerQuestion | None = None  # a code of the modalities that each sample carries; None: all the same
    questions_per_group: int | None = None  # how many questions of a unit are sampled; None: all
    weights: PerQuestion | None = None  # relative probability that a question is sampled; None: all the same
    buckets: int = 8
    shuffle: bool = False  # False: the first questions of each unit, by combination, bucket and scene (evaluation)
    seed: int = 0
    rank: int = 0  # of this process
    replicas: int = 1  # number of processes

    def __post_init__(self) -> None:
        n = len(self.groups)
        if not 0 < self.max_batch_cost < np.inf:
            raise ValueError(f"max_batch_cost must be positive and finite: got {self.max_batch_cost}")
        if self.questions_per_group is not None and self.questions_per_group < 1:
            raise ValueError(f"questions_per_group must be at least 1 or None: got {self.questions_per_group}")
        if self.buckets < 1:
            raise ValueError(f"buckets must be at least 1: got {self.buckets}")
        if not 0 <= self.rank < self.replicas:
            raise ValueError(f"rank must be in [0, replicas): got rank {self.rank} of {self.replicas} replicas")
        for name in ("costs", "combinations", "weights"):
            values = getattr(self, name)
            if values is not None and len(values) != n:
                raise ValueError(f"{name} must have one entry per question: got {len(values)}, expected {n}")
        costs, odds = (np.ones(n) if x is None else np.asarray(x, dtype=float) for x in (self.costs, self.weights))
        for name, numbers in (("costs", costs), ("weights", odds)):
            bad = numbers[~((numbers > 0) & np.isfinite(numbers))]
            if len(bad):
                raise ValueError(f"{name} must be positive and finite: got {bad[0]}")
        names, group = np.unique(self.groups, return_inverse=True)
        _, combination = np.unique(np.zeros(n) if self.combinations is None else self.combinations, return_inverse=True)
        pairs, unit = np.unique(combination * len(names) + group, return_inverse=True)
        cost = np.zeros(len(pairs))
        np.maximum.at(cost, unit, costs)
        self.questions = np.argsort(unit, kind="stable")  # [n], unit by unit
        self.unit = unit[self.questions]  # [n]
        self.log_weights = np.log(odds[self.questions])  # [n]
        self.bucket, charges = _buckets(pairs // max(1, len(names)), cost, self.buckets)  # [units], [buckets]
        self.sizes, self.batch_costs = self._plan(charges)  # [batches], [batches]

    def _plan(self, charges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of units and the cost of every batch, bucket by bucket."""
        plan: list[tuple[int, float]] = []  # number of units, cost of each
        for units, charge in zip(np.bincount(self.bucket).tolist(), charges.tolist(), strict=True):
            size = int(min(max(1, self.max_batch_cost // charge), units))
            plan += [(size, charge)] * (units // size) + [(units % size, charge)] * (units % size > 0)
        required = -(-len(plan) // self.replicas) * self.replicas
        if required > len(self.bucket):
            raise ValueError(
                f"replicas must be able to share {len(plan)} batches of {len(self.bucket)} units evenly: "
                f"got {self.replicas}, expected fewer, or a larger max_batch_cost, or at least {required} units"
            )
        while len(plan) < required:
            largest = max(range(len(plan)), key=lambda i: plan[i][0])
            size, charge = plan[largest]
            plan[largest : largest + 1] = [(size - size // 2, charge), (size // 2, charge)]
        return np.array([size for size, _ in plan], dtype=int), np.array([size * charge for size, charge in plan])

    def __len__(self) -> int:
        """The batches of this rank in an epoch."""
        return len(self.sizes) // self.replicas

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start_batch = self.start_batch, 0
        rng = np.random.default_rng([self.seed, self.epoch])
        questions = self._sample_questions(rng)
        shuffled = rng.random(len(self.bucket)) if self.shuffle else np.arange(len(self.bucket))
        batches = np.split(np.lexsort((shuffled, self.bucket)), self.sizes.cumsum()[:-1])
        steps = np.arange(len(self.sizes)).reshape(-1, self.replicas)
        if self.shuffle:
            by_cost = np.lexsort((rng.random(steps.size), self.batch_costs)).reshape(steps.shape)
            steps = rng.permuted(rng.permutation(by_cost), axis=1)
        for batch in steps[start:, self.rank]:
            yield np.concatenate([questions[unit] for unit in batches[batch]]).tolist()

    def _sample_questions(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The questions of each unit in this epoch.

        The largest of log(weight) + Gumbel noise are a sample without replacement (Kool et al. 2019, arXiv:1903.06059).
        """
        n = len(self.questions)
        keys = self.log_weights + rng.gumbel(size=n) if self.shuffle else np.zeros(n)
        order = np.lexsort((-keys, self.unit))  # [n]
        counts = np.bincount(self.unit)
        rank = np.arange(n) - np.repeat(counts.cumsum() - counts, counts)  # [n], within its unit
        chosen = np.sort(order[rank < (self.questions_per_group or n)])
        return np.split(self.questions[chosen], np.bincount(self.unit[chosen]).cumsum()[:-1])


def _buckets(combination: np.ndarray, cost: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of every unit [units], numbered across combinations, and the largest cost of every bucket."""
    bucket = np.zeros(len(cost), dtype=int)
    charges: list[float] = []
    for code in np.unique(combination):
        members = combination == code
        edges = np.unique(cost[members])
        if len(edges) > limit:
            edges = np.unique(np.quantile(cost[members], np.arange(1, limit + 1) / limit, method="higher"))
        bucket[members] = len(charges) + np.searchsorted(edges, cost[members])
        charges += edges.tolist()
    return bucket, np.array(charges)


@dataclass(eq=False, repr=False)
class ConsecutiveBatchSampler(ResumableBatchSampler):
    """Batches of consecutive indices: 0 to size - 1, and so on."""

    count: int  # indices per epoch; a remainder that fills no batch is dropped
    _: KW_ONLY
    size: int  # indices per batch
    advance: bool = False  # each epoch continues where the one before ended: for data generated from its index

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.count:
            raise ValueError(f"size must lie between 1 and count, {self.count}: got {self.size}")

    def __len__(self) -> int:
        return self.count // self.size

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start_batch = self.start_batch, 0
        first = self.epoch * len(self) * self.advance
        for batch in range(first + start, first + len(self)):
            yield list(range(batch * self.size, (batch + 1) * self.size))
