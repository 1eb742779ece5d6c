from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_lab.data.sampler import OmniBatchSampler

SCENES = st.lists(st.integers(0, 9), min_size=1, max_size=60)


@dataclass(frozen=True)
class Questions:
    groups: list[int]
    combinations: list[int]
    costs: list[float]

    def unit(self, i: int) -> tuple[int, int]:
        return self.combinations[i], self.groups[i]

    def unit_costs(self) -> dict[tuple[int, int], float]:
        costs: dict[tuple[int, int], float] = {}
        for i, cost in enumerate(self.costs):
            costs[self.unit(i)] = max(cost, costs.get(self.unit(i), 0.0))
        return costs

    def sampler(self, **options: Any) -> OmniBatchSampler:
        return OmniBatchSampler(self.groups, combinations=self.combinations, costs=self.costs, **options)


@st.composite
def questions(draw: st.DrawFn) -> Questions:
    rows = st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(1, 12))
    groups, combinations, costs = zip(*draw(st.lists(rows, min_size=1, max_size=60)), strict=True)
    return Questions(list(groups), list(combinations), [c / 4 for c in costs])


OPTIONS = st.fixed_dictionaries(
    {
        "max_batch_cost": st.sampled_from([0.3, 1.0, 2.5, 7.0, 100.0]),
        "questions_per_group": st.sampled_from([None, 1, 2, 3]),
        "buckets": st.integers(1, 4),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 3),
    }
)


@given(questions(), OPTIONS)
@settings(deadline=None)
def test_every_unit_comes_once_an_epoch(asked: Questions, options: dict[str, Any]) -> None:
    sampler = asked.sampler(**options)
    everything = [asked.unit(i) for i in range(len(asked.groups))]
    limit = options["questions_per_group"] or len(everything)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler), "the same number of batches in every epoch"
        seen: list[tuple[int, int]] = []
        for batch in batches:
            units = [asked.unit(i) for i in batch]
            assert len({combination for combination, _ in units}) == 1
            assert len(batch) == len(set(batch)), "no question twice"
            assert all(units.count(u) == min(limit, everything.count(u)) for u in units)
            seen += sorted(set(units))
        assert sorted(seen) == sorted(set(everything))


@given(questions(), OPTIONS)
@settings(deadline=None)
def test_the_budget_is_kept(asked: Questions, options: dict[str, Any]) -> None:
    costs = asked.unit_costs()
    for batch in asked.sampler(**options):
        units = {asked.unit(i) for i in batch}
        assert len(units) == 1 or len(units) * max(costs[u] for u in units) <= options["max_batch_cost"]


@given(questions(), st.integers(1, 4))
@settings(deadline=None)
def test_buckets_split_each_combination_by_cost(asked: Questions, buckets: int) -> None:
    """With room for every unit of a bucket in one batch, the batches are the buckets."""
    costs = asked.unit_costs()
    ranges: dict[int, list[tuple[float, float]]] = {}
    for batch in asked.sampler(max_batch_cost=1e6, buckets=buckets):
        charged = [costs[asked.unit(i)] for i in batch]
        ranges.setdefault(asked.combinations[batch[0]], []).append((min(charged), max(charged)))
    for code, found in ranges.items():
        distinct = len({cost for (combination, _), cost in costs.items() if combination == code})
        assert len(found) <= min(buckets, distinct) and (distinct > buckets or len(found) == distinct)
        assert all(one[1] < next_one[0] for one, next_one in pairwise(found)), "equal costs share a bucket"


@given(SCENES, st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None)
def test_without_costs_the_budget_counts_scenes_in_order(scenes: list[int], budget: int, limit: int) -> None:
    batches = list(OmniBatchSampler(scenes, max_batch_cost=budget, questions_per_group=limit))
    order = sorted(set(scenes))
    firsts = {s: [i for i, other in enumerate(scenes) if other == s][:limit] for s in order}
    pieces = [order[k : k + budget] for k in range(0, len(order), budget)]
    assert batches == [[i for s in piece for i in firsts[s]] for piece in pieces]


@given(questions(), OPTIONS, st.integers(0, 9))
@settings(deadline=None)
def test_an_epoch_can_be_continued_at_any_batch(asked: Questions, options: dict[str, Any], start: int) -> None:
    sampler = asked.sampler(**options)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.start_batch = start
    assert list(sampler) == whole[start:]
    assert list(sampler) == whole, "the next pass starts at the beginning again"


