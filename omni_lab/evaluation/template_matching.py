"""Detection by template matching: normalised cross-correlation of images with artwork that is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int, UInt8
from torch import Tensor

from omni_lab.heads.detection import Detections
from omni_lab.worlds.things import Thing, sprite

SIZES = (0.31, 0.44)  # smallest and largest side of a thing, as fractions of the image's side
ANGLES = (-16, 16)  # degrees
COARSE, FINE = (3, 3), (5, 5)  # numbers of sizes and of angles; coarse templates are matched at half the resolution


class _Templates(NamedTuple):
    """T templates on an image's canvas, each centred at pixel (0, 0), transformed by the FFT and conjugated."""

    labels: Int[Tensor, " t"]  # number of the thing
    sizes: Int[Tensor, " t"]  # side in pixels
    colours: Complex[Tensor, "t 3 h k"]  # weighted by opacity, mean zero
    masks: Complex[Tensor, "t h k"]  # opacity
    weights: Float[Tensor, " t"]  # opacity summed over pixels and colours
    energies: Float[Tensor, " t"]  # of the colours

    def of_things(self, labels: Int[Tensor, " n"]) -> _Templates:
        rows = torch.isin(self.labels, labels)
        return _Templates(*(column[rows] for column in self))

    @classmethod
    def render(cls, things: Sequence[Thing], side: int, grid: tuple[int, int]) -> _Templates:
        """side: of the image in pixels. grid: numbers of sizes and of angles."""
        sizes = (np.linspace(*SIZES, grid[0]) * side).round().astype(int).tolist()
        rows = [*product(range(len(things)), sizes, np.linspace(*ANGLES, grid[1]).round().astype(int).tolist())]
        canvas = torch.zeros(len(rows), 4, side, side)
        for row, (label, size, angle) in zip(canvas, rows, strict=True):
            art = np.array(sprite(things[label].emoji, size, angle), dtype=np.float32) / 255  # [size, size, 4]
            row[:, :size, :size] = torch.from_numpy(art).permute(2, 0, 1)
            row.copy_(row.roll((-(size // 2), -(size // 2)), (1, 2)))
        colours, alpha = canvas[:, :3], canvas[:, 3:]
        weights = 3 * alpha.sum((1, 2, 3))
        centred = colours - ((alpha * colours).sum((1, 2, 3)) / weights)[:, None, None, None]
        weighted, energies = torch.fft.rfft2(alpha * centred).conj(), (alpha * centred.square()).sum((1, 2, 3))
        labels, sides, _ = torch.tensor(rows).T
        return cls(labels, sides, weighted, torch.fft.rfft2(alpha[:, 0]).conj(), weights, energies)

    def correlate(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "t h w"]:
        """The correlation of the opaque pixels' colours, -1 to 1, for each centre; -1 where the image is left."""
        side = image.shape[-1]
        spectrum, squares = torch.fft.rfft2(image), torch.fft.rfft2(image.square().sum(0))
        products = (spectrum * self.colours).sum(1), spectrum.sum(0) * self.masks, squares * self.masks
        product, mean, square = (torch.fft.irfft2(x, s=(side, side)) for x in products)
        variance = (square - mean.square() / self.weights[:, None, None]).clamp(min=1e-3)
        scores = product / (variance * self.energies[:, None, None]).sqrt()
        before, place = self.sizes[:, None] // 2, torch.arange(side)
        inside = (place >= before) & (place + self.sizes[:, None] - before <= side)  # [T, side]
        return scores.masked_fill_(~(inside[:, :, None] & inside[:, None]), -1.0)


@torch.inference_mode()
def match_templates(
    images: UInt8[Tensor, "b 3 h w"], things: Sequence[Thing], *, candidates: int = 12, most: int = 8
) -> list[Detections]:
    """The things of each image, by masked normalised cross-correlation (Padfield 2012), which scores them.

    Templates at half the resolution choose the `candidates` things of the highest correlation; these are matched again
    in full resolution, in more sizes and angles. Each maximum among neighbouring centres is a detection, at most `most`
    of them. Raises ValueError if images are not square.
    """
    side = images.shape[-1]
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != side:
        raise ValueError(f"images must be [B, 3, side, side]: got {list(images.shape)}")
    coarse, fine = _Templates.render(things, side // 2, COARSE), _Templates.render(things, side, FINE)
    reach = round(SIZES[0] * side / 2)  # centres of two things are farther apart
    found = []
    for image in images.float() / 255:
        scores = coarse.correlate(F.avg_pool2d(image, 2)).amax((1, 2)).view(len(things), -1).amax(1)
        templates = fine.of_things(scores.topk(min(candidates, len(things))).indices)
        best, which = templates.correlate(image).max(0)
        peaks = (best == F.max_pool2d(best[None], 2 * reach + 1, 1, reach)[0]).nonzero()
        peaks = peaks[best[*peaks.T].argsort(descending=True)[:most]]
        rows = which[*peaks.T]
        sizes = templates.sizes[rows, None]
        corner = peaks.flip(1) - sizes // 2
        found.append(Detections(templates.labels[rows], best[*peaks.T], torch.cat([corner, corner + sizes], 1) / side))
    return found
