from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omni_lab.batch import Tokens
from omni_lab.encoders.latents import (
    HEADER_BYTES,
    SCALE_BYTES,
    Int8Latents,
    adaptive_quantize,
    fake_quantize_tokens,
    fixed_quantize,
    merge_similar,
    pack_bits,
    unpack_bits,
)

DIM = 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(values: Tensor, real: list[int] | None = None) -> Tokens:
    """real: how many tokens of each entry are real."""
    count, length, _ = values.shape
    mask = torch.arange(length) < torch.tensor(real or [length] * count)[:, None]
    return Tokens(values, mask, torch.arange(length).float().expand(count, -1), torch.tensor([0, 1, 0])[: count + 1])


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_quantizing_errs_by_at_most_half_a_step(bits: int) -> None:
    values = draw(3, 5, DIM) * torch.logspace(-3, 3, 5)[:, None]
    step = values.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    quantized = fake_quantize_tokens(values, bits)
    assert ((quantized - values).abs() <= 0.502 * step).all(), "half, and a little for scales in half precision"
    levels = [token.unique().numel() for token in quantized.flatten(0, 1)]
    assert max(levels) <= 2**bits - 1
    assert (quantized - values).abs().max() > 0


def test_gradients_pass_straight_through() -> None:
    values = draw(2, 3, DIM).requires_grad_()
    weight = draw(2, 3, DIM, seed=1)
    (fake_quantize_tokens(values, 4) * weight).sum().backward()
    assert values.grad is not None and torch.equal(values.grad, weight)


def test_zeros_stay_zero_and_tokens_keep_to_themselves() -> None:
    values = draw(1, 3, DIM)
    values[0, 1] = 0.0
    quantized = fake_quantize_tokens(values, 3)
    assert torch.isfinite(quantized).all() and (quantized[0, 1] == 0).all()
    louder = values.clone()
    louder[0, 2] *= 1000
    assert torch.equal(fake_quantize_tokens(louder, 3)[0, 0], quantized[0, 0]), "each token has a scale of its own"


def test_int8_latents_come_back_close() -> None:
    original = tokens(draw(2, 4, DIM), [4, 2])
    stored = Int8Latents.from_tokens(original)
    assert stored.codes.dtype == torch.int8 and stored.codes.shape == (2, 4, DIM)
    assert stored.scales.dtype == torch.float16 and stored.scales.shape == (2, 4, 1)
    assert stored.layout.values.numel() == 0, "the floats are not kept"
    back = stored.tokens()
    largest = original.values.abs().amax(-1, keepdim=True)
    assert ((back.values - original.values).abs() <= 0.51 * largest / 127).all()
    assert torch.equal(back.mask, original.mask) and back.times is original.times
    assert back.entry_index is original.entry_index
    assert stored.num_bytes.tolist() == [4 * (DIM + SCALE_BYTES), 2 * (DIM + SCALE_BYTES)], "padding is not stored"
    assert torch.allclose(fake_quantize_tokens(original.values, 8), back.values, atol=1e-6), "as in training"


def test_int8_latents_of_zeros_and_of_extremes() -> None:
    values = torch.stack([torch.zeros(DIM), torch.full((DIM,), 1e-6), torch.full((DIM,), -3e4)]).unsqueeze(0)
    back = Int8Latents.from_tokens(tokens(values)).tokens().values
    assert torch.isfinite(back).all()
    assert (back[0, 0] == 0).all()
    assert torch.allclose(back[0, 2], values[0, 2], rtol=0.01)


def test_the_fixed_grid_is_one_for_all_tokens() -> None:
    original = tokens(torch.stack([draw(2, DIM), 0.001 * draw(2, DIM)]), [2, 1])
    back, size = fixed_quantize(original, max_abs=4.0)
    assert (back.values[0] - original.values[0]).abs().max() <= 2.001 / 127
    assert (back.values[1] == 0).all(), "too small for the grid"
    assert size.tolist() == [2 * DIM, DIM]
    assert fixed_quantize(tokens(100 * draw(1, 2, DIM)), max_abs=4.0)[0].values.abs().max() <= 4.0 + 1e-5


