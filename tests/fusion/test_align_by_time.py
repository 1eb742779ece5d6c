from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omni_lab.batch import Tokens
from omni_lab.fusion.early import align_by_time

NAN = float("nan")


def stream(times: list[list[float]], mask: list[list[bool]] | None = None) -> Tokens:
    """Tokens whose values are their own time and its double; masked ones hold NaN."""
    clock = torch.tensor(times)  # [B, N]
    real = torch.ones_like(clock, dtype=torch.bool) if mask is None else torch.tensor(mask)
    values = torch.stack([clock, 2 * clock], dim=-1).masked_fill(~real.unsqueeze(-1), NAN)
    return Tokens(values.requires_grad_(), real, clock)


def ask(source: Tokens, times: Tensor, tolerance: float, mask: Tensor | None = None) -> Tokens:
    return align_by_time(source, times, torch.ones_like(times).bool() if mask is None else mask, tolerance=tolerance)


def says(source: Tokens, times: list[float], tolerance: float) -> list[float | None]:
    """The value of a one-sample stream at each time, None where it is masked."""
    aligned = ask(source, torch.tensor([times]), tolerance)
    assert (aligned.values[~aligned.mask] == 0).all()
    return [
        round(v, 4) if real else None for v, real in zip(aligned.values[0, :, 0].tolist(), aligned.mask[0], strict=True)
    ]


def test_video_at_25_hz_follows_speech_at_50_hz() -> None:
    """Two samples, the second with a late clip: a ramp comes back exactly, and no further than the clip lasts."""
    offsets = torch.tensor([[0.0], [0.5]])
    video = torch.arange(26) / 25 + offsets  # [2, 26], a second each
    speech = (torch.arange(100) / 50).repeat(2, 1)  # [2, 100], two seconds
    aligned = ask(Tokens(video.unsqueeze(-1), torch.ones_like(video).bool(), video), speech, tolerance=0.041)
    assert aligned.times is speech and aligned.entry_index is None
    assert aligned.values.shape == (2, 100, 1)
    inside = (speech >= offsets - 1e-6) & (speech <= offsets + 1 + 1e-6)
    assert (aligned.values.squeeze(-1) - speech)[inside].abs().max() < 1e-6
    assert aligned.mask[inside].all()
    assert not aligned.mask[(speech < offsets - 0.05) | (speech > offsets + 1.05)].any()


def test_a_gap_in_the_middle_is_masked() -> None:
    source = stream([[0.0, 1.0, 2.0, 3.0, 4.0]], [[True, True, False, True, True]])
    assert says(source, [0.5, 1.0, 1.9, 2.0, 2.2, 3.5], 1.0) == [0.5, 1.0, 1.0, 2.0, 3.0, 3.5]
    assert says(source, [1.0, 1.3, 2.0, 2.7, 3.0], 0.5) == [1.0, 1.0, None, 3.0, 3.0]


def test_a_stream_that_ends_early_is_masked_after_it() -> None:
    source = stream([[0.0, 1.0, 9.0, 9.0]], [[True, True, False, False]])
    assert says(source, [-2.0, -0.5, 0.25, 1.0, 1.5, 2.0, 9.0], 1.0) == [None, 0.0, 0.25, 1.0, 1.0, 1.0, None]


def test_of_two_neighbours_the_one_within_tolerance_counts() -> None:
    source = stream([[0.0, 10.0]])
    assert says(source, [3.0, 5.0, 8.0], 4.0) == [0.0, None, 10.0]
    assert says(source, [3.0, 5.0, 8.0], 8.0) == [3.0, 5.0, 8.0]


def test_one_token_counts_around_its_time() -> None:
    assert says(stream([[5.0]]), [3.9, 4.0, 5.0, 6.0, 6.1], 1.0) == [None, 5.0, 5.0, 5.0, None]
    assert says(stream([[5.0]]), [4.9, 5.0], 0.0) == [None, 5.0]


def test_a_sample_without_tokens_is_masked() -> None:
    source = stream([[0.0, 1.0], [0.0, 1.0]], [[True, True], [False, False]])
    aligned = ask(source, torch.tensor([[0.5, 0.0]] * 2), 1.0)
    assert aligned.mask.tolist() == [[True, True], [False, False]]
    assert (aligned.values[1] == 0).all()
    none = ask(Tokens(torch.zeros(2, 0, 3), torch.zeros(2, 0).bool(), torch.zeros(2, 0)), torch.zeros(2, 4), 1.0)
    assert none.values.shape == (2, 4, 3) and not none.mask.any()


def test_padded_queries_stay_padded() -> None:
    times, mask = torch.tensor([[0.5, NAN, float("inf")]]), torch.tensor([[True, False, False]])
    source = stream([[0.0, 1.0]])
    aligned = ask(source, times, 1.0, mask)
    assert aligned.mask.tolist() == mask.tolist()
    aligned.values.sum().backward()
    assert source.values.grad is not None and source.values.grad[0, :, 0].tolist() == [0.5, 0.5]


