"""Attention weights as pictures. The weights come from the forward that the model ran."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from omni_lab.viz.style import HEAT


def attention_over_picture(
    picture: np.ndarray, weights: np.ndarray, grid: tuple[int, int], labels: Sequence[str], *, columns: int = 6
) -> Figure:
    """Where each query token looks.

    picture: [3, H, W] uint8. weights: [Nq, h*w], one row per query token, each summing to one. grid: (h, w).
    All panels share one colour scale, from zero to the largest weight.
    """
    if weights.shape != (len(labels), grid[0] * grid[1]):
        raise ValueError(f"weights must be [{len(labels)}, {grid[0] * grid[1]}]: got {list(weights.shape)}")
    size = picture.shape[1]
    columns = min(columns, len(labels) + 1)
    rows = -(-(len(labels) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 2.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    axes.flat[0].imshow(picture.transpose(1, 2, 0))
    axes.flat[0].set_title("the picture")
    shades = None
    for axis, row, label in zip(axes.flat[1:], weights, labels, strict=False):
        axis.imshow(picture.mean(axis=0), cmap="gray", vmin=0, vmax=255)
        shades = axis.imshow(
            row.reshape(grid), cmap=HEAT, alpha=0.7, extent=(0, size, size, 0), vmin=0, vmax=float(weights.max())
        )
        axis.set_title(label)
    if shades is not None:
        figure.colorbar(shades, ax=axes, shrink=0.8, label="attention weight")
    return figure


def weight_matrix(
    weights: np.ndarray, *, queries: Sequence[str], keys: Sequence[str], titles: Sequence[str], xlabel: str, ylabel: str
) -> Figure:
    """Attention matrices side by side. weights: [panels, Nq, Nk]; titles: one per panel."""
    count = len(weights)
    figure, axes = plt.subplots(
        1, count, figsize=(0.42 * len(keys) * count + 2.2, 0.36 * len(queries) + 1.6), squeeze=False, sharey=True
    )
    for axis, matrix, title in zip(axes.flat, weights, titles, strict=True):
        shades = axis.imshow(matrix, cmap=HEAT, vmin=0, vmax=float(weights.max()))
        axis.set_xticks(range(len(keys)), keys, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(queries)), queries)
        axis.grid(False)
        axis.set(title=title, xlabel=xlabel)
    axes.flat[0].set_ylabel(ylabel)
    figure.colorbar(shades, ax=axes, label="attention weight")
    return figure
