from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from omni_lab.batch import Tokens
from omni_lab.layers.attention import MaskedMultiHeadAttention, TransformerBlock

DIM, HEADS = 16, 4


def reference_of(ours: MaskedMultiHeadAttention) -> nn.MultiheadAttention:
    reference = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        reference.out_proj.load_state_dict(ours.out.state_dict())
    return reference


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_equals_torch_and_both_paths_agree(batch: int, queries: int, keys: int, seed: int) -> None:
    torch.manual_seed(seed)
    ours = MaskedMultiHeadAttention(dim=DIM, num_heads=HEADS)
    query, context = torch.randn(batch, queries, DIM), torch.randn(batch, keys, DIM)
    mask = torch.rand(batch, keys) < 0.6
    mask[:, 0] = True
    fused = ours(query, Tokens(context, mask))
    explicit = ours(query, Tokens(context, mask), need_weights=True)
    expected, weights = reference_of(ours)(query, context, context, ~mask, average_attn_weights=False)
    assert fused.weights is None and explicit.weights is not None
    assert (fused.values - expected).abs().max() < 1e-5
    assert (fused.values - explicit.values).abs().max() < 1e-5
    assert (explicit.weights - weights).abs().max() < 1e-5
    assert not explicit.weights.masked_select(~mask[:, None, None, :].expand_as(explicit.weights)).any()


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_fully_masked_row_yields_zeros_and_finite_gradients(need_weights: bool) -> None:
    torch.manual_seed(0)
    attention = MaskedMultiHeadAttention(dim=DIM, num_heads=HEADS)
    query = torch.randn(2, 3, DIM, requires_grad=True)
    mask = torch.tensor([[False, False], [True, False]])
    result = attention(query, Tokens(torch.randn(2, 2, DIM), mask), need_weights=need_weights)
    assert not result.values[0].any()
    assert result.values[1].abs().min() > 0
    if result.weights is not None:
        assert not result.weights[0].any()
    result.values.sum().backward()
    assert query.grad is not None and torch.isfinite(query.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in attention.parameters() if p.grad is not None)


def test_shared_context_equals_the_expanded_one() -> None:
    torch.manual_seed(0)
    attention = MaskedMultiHeadAttention(dim=DIM, num_heads=HEADS)
    rows = torch.tensor([1, 0, 1, -1, 1])
    shared = Tokens(torch.randn(2, 3, DIM), torch.tensor([[True] * 3, [True, True, False]]), entry_index=rows)
    query = torch.randn(5, 2, DIM)
    there, here = attention(query, shared).values, attention(query, shared.expand_entries()).values
    assert (there - here).abs().max() < 1e-6
    assert not there[3].any()


def test_padding_content_changes_nothing() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(dim=DIM, num_heads=HEADS, mlp_ratio=2.0, dropout=0.0).eval()
    mask = torch.tensor([[True, True, False]])
    first, second = torch.randn(1, 3, DIM), torch.randn(1, 3, DIM)
    second[:, :2] = first[:, :2]
    assert torch.allclose(block(Tokens(first, mask)).values[:, :2], block(Tokens(second, mask)).values[:, :2])


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads must divide dim: got dim=16, num_heads=3"):
        MaskedMultiHeadAttention(dim=16, num_heads=3)
    attention = MaskedMultiHeadAttention(dim=DIM, num_heads=HEADS)
    context = Tokens(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be 16 wide"):
        attention(torch.randn(2, 1, DIM), context)
