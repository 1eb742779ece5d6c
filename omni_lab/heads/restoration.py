"""The restoration head: repairs a damaged image from what is left of it and from the context."""

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

INPUT_CHANNELS = 6  # three colours, whether the pixel is kept, and its coordinates in the hole
OUTPUT_CHANNELS = 4  # three colours to add, and how far to pull the input towards gray


def hole_coordinates(keep: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 2 h w"]:
    """x and y of each missing pixel in the bounding box of all missing ones, in [-1, 1]; 0 where nothing is missing.

    keep: 1 where a pixel is kept, else 0.
    """
    coordinates = []
    missing = keep < 0.5
    for side in (3, 2):
        index = torch.arange(1.0, keep.shape[side] + 1, device=keep.device)
        index = index if side == 3 else index[:, None]
        last = torch.where(missing, index, 0.0).amax((2, 3), keepdim=True)
        first = torch.where(missing, index, last).amin((2, 3), keepdim=True)
        middle, half = (first + last) / 2, ((last - first) / 2).clamp(min=0.5)
        coordinates.append(torch.where(missing, (index - middle) / half, 0.0))
    return torch.cat(coordinates, dim=1)


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
    """A U-Net (Ronneberger et al. 2015) whose coarsest cells attend to each other and to the context.

    dim: width of the context and of the coarsest scale.
    size: the side of the images, in pixels.
    patch: the side of the pixel block that is one cell of the finest scale (sub-pixel convolution, Shi et al. 2016).
    widths: channels of all scales but the coarsest, finest first; each scale halves the resolution.
    Raises HeadError for a size that the scales do not divide.
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
            raise HeadError(f"restoration: the side of images must be a multiple of {self.shrink}: got {size}")
        inner = (INPUT_CHANNELS * patch**2, *widths)
        self.down = nn.ModuleList(ResidualConvBlock(a, b) for a, b in itertools.pairwise(inner))
        self.enter = nn.Conv2d(widths[-1], dim, 1)
        self.cell = nn.Parameter(torch.randn((size // self.shrink) ** 2, dim) * 0.02)
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=0.0) for _ in range(depth)
        )
        outer = list(itertools.pairwise((dim, *reversed(widths))))  # (coarse, fine) widths
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for coarse, fine in outer)
        self.up = nn.ModuleList(ResidualConvBlock(fine, fine) for _, fine in outer)
        self.paint = nn.Conv2d(widths[0], OUTPUT_CHANNELS * patch**2, 1)
        nn.init.zeros_(self.paint.weight)  # at first, the output is the input
        assert self.paint.bias is not None
        nn.init.zeros_(self.paint.bias)

    def forward(
        self,
        context: FusedContext,
        *,
        image: UInt8[Tensor, "b 3 h w"],
        keep_mask: Bool[Tensor, "b h w"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The restored image, in [0, 1]; in training it is not clamped, so that the loss has a gradient beyond.

        image: the damaged image.
        keep_mask: True for undamaged pixels, which are returned exactly. None: all may change (noise, low resolution).
        Raises HeadError for an image of another size, or a mask that keeps every pixel or none.
        """
        if image.shape[-2:] != (self.size, self.size):
            raise HeadError(f"restoration: expected images of {self.size} x {self.size}: got {list(image.shape)}")
        damaged = image.to(torch.float32) / 255
        keep = torch.zeros_like(damaged[:, :1])
        if keep_mask is not None:
            for mask, kept in ((keep_mask, "every pixel: there is nothing to restore"), (~keep_mask, "no pixel")):
                wrong = mask.flatten(1).all(dim=1).nonzero().flatten().tolist()
                if wrong:
                    raise HeadError(f"restoration: the mask of samples {wrong} keeps {kept}")
            keep = keep_mask[:, None].to(damaged.dtype)
            damaged = torch.where(keep_mask[:, None], damaged, 0.5)  # the content of a hole is not used
        x = F.pixel_unshuffle(torch.cat([damaged - 0.5, keep, hole_coordinates(keep)], dim=1), self.patch)
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = F.avg_pool2d(skips[-1], 2)
        x = self.enter(x)  # [B, D, h, h]
        cells = x.flatten(2).transpose(1, 2) + self.cell  # [B, h * h, D]
        for layer in self.layers:
            cells = layer.forward_parallel(cells, context.tokens)  # type: ignore[operator]
        x = cells.transpose(1, 2).unflatten(2, x.shape[2:])
        for narrow, block, skip in zip(self.narrow, self.up, reversed(skips), strict=True):
            x = block(F.interpolate(narrow(x), scale_factor=2.0, mode="nearest") + skip)
        colours, doubt = F.pixel_shuffle(self.paint(x), self.patch).split((3, 1), dim=1)
        restored = damaged + doubt * (0.5 - damaged) + colours
        if not self.training:
            restored = restored.clamp(0, 1)
        return restored if keep_mask is None else torch.where(keep_mask[:, None], damaged, restored)
