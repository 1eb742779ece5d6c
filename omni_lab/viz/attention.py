"""Attention weights, and other maps of what an answer rests on, as pictures. The weights come from the forward that
the model ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchaudio
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from omni_lab.viz.style import HEAT


def attention_over_image(
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


def maps_over_image(
    picture: np.ndarray,
    maps: Mapping[str, np.ndarray],
    grid: tuple[int, int],
    *,
    box: Sequence[float] | None = None,
    columns: int = 5,
) -> Figure:
    """Maps of one picture side by side, each in a scale of its own from its least to its greatest value.

    picture: [3, H, W] uint8. maps: by name, [h*w] each. box: left, top, right, bottom in pixels, drawn in white: what
    the question is about.
    """
    panels = {"the picture": None, **maps}
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 2.35 * rows), squeeze=False)
    height, width = picture.shape[1:]
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, values) in zip(axes.flat, panels.items(), strict=False):
        axis.set_title(name)
        if values is None:
            axis.imshow(picture.transpose(1, 2, 0))
        else:
            if values.size != grid[0] * grid[1]:
                raise ValueError(f"{name}: a map must have {grid[0] * grid[1]} values: got {values.size}")
            axis.imshow(picture.mean(axis=0), cmap="gray", vmin=0, vmax=255)
            axis.imshow(values.reshape(grid), cmap=HEAT, alpha=0.7, extent=(0, width, height, 0))
        if box is not None:
            left, top, right, bottom = box
            for colour, thick in (("black", 3.0), ("white", 1.5)):
                axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=thick))
    return figure


def maps_over_audio(
    samples: np.ndarray,
    maps: Mapping[str, np.ndarray],
    seconds_per_token: float,
    words: Sequence[tuple[str, float, float]],
    *,
    asked: str = "",
    rate: int = 16_000,
) -> Figure:
    """A mel spectrogram with the words over it, and below it a strip for each map, on the same clock.

    samples: [S] float, between -1 and 1. maps: by name, [N] each. words: (word, start, end) in seconds; `asked` is
    set in bold.
    """
    mel = torchaudio.transforms.MelSpectrogram(rate, 512, hop_length=160, n_mels=64)(torch.from_numpy(samples).float())
    seconds = len(samples) / rate
    figure, axes = plt.subplots(
        1 + len(maps), 1, figsize=(9, 2.4 + 0.42 * len(maps)), sharex=True, height_ratios=[5] + [1] * len(maps)
    )
    top, *strips = np.atleast_1d(axes)
    top.imshow((mel + 1e-6).log().numpy(), aspect="auto", origin="lower", cmap="gray_r", extent=(0, seconds, 0, 64))
    top.set(ylabel="mel band", xlim=(0, seconds))
    top.grid(False)
    for word, start, end in words:
        weight = "bold" if word == asked else "normal"
        for edge in (start, end):
            top.axvline(edge, color="#D55E00", lw=1)
        top.text((start + end) / 2, 65, word, ha="center", va="bottom", fontsize=10, weight=weight)
    for axis, (name, values) in zip(strips, maps.items(), strict=True):
        axis.imshow(values[None], aspect="auto", cmap=HEAT, extent=(0, len(values) * seconds_per_token, 0, 1))
        axis.set_yticks([0.5], [name])
        axis.grid(False)
    axes[-1].set_xlabel("time [s]")
    return figure


def map_over_video(clip: np.ndarray, values: np.ndarray, *, seconds: float) -> Figure:
    """A clip's frames as a strip, with a map over them; all frames share one scale.

    clip: [F, 3, h, w] uint8. values: [F, g, g].
    """
    if values.shape[0] != len(clip):
        raise ValueError(f"a map must have a value for each of {len(clip)} frames: got {list(values.shape)}")
    figure, axes = plt.subplots(2, len(clip), figsize=(1.35 * len(clip) + 0.6, 3.1), squeeze=False)
    height, width = clip.shape[2:]
    for place, (frame, heat) in enumerate(zip(clip, values, strict=True)):
        for axis in axes[:, place]:
            axis.axis("off")
        axes[0, place].imshow(frame.transpose(1, 2, 0))
        axes[0, place].set_title(f"{(place + 0.5) * seconds / len(clip):.2f} s", fontsize=10, weight="normal")
        axes[1, place].imshow(frame.mean(axis=0), cmap="gray", vmin=0, vmax=255)
        shades = axes[1, place].imshow(
            heat, cmap=HEAT, alpha=0.7, extent=(0, width, height, 0), vmin=float(values.min()), vmax=float(values.max())
        )
    figure.colorbar(shades, ax=axes[1], shrink=0.8)
    return figure


def map_over_text(pieces: Sequence[str], maps: Mapping[str, np.ndarray]) -> Figure:
    """A row for each map: the tokens of a text, each on the colour of its value, from the least to the greatest."""
    figure, axis = plt.subplots(figsize=(max(6.0, 0.75 * len(pieces) + 2.2), 0.5 * len(maps) + 0.5))
    for row, values in enumerate(maps.values()):
        spread = float(values.max() - values.min()) or 1.0
        for place, (piece, value) in enumerate(zip(pieces, values, strict=True)):
            share = float(value - values.min()) / spread
            axis.add_patch(Rectangle((place, -row - 0.9), 1, 0.8, fc=plt.get_cmap("Blues")(0.8 * share), ec="white"))
            colour = "white" if share > 0.7 else "#222222"
            axis.text(place + 0.5, -row - 0.5, piece, ha="center", va="center", color=colour, fontsize=10.5)
    axis.set(xlim=(0, len(pieces)), ylim=(-len(maps), 0), xticks=[])
    axis.set_yticks([-row - 0.5 for row in range(len(maps))], list(maps))
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure
