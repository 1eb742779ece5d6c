"""What heads say: boxes in pictures, pictures before and after, sounds as they are and as they are spoken."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from omni_lab.batch import Modality
from omni_lab.viz.style import HEAT, MODALITY_COLORS

BOX = MODALITY_COLORS[Modality.IMAGE]


def boxes_in_images(
    pictures: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    names: Sequence[Sequence[str]],
    *,
    columns: int = 4,
    width: float = 2.8,
) -> Figure:
    """pictures: [3, H, W] uint8 each. boxes: [n, 4] each, left, top, right, bottom as shares of the sides. names: of
    each box, written in its upper left corner: labels outside would cover each other."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, width * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, places, said in zip(axes.flat, pictures, boxes, names, strict=False):
        height, wide = picture.shape[1:]
        axis.imshow(picture.transpose(1, 2, 0))
        for (left, top, right, bottom), name in zip(places * [wide, height, wide, height], said, strict=True):
            axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, lw=2, ec=BOX))
            label = {"facecolor": BOX, "edgecolor": "none", "pad": 1.0}
            axis.text(left, top, name, fontsize=8, color="white", va="top", bbox=label)
        axis.set(xlim=(-0.5, wide - 0.5), ylim=(height - 0.5, -0.5))
    return figure


def before_after(rows: Mapping[str, Sequence[np.ndarray]], *, titles: Sequence[str], width: float = 1.6) -> Figure:
    """A row of pictures [3, H, W], uint8 or in [0, 1], for each name; all rows hold the same pictures in one state of
    each. titles: over the columns."""
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(width * len(titles) + 0.8, width * len(rows) + 0.5), squeeze=False
    )
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture.transpose(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, fontweight="normal")
    return figure


def spectrograms(mels: Mapping[str, np.ndarray], *, hop: float = 0.01, width: float = 9.0) -> Figure:
    """Log mel spectrograms [F, bands], one under the other on one scale of time and energy. hop: seconds a frame."""
    figure, axes = plt.subplots(
        len(mels), 1, figsize=(width, 1.9 * len(mels) + 0.6), squeeze=False, sharex=True, sharey=True
    )
    low, high = (float(np.quantile(np.concatenate([*mels.values()]), q)) for q in (0.02, 0.998))
    for axis, (name, mel) in zip(axes[:, 0], mels.items(), strict=True):
        extent = (0, len(mel) * hop, 0, mel.shape[1])
        image = axis.imshow(mel.T, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, cmap=HEAT)
        axis.set_title(name)
        axis.set_ylabel("mel band")
        axis.grid(False)
    axes[-1, 0].set_xlabel("seconds")
    figure.colorbar(image, ax=axes, label="log energy", shrink=0.8)
    return figure


def show_images(
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
