"""Scaled dot-product attention over masked tokens: a fused path for speed, an explicit one that returns weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import Mlp
from torch import Tensor, nn

from omni_lab.batch import Tokens


class AttentionOutput(NamedTuple):
    """weights: [B, H, Nq, Nk], rows sum to one (zero for a sample without context); None from the fused path."""

    values: Float[Tensor, "b q d"]
    weights: Float[Tensor, "b h q k"] | None


class CrossAttentionCache(NamedTuple):
    """The projected keys and values of a context, ready for any number of queries.

    attn_mask: True where a query may attend; all True for a sample without context, so that its softmax stays finite.
    has_context: [B], False for a sample without one real token, whose output must be zero; None: all have one.
    """

    keys: Float[Tensor, "b h k e"]
    values: Float[Tensor, "b h k v"]
    attn_mask: Bool[Tensor, "b 1 1 k"]
    has_context: Bool[Tensor, " b"] | None

    def select(self, rows: Int[Tensor, " r"]) -> CrossAttentionCache:
        has_context = None if self.has_context is None else self.has_context[rows]
        return CrossAttentionCache(self.keys[rows], self.values[rows], self.attn_mask[rows], has_context)


class MaskedMultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(d_head)) V over H heads (Vaswani et al. 2017, eq. 1 and section 3.2.2).

    Query, key, value and output are plain `nn.Linear` layers, so that tools that replace Linear layers (quantization,
    pruning) reach them. The output of a sample without one real context token is exactly zero: not NaN, and not the
    output bias.

    num_heads: H, must divide dim.
    """

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim={dim}, num_heads={num_heads}")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.key.load_state_dict(self.query.state_dict())  # at first, similar tokens attend to each other

    def _split(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n e"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, N, D/H]

    def forward(self, query: Float[Tensor, "b q d"], context: Tokens, *, need_weights: bool = False) -> AttentionOutput:
        """Each sample's query attends to its own context. need_weights: take the explicit path, return the weights."""
        samples = (context.values if context.entry_index is None else context.entry_index).shape[0]
        if query.shape[-1] != self.dim or context.values.shape[-1] != self.dim or query.shape[0] != samples:
            raise ValueError(
                f"query and context must be {self.dim} wide and of as many samples: got query {list(query.shape)} and "
                f"context {list(context.values.shape)} for {samples} samples"
            )
        return self.attend(query, *self.cache_context(context), need_weights=need_weights)

    def cache_context(self, context: Tokens) -> CrossAttentionCache:
        mask = context.sample_mask  # [B, Nk]
        if torch.compiler.is_exporting():  # exported graphs run for samples with context alone
            return CrossAttentionCache(*self.project_kv(context), mask[:, None, None], None)
        has_context = mask.any(dim=1)
        attn_mask = (mask | ~has_context[:, None])[:, None, None]  # [B, 1, 1, Nk]
        return CrossAttentionCache(*self.project_kv(context), attn_mask, has_context)

    def project_kv(self, context: Tokens) -> tuple[Float[Tensor, "b h k e"], Float[Tensor, "b h k v"]]:
        """Keys and values, projected once per entry, then expanded to one copy per sample."""
        k = context.gather(self._split(self.key(context.values)))
        return k, context.gather(self._split(self.value(context.values)))

    def attend(
        self,
        query: Float[Tensor, "b q d"],
        keys: Float[Tensor, "b h k e"],
        values: Float[Tensor, "b h k v"],
        attn_mask: Bool[Tensor, "#b 1 _ k"],
        has_context: Bool[Tensor, " b"] | None = None,
        *,
        need_weights: bool = False,
    ) -> AttentionOutput:
        """Attention over precomputed keys and values.

        attn_mask: which keys each query may attend to, at least one.
        has_context: samples with False get zero weights and zero output (default: all True).
        """
        q = self._split(self.query(query))
        weights = None
        if need_weights:
            scores = q @ keys.transpose(-2, -1) / math.sqrt(self.head_dim)  # [B, H, Nq, Nk]
            weights = scores.masked_fill(~attn_mask, float("-inf")).softmax(dim=-1)
            if has_context is not None:
                weights = weights * has_context[:, None, None, None]
            mixed = weights @ values  # [B, H, Nq, D/H], from the weights returned, so that they can have gradients
        else:
            if torch.compiler.is_exporting():  # ONNX Runtime wants a row of the mask for each query
                attn_mask = attn_mask.expand(-1, -1, q.shape[2], -1)
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=attn_mask, scale=self.head_dim**-0.5)
        output = self.out(mixed.transpose(1, 2).flatten(2))  # [B, Nq, D]
        if has_context is not None:
            output = torch.where(has_context[:, None, None], output, 0.0)
        return AttentionOutput(output, weights)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward network: x + SA(LN x), then x + FFN(LN x); one entry per sample."""

    def __init__(self, *, dim: int, num_heads: int, mlp_ratio: float = 2.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = MaskedMultiHeadAttention(dim=dim, num_heads=num_heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tokens) -> Tokens:
        x = tokens.values
        h = self.norm_attention(x)
        x = x + self.dropout(self.attention(h, tokens.with_values(h)).values)
        return tokens.with_values(x + self.dropout(self.mlp(self.norm_mlp(x))))


def transformer_blocks(depth: int, **kwargs: Any) -> nn.Sequential:
    """A stack of `depth` blocks. kwargs: of `TransformerBlock`."""
    return nn.Sequential(*(TransformerBlock(**kwargs) for _ in range(depth)))


@contextmanager
def record_attention(module: nn.Module) -> Iterator[dict[str, Float[Tensor, "b h q k"]]]:
    """Yields a dict with the weights of the last call of every `MaskedMultiHeadAttention` in `module`, by name.

    These layers take the explicit path meanwhile; the weights are those that computed the output, gradients included.
    """
    weights: dict[str, Tensor] = {}
    hooks = []

    def request_weights(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"need_weights": True}

    def store(name: str, _: nn.Module, args: Any, output: AttentionOutput) -> None:
        assert output.weights is not None
        weights[name] = output.weights

    for name, part in module.named_modules():
        if isinstance(part, MaskedMultiHeadAttention):
            hooks.append(part.register_forward_pre_hook(request_weights, with_kwargs=True))
            hooks.append(part.register_forward_hook(partial(store, name)))
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()
