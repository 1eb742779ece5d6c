"""The pixels head: restores a damaged picture, by what is left of it and by what the memory knows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from omni_lab.heads.context import FusedContext, HeadError
from omni_lab.layers.decoder import DecoderLayer

OUTPUT_CHANNELS = 4  # colours to add, and how much what is given is doubted
INPUT_CHANNELS = 6  # of what a place is told: three colours, whether they are certain, and where in a hole it lies


def hole_coordinates(certain: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 2 h w"]:
    """Where a pixel that is missing lies: from -1 at the left (top) of all that is missing to 1 at its right (bottom);
    0 where nothing is missing."""
    places = []
    missing = certain < 0.5
    for side in (3, 2):
        along = torch.arange(1.0, certain.shape[side] + 1, device=certain.device)
        along = along if side == 3 else along[:, None]
        here = torch.where(missing, along, 0.0)
        last = here.amax((2, 3), keepdim=True)
        first = torch.where(missing, along, last).amin((2, 3), keepdim=True)
        middle, half = (first + last) / 2, ((last - first) / 2).clamp(min=0.5)
        places.append(torch.where(missing, (along - middle) / half, 0.0))
    return torch.cat(places, dim=1)


class ResidualConvBlock(nn.Module):
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


class RestorationHead(nn.Module):
    """A U-Net (Ronneberger et al. 2015) over what is left of the picture, which says how far to doubt it, towards gray,
    and what to add. At its coarsest, each cell attends to all others and to the memory: there enters what was said of
    the picture, or heard. [B, 3, H, W] in [0, 1], in training also a little beyond.

    dim: of the memory. size: the side of a picture. patch: so many pixels squared make one place of the finest scale,
    their colours its channels, and are painted as one (sub-pixel convolution, Shi et al. 2016). widths: channels at
    each scale but the coarsest, which has `dim`; each is half as fine as the one before.
    """

    needs_context: ClassVar = True

    def __init__(
        self,
        *,
        dim: int,
        size: int,
        patch: int = 4,
        widths: Sequence[int] = (64,),
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        self.size, self.patch = size, patch
        self.shrink = patch * 2 ** len(widths)
        if size % self.shrink:
            raise HeadError(f"pixels: the side of pictures must be a multiple of {self.shrink}: got {size}")
        inner = (INPUT_CHANNELS * patch**2, *widths)
        self.down = nn.ModuleList(ResidualConvBlock(a, b) for a, b in itertools.pairwise(inner))
        self.enter = nn.Conv2d(widths[-1], dim, 1)
        self.cell = nn.Parameter(torch.randn((size // self.shrink) ** 2, dim) * 0.02)
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=0.0) for _ in range(depth)
        )
        outer = list(itertools.pairwise((dim, *reversed(widths))))  # coarse, and the finer one
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for coarse, fine in outer)
        self.up = nn.ModuleList(ResidualConvBlock(fine, fine) for _, fine in outer)
        self.paint = nn.Conv2d(widths[0], OUTPUT_CHANNELS * patch**2, 1)
        nn.init.zeros_(self.paint.weight)  # at first, what is given is what is returned
        assert self.paint.bias is not None
        nn.init.zeros_(self.paint.bias)

    def forward(
        self,
        context: FusedContext,
        *,
        image: UInt8[Tensor, "b 3 h w"],
        keep_mask: Bool[Tensor, "b h w"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """picture: the damaged one. kept: pixels that are as they were, and stay so to the last bit; without, none are
        certain (noise, low resolution). Raises HeadError for another size, or where all or nothing is kept."""
        if image.shape[-2:] != (self.size, self.size):
            raise HeadError(f"pixels: expected pictures of {self.size} x {self.size}: got {list(image.shape)}")
        if keep_mask is not None:
            for said, which in (
                ("every pixel: there is nothing to restore", keep_mask),
                ("no pixel at all", ~keep_mask),
            ):
                wrong = which.flatten(1).all(dim=1).nonzero().flatten().tolist()
                if wrong:
                    raise HeadError(f"pixels: the mask of samples {wrong} keeps {said}")
        given = image.to(torch.float32) / 255
        certain = torch.zeros_like(given[:, :1])
        if keep_mask is not None:
            certain = keep_mask[:, None].to(given.dtype)
            given = torch.where(keep_mask[:, None], given, 0.5)  # whatever stands in a hole is not looked at
        x, finer = (
            F.pixel_unshuffle(torch.cat([given - 0.5, certain, hole_coordinates(certain)], dim=1), self.patch),
            [],
        )
        for block in self.down:
            finer.append(block(x))
            x = F.avg_pool2d(finer[-1], 2)
        x = self.enter(x)
        side = x.shape[-1]
        cells = x.flatten(2).transpose(1, 2) + self.cell  # [B, side * side, D]
        for layer in self.layers:
            cells = layer.forward_parallel(cells, context.tokens)  # type: ignore[operator]
        x = cells.transpose(1, 2).unflatten(2, (side, side))
        for narrow, block, skipped in zip(self.narrow, self.up, reversed(finer), strict=True):
            x = block(F.interpolate(narrow(x), scale_factor=2.0, mode="nearest") + skipped)
        colours, doubt = F.pixel_shuffle(self.paint(x), self.patch).split((3, 1), dim=1)
        restored = given + doubt * (0.5 - given) + colours
        if not self.training:
            restored = restored.clamp(0, 1)
        return restored if keep_mask is None else torch.where(keep_mask[:, None], given, restored)
