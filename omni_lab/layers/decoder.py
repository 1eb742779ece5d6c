"""The transformer decoder layer of the heads that return several tokens, with key-value caches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import Mlp
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.layers.attention import CrossAttentionCache, MaskedMultiHeadAttention


class KVCache(NamedTuple):
    """A layer's keys and values of the T tokens decoded so far; T is 0 at first."""

    keys: Float[Tensor, "b h t e"]
    values: Float[Tensor, "b h t e"]

    def append(self, keys: Float[Tensor, "b h n e"], values: Float[Tensor, "b h n e"]) -> KVCache:
        return KVCache(torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2))

    @classmethod
    def empty(cls, cross: CrossAttentionCache) -> KVCache:
        """A cache without tokens, for as many samples and heads as `cross`."""
        return cls(cross.keys[:, :, :0], cross.values[:, :, :0])

    def select(self, rows: Int[Tensor, " r"]) -> KVCache:
        return KVCache(self.keys[rows], self.values[rows])


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention to a context, and feed-forward network (Vaswani et al. 2017)."""

    def __init__(self, *, dim: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.self_attn = MaskedMultiHeadAttention(dim=dim, num_heads=num_heads)
        self.cross_attn = MaskedMultiHeadAttention(dim=dim, num_heads=num_heads)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward_parallel(
        self, x: Float[Tensor, "b t d"], context: Tokens, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """All positions at once, each attending to every real one. mask: True where x is real (default: everywhere)."""
        cross = self.cross_attn.cache_context(context)
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        attn_mask = mask[:, None, None].expand(-1, -1, x.shape[1], -1)  # [B, 1, T, T]
        return self(x, KVCache.empty(cross), attn_mask, cross)[0]

    def forward(
        self, x: Float[Tensor, "b t d"], cache: KVCache, attn_mask: Bool[Tensor, "#b 1 t k"], cross: CrossAttentionCache
    ) -> tuple[Float[Tensor, "b t d"], KVCache]:
        """The next T positions, and the cache with them. attn_mask: over the cached and the new positions."""
        h = self.norms[0](x)
        cache = cache.append(*self.self_attn.project_kv(Tokens(h, torch.ones_like(h[..., 0], dtype=torch.bool))))
        x = x + self.dropout(self.self_attn.attend(h, *cache, attn_mask).values)
        x = x + self.dropout(self.cross_attn.attend(self.norms[1](x), *cross).values)
        return x + self.dropout(self.mlp(self.norms[2](x))), cache
