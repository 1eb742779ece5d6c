"""The layer that heads of several tokens are built of: a transformer decoder's, with what it has worked out kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import Mlp
from torch import Tensor, nn

from omni_lab.attention import MultiHeadAttention
from omni_lab.modalities import Tokens


class Heard(NamedTuple):
    """A layer's keys and values of the memory, worked out once. alive: [B], whether there is any."""

    keys: Float[Tensor, "b h n e"]
    values: Float[Tensor, "b h n e"]
    open_keys: Bool[Tensor, "b 1 1 n"]
    alive: Bool[Tensor, " b"]

    def of(self, rows: Int[Tensor, " r"]) -> Heard:
        return Heard(*(part[rows] for part in self))


class Past(NamedTuple):
    """A layer's keys and values of what is written, [B, H, T, E]; None before anything is."""

    keys: Float[Tensor, "b h t e"]
    values: Float[Tensor, "b h t e"]

    def then(self, keys: Float[Tensor, "b h n e"], values: Float[Tensor, "b h n e"]) -> Past:
        return Past(torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2))

    @classmethod
    def before(cls, heard: Heard) -> Past:
        """Nothing yet, of as many samples and heads."""
        return cls(heard.keys[:, :, :0], heard.values[:, :, :0])

    def of(self, rows: Int[Tensor, " r"]) -> Past:
        return Past(self.keys[rows], self.values[rows])


class Layer(nn.Module):
    """Pre-norm: x attends to itself, to the memory, and passes a feed-forward network (Vaswani et al. 2017)."""

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.own = MultiHeadAttention(dim=dim, heads=heads)
        self.cross = MultiHeadAttention(dim=dim, heads=heads)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=dropout)
        self.dropout = nn.Dropout(dropout)

    def hear(self, memory: Tokens) -> Heard:
        """What this layer keeps of a memory."""
        alive = memory.mask.any(dim=1)
        open_keys = (memory.mask | ~alive[:, None])[:, None, None]  # [B, 1, 1, N]; dead rows stay finite
        return Heard(*self.cross.keys_values(memory), open_keys, alive)

    def together(
        self, x: Float[Tensor, "b t d"], memory: Tokens, real: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """All of x at once, each of it attending to all that is real (everything, if not told)."""
        heard = self.hear(memory)
        if real is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self(x, Past.before(heard), real[:, None, None].expand(-1, -1, x.shape[1], -1), heard)[0]

    def forward(
        self, x: Float[Tensor, "b t d"], past: Past, open_keys: Bool[Tensor, "#b 1 t k"], heard: Heard
    ) -> tuple[Float[Tensor, "b t d"], Past]:
        h = self.norms[0](x)
        keys, values = self.own.keys_values(Tokens(h, torch.ones_like(h[..., 0], dtype=torch.bool)))
        now = past.then(keys, values)
        x = x + self.dropout(self.own.attend(h, now.keys, now.values, open_keys).values)
        told = self.cross.attend(self.norms[1](x), heard.keys, heard.values, heard.open_keys).values
        x = x + self.dropout(torch.where(heard.alive[:, None, None], told, 0.0))
        return x + self.dropout(self.mlp(self.norms[2](x))), now
