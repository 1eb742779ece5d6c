"""Images in grids: with captions, with boxes, before and after restoration; and mel spectrograms."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from omni_lab.batch import Modality
from omni_lab.viz.style import HEAT, MODALITY_COLORS

BOX_COLOR = MODALITY_COLORS[Modality.IMAGE]
SIZE = 2.8  # inches per image


def image_grid(count: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """At least `count` axes without frame and ticks. width, height: inches per axis."""
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, [*axes.flat]


def boxes_in_images(
    images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], names: Sequence[Sequence[str]], *, columns: int = 3
) -> Figure:
    """Images with named boxes.

    images: [3, H, W] uint8 each.
    boxes: [n, 4] each: left, top, right, bottom as fractions of the sides.
    names: of each box, written inside its upper left corner; outside they would cover each other.
    """
    figure, axes = image_grid(len(images), columns, width=SIZE, height=SIZE)
    for axis, image, rectangles, labels in zip(axes, images, boxes, names, strict=False):
        h, w = image.shape[1:]
        axis.imshow(image.transpose(1, 2, 0))
        for (left, top, right, bottom), label in zip(rectangles * [w, h, w, h], labels, strict=True):
            corner = (left - 0.5, top - 0.5)
            axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, lw=2, ec=BOX_COLOR))
            frame = {"facecolor": BOX_COLOR, "edgecolor": "none", "pad": 1.0}
            axis.text(left, top, label, fontsize=9.5, color="white", va="top", bbox=frame)
        axis.set(xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))
    return figure


def before_after(states: Mapping[str, Sequence[np.ndarray]], *, titles: Sequence[str]) -> Figure:
    """The same images in several states: a row per image, a named column per state.

    states: images [3, H, W] each, uint8 or in [0, 1]. titles: of the images.
    """
    side = min(1.6, 8.4 / len(states))
    size = (side * len(states) + 0.8, side * len(titles) + 0.9)
    figure, axes = plt.subplots(len(titles), len(states), figsize=size, squeeze=False)
    for column, (name, images) in zip(axes.T, states.items(), strict=True):
        for axis, image in zip(column, images, strict=True):
            axis.imshow(image.transpose(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        column[0].set_title(name, fontsize=10, fontweight="normal")
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10)
    return figure


def spectrograms(mels: Mapping[str, np.ndarray], *, hop: float = 0.01) -> Figure:
    """Log mel spectrograms [F, bands] below each other, on one scale of time and energy. hop: seconds per frame."""
    size = (9.0, 1.9 * len(mels) + 0.6)
    figure, axes = plt.subplots(len(mels), 1, figsize=size, squeeze=False, sharex=True, sharey=True)
    low, high = (float(np.quantile(np.concatenate([*mels.values()]), q)) for q in (0.02, 0.998))
    for axis, (name, mel) in zip(axes[:, 0], mels.items(), strict=True):
        extent = (0, len(mel) * hop, 0, mel.shape[1])
        image = axis.imshow(mel.T, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, cmap=HEAT)
        axis.set(title=name, ylabel="mel band")
        axis.grid(False)
    axes[-1, 0].set_xlabel("time (seconds)")
    figure.colorbar(image, ax=axes, label="log energy", shrink=0.8)
    return figure


def show_images(
    images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 4, size: float = SIZE
) -> Figure:
    """Images [3, H, W] uint8, each with a caption that is wrapped to its width. size: inches per image."""
    if len(images) != len(captions):
        raise ValueError(f"one caption per image: got {len(images)} images and {len(captions)} captions")
    wrapped = ["\n".join(textwrap.fill(line, int(12 * size)) for line in caption.splitlines()) for caption in captions]
    lines = max(caption.count("\n") + 1 for caption in wrapped)
    figure, axes = image_grid(len(images), columns, width=size, height=size + 0.22 * lines)
    for axis, image, caption in zip(axes, images, wrapped, strict=False):
        axis.imshow(image.transpose(1, 2, 0))
        axis.set_title(caption, y=-0.03, pad=0, va="top", fontsize=10, fontweight="normal")
    return figure