def test_the_gradient_reaches_only_what_was_used() -> None:
    source = stream([[0.0, 1.0, 2.0, 3.0, 4.0]], [[True, True, False, True, True]])
    ask(source, torch.tensor([[0.25, 2.0, 4.5]]), 0.9).values.sum().backward()
    assert source.values.grad is not None
    assert source.values.grad[0].tolist() == [[0.75, 0.75], [0.25, 0.25], [0, 0], [0, 0], [1, 1]]


def test_shared_entries_are_expanded() -> None:
    source = stream([[0.0, 1.0], [2.0, 3.0]])
    shared = Tokens(source.values, source.mask, source.times, entry_index=torch.tensor([1, -1, 0, 1]))
    aligned = ask(shared, torch.tensor([[2.5], [2.5], [0.5], [3.0]]), 1.0)
    assert aligned.values[:, 0, 0].tolist() == [2.5, 0.0, 0.5, 3.0]
    assert aligned.mask[:, 0].tolist() == [True, False, True, True]


def by_hand(source: Tokens, b: int, query: float, tolerance: float) -> float | None:
    assert source.times is not None
    real = source.mask[b]
    said = list(zip(source.times[b, real].tolist(), source.values[b, real, 0].tolist(), strict=True))
    before = [(query - t, v) for t, v in said if t <= query]
    after = [(t - query, v) for t, v in said if t > query]
    left, right = min(before, default=(float("inf"), 0.0)), min(after, default=(float("inf"), 0.0))
    if max(left[0], right[0]) <= tolerance:
        return (left[1] * right[0] + right[1] * left[0]) / (left[0] + right[0])
    nearest = min(left, right)
    return nearest[1] if nearest[0] <= tolerance else None


SAMPLE = st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.integers(-9, 9)), min_size=6, max_size=6)


@given(st.lists(SAMPLE, min_size=1, max_size=3), st.integers(0, 12), st.integers(0, 2**16))
@settings(deadline=None)
def test_any_stream_agrees_with_the_rule_by_hand(
    samples: list[list[tuple[int, bool, int]]], reach: int, seed: int
) -> None:
    """And what padded tokens hold, and where they stand, changes nothing."""
    steps, real, values = (torch.tensor([[row[k] for row in sample] for sample in samples]) for k in range(3))
    clock, tolerance = steps.cumsum(1) / 4, reach / 4
    source = Tokens(values.float().unsqueeze(-1), real, clock)
    queries = (torch.arange(0, 100) / 8).repeat(len(samples), 1)
    aligned = ask(source, queries, tolerance)
    for b in range(len(samples)):
        for q, query in enumerate(queries[b].tolist()):
            expected = by_hand(source, b, query, tolerance)
            assert aligned.mask[b, q] == (expected is not None)
            assert aligned.values[b, q, 0].item() == pytest.approx(expected or 0.0, abs=1e-5)

    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(8, generator=generator).argsort()[:6].sort().values  # the six among eight, in their order
    garbage = torch.randn(len(samples), 8, generator=generator) * 100
    mask = torch.zeros(len(samples), 8, dtype=torch.bool)
    mask[:, places] = real
    times = garbage.clone().masked_scatter(mask, clock[real])
    other = Tokens((garbage / 0).masked_scatter(mask, source.values[..., 0][real]).unsqueeze(-1), mask, times)
    again = ask(other, queries, tolerance)
    assert torch.equal(again.values, aligned.values) and torch.equal(again.mask, aligned.mask)


def test_half_precision_values_keep_their_type() -> None:
    source = stream([[0.0, 1.0]])
    assert source.times is not None
    aligned = ask(source.with_values(source.values.bfloat16()), torch.tensor([[0.5]]), 1.0)
    assert aligned.values.dtype == torch.bfloat16 and aligned.values[0, 0].tolist() == [0.5, 1.0]


def test_bad_arguments_are_named() -> None:
    query = torch.zeros(2, 1)
    good = stream([[0.0, 1.0, 2.0]] * 2)
    with pytest.raises(ValueError, match="source must have times: got None"):
        ask(Tokens(good.values, good.mask), query, 1.0)
    for times in ([0.0, 2.0, 1.0], [0.0, 1.0, 1.0], [0.0, NAN, 1.0]):
        with pytest.raises(ValueError, match="increase strictly .* those of sample 1 do not"):
            ask(stream([[0.0, 1.0, 2.0], times]), query, 1.0)
    ask(stream([[0.0, 2.0, 1.0]] * 2, [[True, True, False]] * 2), query, 1.0)  # out of order, but padded
    with pytest.raises(ValueError, match="tolerance must be at least 0 seconds: got -1"):
        ask(good, query, -1)