@pytest.mark.parametrize("error", [0.3, 0.1, 0.01, 0.001])
def test_adaptive_bits_keep_the_error_below_max_error(error: float) -> None:
    original = tokens(draw(2, 6, DIM) ** 3, [6, 3])
    back, size = adaptive_quantize(original, min_similarity=1.1, max_error=error)
    off = (back.values - original.values).square().sum(-1) / original.values.square().sum(-1)
    assert (off[original.mask] <= error).all()
    assert size[0] > size[1] > 0
    most = 6 * (DIM + SCALE_BYTES + HEADER_BYTES)
    assert size[0] < most if error > 0.001 else size[0] <= most


def test_a_coarser_error_costs_fewer_bytes() -> None:
    original = tokens(draw(1, 12, DIM))
    sizes = [
        int(adaptive_quantize(original, min_similarity=1.1, max_error=error)[1])
        for error in (1e-9, 1e-3, 1e-2, 0.1, 1.0)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert sizes[0] == 12 * (DIM + SCALE_BYTES + HEADER_BYTES), "eight bits each"
    assert sizes[-1] == 12 * (DIM // 4 + SCALE_BYTES + HEADER_BYTES), "two bits each"


def test_similar_neighbours_are_merged() -> None:
    one = draw(1, 1, DIM)
    still, moving = tokens(one + 0.01 * draw(1, 8, DIM)), tokens(draw(1, 8, DIM))
    sizes = [int(adaptive_quantize(t, min_similarity=0.9, max_error=0.01)[1]) for t in (still, moving)]
    assert sizes[0] * 6 < sizes[1]
    merged = merge_similar(still, 0.9)
    assert merged.mask.tolist() == [[True]]
    assert torch.allclose(merged.values[0, 0], still.values[0].mean(0), atol=1e-6)
    assert merged.times is not None and merged.times.tolist() == [[3.5]]
    halves = tokens(torch.cat([one.expand(1, 3, -1), draw(1, 1, DIM, seed=7).expand(1, 5, -1)], dim=1))
    both = merge_similar(halves, 0.9)
    assert both.times is not None and both.times.tolist() == [[1.0, 5.0]]
    unmerged = merge_similar(moving, 1.1)
    assert torch.equal(unmerged.mask, moving.mask) and torch.allclose(unmerged.values, moving.values)


def test_padding_is_neither_merged_nor_paid_for() -> None:
    values = draw(1, 1, DIM).expand(2, 6, -1).clone()
    values[1, 3:] = 100 * draw(3, DIM, seed=9)
    padded = tokens(values, [6, 3])
    back, size = adaptive_quantize(padded, min_similarity=0.9, max_error=0.01)
    assert back.mask.tolist() == [[True], [True]]
    assert torch.allclose(back.values[0], back.values[1], atol=1e-5), "what stands behind the end is not in the mean"
    assert size[0] == size[1]
    gap = replace(padded, mask=torch.tensor([[True, False, True, True, False, False]] * 2))
    merged = merge_similar(gap, 0.9)
    assert merged.mask.sum(dim=1).tolist() == [2, 3], "a run does not cross a gap, and none behind it is lost"
    assert merged.times is not None and merged.times[0][merged.mask[0]].tolist() == [0.0, 2.5]
    _, none = adaptive_quantize(tokens(values, [6, 0]), min_similarity=0.9, max_error=0.01)
    assert none[1] == 0, "an entry without a real token costs nothing"


@given(
    st.integers(2, 8).flatmap(
        lambda bits: st.tuples(
            st.just(bits), st.lists(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), max_size=40)
        )
    )
)
@settings(deadline=None)
def test_packing_is_undone_by_unpacking(case: tuple[int, list[int]]) -> None:
    bits, numbers = case
    codes = torch.tensor(numbers, dtype=torch.int8)
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == (len(numbers) * bits + 7) // 8
    assert unpack_bits(packed, bits, len(numbers)).tolist() == numbers


def test_a_token_gets_the_fewest_bits_that_will_do() -> None:
    """Whole numbers from -3 to 3 fit a grid of three bits, though not one of six."""
    codes = torch.randint(-3, 4, (DIM,), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    codes[0] = 3
    assert len(codes.unique()) == 7
    back, size = adaptive_quantize(tokens(codes.float().view(1, 1, -1)), min_similarity=1.1, max_error=1e-4)
    assert int(size) == len(pack_bits(codes, 3)) + SCALE_BYTES + HEADER_BYTES
    assert torch.allclose(back.values.flatten(), codes.float(), atol=0.01)
