"""Which questions go into which batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class OmniBatchSampler(Sampler[list[int]]):
    """Batches of whole scenes that all carry the same modalities and together cost at most `budget`.

    A unit is all questions about one scene that carry one combination of modalities. Every unit comes once an epoch,
    so its picture, clip and sound are encoded once an epoch however many questions are asked; which of its questions
    are asked is drawn anew each epoch. The order depends on (seed, epoch) and the number of replicas alone, so an
    interrupted epoch can be continued at any batch: set `start_batch`.

    A unit costs as much as its costliest question. The units of a combination are cut into up to `buckets` buckets at
    the quantiles of their costs; equal costs share a bucket, and all units of a bucket are charged its largest cost.
    A batch holds as many units of one bucket as the budget pays for, at least one. So the number of batches is the
    same in every epoch.

    groups: [n], the scene of each question. combinations: [n], a code of the modalities that each sample carries
    (default: all alike). costs: [n], what each sample costs padded, in the measure of `budget` (default: 1, so that
    `budget` counts scenes). questions_per_group: how many questions of a unit to draw (default: all). weights: [n],
    how likely each of a unit's questions is to be drawn, relative to the others (default: all alike). shuffle=False
    takes the first questions of each unit, and orders by combination, bucket and scene (evaluation).

    rank, replicas: this process and the number of processes. Each gets batches of its own and the same number of them:
    until the number of batches is a multiple of `replicas`, the one of most units is split in two. In each step of a
    shuffled epoch the batches of all ranks cost about the same. Raises ValueError where no batch is left to split.
    """

    def __init__(
        self,
        groups: Sequence[int] | np.ndarray,
        *,
        max_batch_cost: float,
        costs: Sequence[float] | np.ndarray | None = None,
        combinations: Sequence[int] | np.ndarray | None = None,
        questions_per_group: int | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
        buckets: int = 8,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        replicas: int = 1,
    ) -> None:
        n = len(groups)
        if not 0 < max_batch_cost < np.inf:
            raise ValueError(f"max_batch_cost must be positive and finite: got {max_batch_cost}")
        if questions_per_group is not None and questions_per_group < 1:
            raise ValueError(f"questions_per_group must be at least 1 or None: got {questions_per_group}")
        if buckets < 1:
            raise ValueError(f"buckets must be at least 1: got {buckets}")
        if not 0 <= rank < replicas:
            raise ValueError(f"rank must be in [0, replicas): got rank {rank} of {replicas} replicas")
        for name, given in (("costs", costs), ("combinations", combinations), ("weights", weights)):
            if given is not None and len(given) != n:
                raise ValueError(f"{name} must have one entry per question: got {len(given)}, expected {n}")
        sample_costs, chances = (np.ones(n) if x is None else np.asarray(x, dtype=float) for x in (costs, weights))
        for name, values in (("costs", sample_costs), ("weights", chances)):
            bad = values[~((values > 0) & np.isfinite(values))]
            if len(bad):
                raise ValueError(f"{name} must be positive and finite: got {bad[0]}")
        self.max_batch_cost = max_batch_cost
        self.questions_per_group = questions_per_group
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.replicas = replicas
        self.epoch = 0
        self.start_batch = 0
        self.sampler = self  # where Lightning looks for set_epoch

        names, group = np.unique(groups, return_inverse=True)
        _, combination = np.unique(np.zeros(n) if combinations is None else combinations, return_inverse=True)
        pairs, unit = np.unique(combination * len(names) + group, return_inverse=True)
        cost = np.zeros(len(pairs))
        np.maximum.at(cost, unit, sample_costs)
        self.questions = np.argsort(unit, kind="stable")  # [n], unit by unit
        self.unit = unit[self.questions]  # [n]
        self.log_weights = np.log(chances[self.questions])  # [n]
        self.bucket, charges = _buckets(pairs // max(1, len(names)), cost, buckets)  # [units], [buckets]
        self.sizes, self.batch_costs = self._plan(charges)  # [batches], [batches]

    def _plan(self, charges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of units and the cost of every batch, bucket by bucket."""
        plan: list[tuple[int, float]] = []  # units, what each is charged
        for units, charge in zip(np.bincount(self.bucket).tolist(), charges.tolist(), strict=True):
            size = int(min(max(1, self.max_batch_cost // charge), units))
            plan += [(size, charge)] * (units // size) + [(units % size, charge)] * (units % size > 0)
        wanted = -(-len(plan) // self.replicas) * self.replicas
        if wanted > len(self.bucket):
            raise ValueError(
                f"replicas must be able to share {len(plan)} batches of {len(self.bucket)} units evenly: "
                f"got {self.replicas}, expected fewer, or a larger max_batch_cost, or at least {wanted} units"
            )
        while len(plan) < wanted:
            largest = max(range(len(plan)), key=lambda i: plan[i][0])
            size, charge = plan[largest]
            plan[largest : largest + 1] = [(size - size // 2, charge), (size // 2, charge)]
        return np.array([size for size, _ in plan], dtype=int), np.array([size * charge for size, charge in plan])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of batches that this rank gets in an epoch."""
        return len(self.sizes) // self.replicas

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start_batch = self.start_batch, 0
        rng = np.random.default_rng([self.seed, self.epoch])
        asked = self._draw(rng)
        shuffled = rng.random(len(self.bucket)) if self.shuffle else np.arange(len(self.bucket))
        batches = np.split(np.lexsort((shuffled, self.bucket)), self.sizes.cumsum()[:-1])
        steps = np.arange(len(self.sizes)).reshape(-1, self.replicas)
        if self.shuffle:
            by_cost = np.lexsort((rng.random(steps.size), self.batch_costs)).reshape(steps.shape)
            steps = rng.permuted(rng.permutation(by_cost), axis=1)
        for batch in steps[start:, self.rank]:
            yield np.concatenate([asked[unit] for unit in batches[batch]]).tolist()

    def _draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The questions that each unit is asked in this epoch.

        The largest of log(weight) + Gumbel noise are a draw without replacement (Kool et al. 2019, arXiv:1903.06059).
        """
        n = len(self.questions)
        keys = self.log_weights + rng.gumbel(size=n) if self.shuffle else np.zeros(n)
        order = np.lexsort((-keys, self.unit))  # [n]
        counts = np.bincount(self.unit)
        place = np.arange(n) - np.repeat(counts.cumsum() - counts, counts)  # [n], counted inside each unit
        kept = np.sort(order[place < (self.questions_per_group or n)])
        return np.split(self.questions[kept], np.bincount(self.unit[kept]).cumsum()[:-1])


def _buckets(combination: np.ndarray, cost: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of every unit [units], counted from combination to combination, and every bucket's largest cost."""
    bucket = np.zeros(len(cost), dtype=int)
    charges: list[float] = []
    for code in np.unique(combination):
        mine = combination == code
        edges = np.unique(cost[mine])
        if len(edges) > limit:
            edges = np.unique(np.quantile(cost[mine], np.arange(1, limit + 1) / limit, method="higher"))
        bucket[mine] = len(charges) + np.searchsorted(edges, cost[mine])
        charges += edges.tolist()
    return bucket, np.array(charges)


class ConsecutiveBatchSampler(Sampler[list[int]]):
    """Batches of neighbouring indices: 0 to size - 1, and so on, `count` in all, a remainder left out.

    For data drawn afresh from its index: with `advance`, each epoch goes on where the one before it ended. Set
    `start_batch` to continue an interrupted epoch.
    """

    def __init__(self, count: int, *, size: int, advance: bool = False) -> None:
        if not 1 <= size <= count:
            raise ValueError(f"size must lie between 1 and count, {count}: got {size}")
        self.batches = count // size
        self.size = size
        self.advance = advance
        self.epoch = 0
        self.start_batch = 0
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start_batch = self.start_batch, 0
        first = self.epoch * self.batches * self.advance
        for batch in range(first + start, first + self.batches):
            yield list(range(batch * self.size, (batch + 1) * self.size))
