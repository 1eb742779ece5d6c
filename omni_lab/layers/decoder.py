"""The layer that heads of several tokens are built of: a transformer decoder's, with what it has worked out kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import Mlp
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.layers.attention import MaskedMultiHeadAttention


class CrossAttentionCache(NamedTuple):
    """A layer's keys and values of the memory, worked out once. alive: [B], whether there is any."""

    keys: Float[Tensor, "b h n e"]
    values: Float[Tensor, "b h n e"]
    open_keys: Bool[Tensor, "b 1 1 n"]
    alive: Bool[Tensor, " b"]

    def select(self, rows: Int[Tensor, " r"]) -> CrossAttentionCache:
        return CrossAttentionCache(*(part[rows] for part in self))


class KVCache(NamedTuple):
    """A layer's keys and values of what is written, [B, H, T, E]; None before anything is."""

    keys: Float[Tensor, "b h t e"]
    values: Float[Tensor, "b h t e"]

    def append(self, keys: Float[Tensor, "b h n e"], values: Float[Tensor, "b h n e"]) -> KVCache:
        return KVCache(torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2))

    @classmethod
    def empty(cls, heard: CrossAttentionCache) -> KVCache:
        """Nothing yet, of as many samples and heads."""
        return cls(heard.keys[:, :, :0], heard.values[:, :, :0])

    def select(self, rows: Int[Tensor, " r"]) -> KVCache:
        return KVCache(self.keys[rows], self.values[rows])


class DecoderLayer(nn.Module):
    """Pre-norm: x attends to itself, to the memory, and passes a feed-forward network (Vaswani et al. 2017)."""

    def __init__(self, *, dim: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.self_attn = MaskedMultiHeadAttention(dim=dim, num_heads=num_heads)
        self.cross_attn = MaskedMultiHeadAttention(dim=dim, num_heads=num_heads)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=dropout)
        self.dropout = nn.Dropout(dropout)

    def cache_context(self, memory: Tokens) -> CrossAttentionCache:
        """What this layer keeps of a memory."""
        alive = memory.mask.any(dim=1)
        open_keys = (memory.mask | ~alive[:, None])[:, None, None]  # [B, 1, 1, N]; dead rows stay finite
        return CrossAttentionCache(*self.cross_attn.project_kv(memory), open_keys, alive)

    def forward_parallel(
        self, x: Float[Tensor, "b t d"], memory: Tokens, real: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """All of x at once, each of it attending to all that is real (everything, if not told)."""
        heard = self.cache_context(memory)
        if real is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self(x, KVCache.empty(heard), real[:, None, None].expand(-1, -1, x.shape[1], -1), heard)[0]

    def forward(
        self, x: Float[Tensor, "b t d"], past: KVCache, open_keys: Bool[Tensor, "#b 1 t k"], heard: CrossAttentionCache
    ) -> tuple[Float[Tensor, "b t d"], KVCache]:
        h = self.norms[0](x)
        keys, values = self.self_attn.project_kv(Tokens(h, torch.ones_like(h[..., 0], dtype=torch.bool)))
        now = past.append(keys, values)
        x = x + self.dropout(self.self_attn.attend(h, now.keys, now.values, open_keys).values)
        told = self.cross_attn.attend(self.norms[1](x), heard.keys, heard.values, heard.open_keys).values
        x = x + self.dropout(torch.where(heard.alive[:, None, None], told, 0.0))
        return x + self.dropout(self.mlp(self.norms[2](x))), now