@given(questions(), OPTIONS, st.integers(1, 4))
@settings(deadline=None)
def test_ranks_share_an_epoch_evenly_and_lose_nothing(asked: Questions, options: dict[str, Any], replicas: int) -> None:
    costs = asked.unit_costs()
    steps = -(-len(asked.sampler(**options)) // replicas)
    if steps * replicas > len(costs):
        with pytest.raises(ValueError, match=f"replicas must be .* got {replicas}, expected fewer"):
            asked.sampler(**options, replicas=replicas)
        return
    ranks = [asked.sampler(**options, rank=rank, replicas=replicas) for rank in range(replicas)]
    for epoch in range(2):
        seen: list[tuple[int, int]] = []
        for sampler in ranks:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler) == steps
            for batch in batches:
                units = {asked.unit(i) for i in batch}
                assert len({combination for combination, _ in units}) == 1
                assert len(units) == 1 or len(units) * max(costs[u] for u in units) <= options["max_batch_cost"]
                seen += units
            sampler.start_batch = steps // 2
            assert list(sampler) == batches[steps // 2 :]
        assert sorted(seen) == sorted(costs)


def test_the_largest_batch_is_split_for_the_ranks() -> None:
    """Ten scenes in batches of four: 4, 4, 2; for two ranks the first becomes 2, 2."""
    ranks = [list(OmniBatchSampler(range(10), max_batch_cost=4, rank=rank, replicas=2)) for rank in range(2)]
    assert ranks == [[[0, 1], [4, 5, 6, 7]], [[2, 3], [8, 9]]]


def test_in_each_step_the_ranks_get_batches_of_like_cost() -> None:
    costs = np.repeat([1.0, 2.0, 16.0], [64, 32, 4])  # at a budget of 8: eight, eight, and four batches
    ranks = [
        OmniBatchSampler(range(100), max_batch_cost=8, costs=costs, shuffle=True, rank=r, replicas=4) for r in range(4)
    ]
    steps = list(zip(*ranks, strict=True))
    assert len(steps) == 5
    assert all(len({costs[batch].sum() for batch in step}) == 1 for step in steps)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    scenes = np.repeat(np.arange(20), 5)

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = OmniBatchSampler(scenes, max_batch_cost=4, questions_per_group=2, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_a_shuffled_epoch_mixes_the_buckets() -> None:
    costs = np.repeat([1.0, 2.0], 40)
    sampler = OmniBatchSampler(range(80), max_batch_cost=4, costs=costs, shuffle=True)
    kinds = [costs[batch[0]] for batch in sampler]
    assert sorted(kinds) == [1.0] * 10 + [2.0] * 20
    assert kinds not in ([1.0] * 10 + [2.0] * 20, [2.0] * 20 + [1.0] * 10)


@pytest.mark.parametrize(
    ("weights", "drawn", "expected"),
    [(None, 1, 1 / 4), ([10, 1, 1, 1], 1, 10 / 13), ([10, 1, 1, 1], 2, 10 / 13 + 3 / 13 * 10 / 12)],
)
def test_weights_decide_which_questions_are_drawn(weights: list[float] | None, drawn: int, expected: float) -> None:
    """The chance that the first of four questions is among those drawn one by one; 0.03 is over four deviations."""
    sampler = OmniBatchSampler(
        np.repeat(np.arange(4000), 4),
        max_batch_cost=10,
        questions_per_group=drawn,
        weights=None if weights is None else np.tile(weights, 4000),
        shuffle=True,
    )
    first = sum(i % 4 == 0 for batch in sampler for i in batch) / 4000
    assert first == pytest.approx(expected, abs=0.03)


def test_a_large_set_is_planned_and_drawn_in_a_moment() -> None:
    rng = np.random.default_rng(0)
    costs = rng.uniform(1, 100, 72_000)
    start = time.perf_counter()
    sampler = OmniBatchSampler(
        np.repeat(np.arange(12_000), 6),
        max_batch_cost=2000,
        costs=costs,
        questions_per_group=3,
        weights=costs,
        shuffle=True,
    )
    assert sum(len(batch) for batch in sampler) == 36_000
    assert time.perf_counter() - start < 1.0


def test_nothing_gives_no_batches() -> None:
    assert (
        list(OmniBatchSampler([], max_batch_cost=1)) == []
        and len(OmniBatchSampler([], max_batch_cost=1, shuffle=True)) == 0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_cost": 0}, "max_batch_cost must be positive and finite: got 0"),
        ({"max_batch_cost": float("nan")}, "max_batch_cost must be positive and finite: got nan"),
        ({"costs": [1.0, 0.0]}, "costs must be positive and finite: got 0.0"),
        ({"costs": [1.0, float("inf")]}, "costs must be positive and finite: got inf"),
        ({"weights": [float("nan"), 1.0]}, "weights must be positive and finite: got nan"),
        ({"costs": [1.0]}, "costs must have one entry per question: got 1, expected 2"),
        ({"combinations": [0, 0, 0]}, "combinations must have one entry per question: got 3, expected 2"),
        ({"weights": []}, "weights must have one entry per question: got 0, expected 2"),
        ({"questions_per_group": 0}, "questions_per_group must be at least 1 or None: got 0"),
        ({"buckets": 0}, "buckets must be at least 1: got 0"),
        ({"rank": 2, "replicas": 2}, "rank must be in .* got rank 2 of 2 replicas"),
        ({"rank": 0, "replicas": 0}, "rank must be in .* got rank 0 of 0 replicas"),
        ({"replicas": 3}, "2 units evenly: got 3, expected fewer, or a larger max_batch_cost, or at least 3 units"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OmniBatchSampler([0, 1], **{"max_batch_cost": 2} | options)


def test_buckets_save_padding() -> None:
    lengths = np.random.default_rng(0).integers(4, 64, 2000)
    shares = []
    for buckets in (1, 8):
        rows = [
            lengths[b]
            for b in OmniBatchSampler(range(2000), max_batch_cost=512, costs=lengths, buckets=buckets, shuffle=True)
        ]
        shares.append(1 - sum(row.sum() for row in rows) / sum(len(row) * row.max() for row in rows))
    assert shares[1] < shares[0] / 3
