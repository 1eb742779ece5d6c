"""The pixels head: restores a damaged picture, by what is left of it and by what the memory knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from omni_lab.heads.decoder import Layer
from omni_lab.heads.memory import HeadError, Remembered


class Convolutions(nn.Module):
    """Two 3 x 3 convolutions with group norms, and a shortcut around them."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, out) for _ in range(2))
        self.shortcut = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        h = F.gelu(self.norms[0](self.first(x)))
        return F.gelu(self.norms[1](self.second(h)) + self.shortcut(x))


class PixelsHead(nn.Module):
    """A U-Net (Ronneberger et al. 2015) over what is left of the picture, which says what to add to it. At its
    coarsest, each cell attends to all others and to the memory: there enters what was said of the picture, or heard.
    [B, 3, H, W] in [0, 1], in training also a little beyond.

    dim: of the memory. size: the side of a picture. widths: channels at each scale but the coarsest, which has `dim`;
    each is half as fine as the one before.
    """

    reads_memory: ClassVar = True

    def __init__(
        self,
        *,
        dim: int,
        size: int,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        self.size = size
        widths = (*widths, dim)
        self.shrink = 2 ** (len(widths) - 1)
        if size % self.shrink:
            raise HeadError(f"pixels: the side of pictures must be a multiple of {self.shrink}: got {size}")
        self.down = nn.ModuleList(Convolutions(a, b) for a, b in zip((4, *widths[:-1]), widths, strict=True))
        self.cell = nn.Parameter(torch.randn((size // self.shrink) ** 2, dim) * 0.02)
        self.layers = nn.ModuleList(Layer(dim=dim, heads=heads, mlp_ratio=mlp_ratio, dropout=0.0) for _ in range(depth))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # coarse, and the finer one
        self.up = nn.ModuleList(Convolutions(coarse + fine, fine) for coarse, fine in pairs)
        self.paint = nn.Conv2d(widths[0], 3, 1)
        nn.init.zeros_(self.paint.weight)  # at first, what is given is what is returned
        assert self.paint.bias is not None
        nn.init.zeros_(self.paint.bias)

    def forward(
        self,
        memory: Remembered,
        *,
        picture: UInt8[Tensor, "b 3 h w"],
        kept: Bool[Tensor, "b h w"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """picture: the damaged one. kept: pixels that are as they were, and stay so to the last bit; without, none are
        certain (noise, low resolution). Raises HeadError for another size, or where all or nothing is kept."""
        if picture.shape[-2:] != (self.size, self.size):
            raise HeadError(f"pixels: expected pictures of {self.size} x {self.size}: got {list(picture.shape)}")
        if kept is not None:
            for said, which in (("every pixel: there is nothing to restore", kept), ("no pixel at all", ~kept)):
                wrong = which.flatten(1).all(dim=1).nonzero().flatten().tolist()
                if wrong:
                    raise HeadError(f"pixels: the mask of samples {wrong} keeps {said}")
        given = picture.to(torch.float32) / 255
        certain = torch.zeros_like(given[:, :1])
        if kept is not None:
            certain = kept[:, None].to(given.dtype)
            given = torch.where(kept[:, None], given, 0.5)  # whatever stands in a hole is not looked at
        x, finer = torch.cat([given - 0.5, certain], dim=1), []
        for scale, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if scale else x)
            finer.append(x)
        side = x.shape[-1]
        cells = x.flatten(2).transpose(1, 2) + self.cell  # [B, side * side, D]
        for layer in self.layers:
            cells = layer.together(cells, memory.tokens)  # type: ignore[operator]
        x = cells.transpose(1, 2).unflatten(2, (side, side))
        for block, skipped in zip(self.up, finer[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skipped], dim=1))
        restored = given + self.paint(x)
        if not self.training:
            restored = restored.clamp(0, 1)
        return restored if kept is None else torch.where(kept[:, None], given, restored)
