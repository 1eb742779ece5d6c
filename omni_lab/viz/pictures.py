"""Pictures in a grid, each with words under it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def show_pictures(
    pictures: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 4, width: float = 2.8
) -> Figure:
    """pictures: [3, H, W] uint8 each. captions: one each; their lines are wrapped to the picture's width.
    width: inches per picture.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"one caption per picture: got {len(pictures)} pictures and {len(captions)} captions")
    rows = -(-len(pictures) // columns)
    wrapped = ["\n".join(textwrap.fill(line, int(12 * width)) for line in caption.splitlines()) for caption in captions]
    lines = max(caption.count("\n") + 1 for caption in wrapped)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, rows * (width + 0.22 * lines)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, pictures, wrapped, strict=False):
        axis.imshow(picture.transpose(1, 2, 0))
        axis.set_title(caption, y=-0.03, va="top", fontsize=10, fontweight="normal")
    return figure
