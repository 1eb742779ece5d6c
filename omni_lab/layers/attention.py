"""Scaled dot-product attention over masked tokens, twice: a fused path for speed, an explicit one for pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import Mlp
from torch import Tensor, nn

from omni_lab.batch import Tokens


class AttentionOutput(NamedTuple):
    """values: [B, Nq, D]. weights: [B, H, Nq, Nk], rows sum to one (zero where no key is open); None if fused."""

    values: Float[Tensor, "b q d"]
    weights: Float[Tensor, "b h q k"] | None


class MaskedMultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(d_head)) V over `heads` heads (Vaswani et al. 2017, eq. 1 and section 3.2.2).

    Query, key, value and output are plain `nn.Linear` layers, so that tools that replace Linear layers
    (quantization, pruning) reach them. A sample without one open key yields
    exactly zero: not NaN, and not the output bias.

    dim: D. heads: H, must divide D.
    """

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"heads must divide dim: got dim={dim}, heads={num_heads}")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.key.load_state_dict(self.query.state_dict())  # at first, like attends to like

    def _split(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n e"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, N, D/H]

    def forward(self, query: Float[Tensor, "b q d"], context: Tokens, *, need_weights: bool = False) -> AttentionOutput:
        """Each sample's query attends to its own context tokens, which several samples may share.

        need_weights: take the explicit path and return the weights.
        """
        mask = context.sample_mask  # [B, Nk]
        if query.shape[-1] != self.dim or context.values.shape[-1] != self.dim or query.shape[0] != mask.shape[0]:
            raise ValueError(
                f"query and context must be {self.dim} wide and of as many samples: got query {list(query.shape)} and "
                f"context {list(context.values.shape)} for {mask.shape[0]} samples"
            )
        keys, values = self.project_kv(context)
        alive = mask.any(dim=1)  # [B]
        open_keys = (mask | ~alive[:, None])[:, None, None, :]  # [B, 1, 1, Nk]; dead rows stay finite, zeroed below
        output = self.attend(query, keys, values, open_keys, need_weights=need_weights, alive=alive)
        return output._replace(values=torch.where(alive[:, None, None], output.values, 0.0))

    def project_kv(self, context: Tokens) -> tuple[Float[Tensor, "b h k e"], Float[Tensor, "b h k v"]]:
        """What a query is compared with, and what it gets: projected once per entry, then dealt out."""
        k = context.gather(self._split(self.key(context.values)))
        return k, context.gather(self._split(self.value(context.values)))

    def attend(
        self,
        query: Float[Tensor, "b q d"],
        keys: Float[Tensor, "b h k e"],
        values: Float[Tensor, "b h k v"],
        attn_mask: Bool[Tensor, "#b 1 _ k"],
        *,
        need_weights: bool = False,
        alive: Bool[Tensor, " b"] | None = None,
    ) -> AttentionOutput:
        """The same with keys and values made beforehand. open_keys: which of them each query may attend to, at least
        one. alive: samples whose weights are real; all others' are zero."""
        q = self._split(self.query(query))
        weights = None
        if need_weights:
            scores = q @ keys.transpose(-2, -1) / math.sqrt(self.head_dim)  # [B, H, Nq, Nk]
            weights = scores.masked_fill(~attn_mask, float("-inf")).softmax(dim=-1)
            if alive is not None:
                weights = weights * alive[:, None, None, None]
            mixed = (
                weights @ values
            )  # [B, H, Nq, D/H]; these very weights, so that gradients with respect to them exist
        else:
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=attn_mask, scale=self.head_dim**-0.5)
        return AttentionOutput(self.out(mixed.transpose(1, 2).flatten(2)), weights)  # heads side by side, then mixed


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward network: x + SA(LN x), then x + FFN(LN x). Works per entry, and wants
    one entry per sample."""

    def __init__(self, *, dim: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
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


@contextmanager
def record_attention(module: nn.Module) -> Iterator[dict[str, Float[Tensor, "b h q k"]]]:
    """While it is open, every `MultiHeadAttention` inside `module` takes the explicit path, and the weights of its last
    call stand under its name: those that made the output, with their gradients where there are any."""
    weights: dict[str, Tensor] = {}
    hooks = []
    for name, part in module.named_modules():
        if not isinstance(part, MaskedMultiHeadAttention):
            continue

        def ask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs | {"need_weights": True}

        def keep(_: nn.Module, args: Any, output: AttentionOutput, name: str = name) -> None:
            assert output.weights is not None
            weights[name] = output.weights

        hooks += [part.register_forward_pre_hook(ask, with_kwargs=True), part.register_forward_hook(keep)]
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()
