"""Attention weights and other maps over the inputs. The weights come from the forward pass that gave the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchaudio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from omni_lab.batch import SAMPLE_RATE
from omni_lab.viz.images import image_grid
from omni_lab.viz.style import HEAT, labelled_matrix

Extent = tuple[float, float, float, float]  # left, right, bottom, top
LEVELS = (0.25, 0.5, 0.75)
WIDTHS = (1.0, 1.8, 3.0)  # of the lines at these levels


def outline_cells(axis: Axes, heat: np.ndarray, extent: Extent, *, high: float) -> None:
    """Lines around the cells of a map [h, w], over whatever the axis shows: thin, medium and thick ones where the map
    exceeds the `LEVELS`, as fractions of `high`. They are bright with a dark edge, and so seen on any picture.

    extent: left, right, bottom and top edge of the map.
    """
    steps = 6  # per cell: lines of several levels stand side by side, not over each other
    values = np.pad(np.kron(heat, np.ones((steps, steps))), 1)
    left, right, bottom, top = extent
    x, y = (
        start + (np.arange(n) - 0.5) * (end - start) / (n - 2)
        for start, end, n in ((left, right, values.shape[1]), (top, bottom, values.shape[0]))
    )
    if values.max() > LEVELS[0] * high > 0:
        levels = [level * high for level in LEVELS]
        for edge, color in ((1.6, "black"), (0.0, "#F0E442")):
            axis.contour(x, y, values, levels=levels, colors=color, linewidths=[width + edge for width in WIDTHS])


def attention_over_image(
    image: np.ndarray,
    weights: np.ndarray,
    grid: tuple[int, int],
    labels: Sequence[str],
    *,
    columns: int = 5,
    title: str = "",
) -> Figure:
    """Where each query token looks; all panels share one scale, from zero to the largest weight.

    image: [3, H, W] uint8.
    weights: [Nq, h*w], a row per query token, each summing to one.
    grid: (h, w).
    """
    if weights.shape != (len(labels), grid[0] * grid[1]):
        raise ValueError(f"weights must be [{len(labels)}, {grid[0] * grid[1]}]: got {list(weights.shape)}")
    largest = float(weights.max())
    figure, axes = _image_and_panels(image, labels, columns)
    for axis, row in zip(axes, weights, strict=False):
        outline_cells(axis, row.reshape(grid), _extent(image), high=largest)
    levels = ", ".join(f"{level * largest:.2g}" for level in LEVELS)
    figure.supxlabel(f"lines, from thin to thick: cells with an attention weight above {levels}", fontsize=10.5)
    figure.suptitle(title, fontsize=12, weight="bold")
    return figure


def maps_over_image(
    image: np.ndarray, maps: Mapping[str, np.ndarray], grid: tuple[int, int], *, columns: int = 5, title: str = ""
) -> Figure:
    """Maps [h*w] of one image [3, H, W] uint8 side by side, by name, each scaled from zero to its own maximum.
    grid: (h, w)."""
    figure, axes = _image_and_panels(image, [*maps], columns)
    for axis, (name, values) in zip(axes, maps.items(), strict=False):
        if values.size != grid[0] * grid[1]:
            raise ValueError(f"{name}: a map must have {grid[0] * grid[1]} values: got {values.size}")
        outline_cells(axis, values.reshape(grid), _extent(image), high=float(values.max()))
    levels = ", ".join(f"{100 * level:.0f}" for level in LEVELS)
    figure.supxlabel(f"lines, from thin to thick: cells above {levels} % of a map's maximum", fontsize=10.5)
    figure.suptitle(title, fontsize=12, weight="bold")
    return figure


def _extent(image: np.ndarray) -> Extent:
    return (-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5)


def _image_and_panels(image: np.ndarray, titles: Sequence[str], columns: int) -> tuple[Figure, list[Axes]]:
    """A figure that begins with the image, and has a copy of it for each title."""
    columns = min(columns, len(titles) + 1)
    side = min(2.1, 9.2 / columns)
    figure, axes = image_grid(len(titles) + 1, columns, width=side, height=side + 0.3)
    for axis, title in zip(axes, ["the picture", *titles], strict=False):
        axis.imshow(image.transpose(1, 2, 0))
        axis.autoscale(False)
        axis.set_title(title, fontsize=11)
    return figure, axes[1:]


def weight_matrix(
    weights: np.ndarray, *, queries: Sequence[str], keys: Sequence[str], titles: Sequence[str], xlabel: str, ylabel: str
) -> Figure:
    """Attention matrices below each other, on one scale. weights: [panels, Nq, Nk]."""
    size = (min(9.2, 0.42 * len(keys) + 2.2), (0.28 * len(queries) + 0.7) * len(weights) + 0.5)
    figure, axes = plt.subplots(len(weights), 1, figsize=size, squeeze=False, sharex=True)
    for axis, matrix, title in zip(axes.flat, weights, titles, strict=True):
        image = labelled_matrix(axis, matrix, keys, queries, rotation=0, vmax=float(weights.max()))
        axis.set(title=title, ylabel=ylabel)
    axes.flat[-1].set_xlabel(xlabel)
    figure.colorbar(image, ax=axes, label="attention weight")
    return figure


def maps_over_audio(
    waveform: np.ndarray,
    maps: Mapping[str, np.ndarray],
    seconds_per_token: float,
    words: Sequence[tuple[str, float, float]],
) -> Figure:
    """A mel spectrogram with its words, and below it a strip per map on the same time axis.

    waveform: [S] float, between -1 and 1.
    maps: by name, [N] each.
    words: (word, start, end) in seconds.
    """
    spectrogram = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, 512, hop_length=160, n_mels=64)
    mel = spectrogram(torch.from_numpy(waveform).float())
    seconds, ratios = len(waveform) / SAMPLE_RATE, [5] + [1] * len(maps)
    size = (9, 2.4 + 0.42 * len(maps))
    figure, axes = plt.subplots(1 + len(maps), 1, figsize=size, sharex=True, height_ratios=ratios, squeeze=False)
    top, *strips = axes[:, 0]
    top.imshow((mel + 1e-6).log().numpy(), aspect="auto", origin="lower", cmap="gray_r", extent=(0, seconds, 0, 64))
    top.set(ylabel="mel band", xlim=(0, seconds))
    top.grid(False)
    for word, start, end in words:
        for edge in (start, end):
            top.axvline(edge, color="#D55E00", lw=1)
        top.text((start + end) / 2, 65, word, ha="center", va="bottom", fontsize=10)
    for axis, (name, values) in zip(strips, maps.items(), strict=True):
        axis.imshow(values[None], aspect="auto", cmap=HEAT, extent=(0, len(values) * seconds_per_token, 0, 1))
        axis.set_yticks([0.5], [name])
        axis.grid(False)
    axes[-1, 0].set_xlabel("time [s]")
    return figure


def map_over_video(video: np.ndarray, values: np.ndarray, *, seconds: float, title: str = "") -> Figure:
    """The frames of a video, and below each its map; all maps share one scale.

    video: [F, 3, h, w] uint8.
    values: [F, g, g].
    seconds: duration of the video.
    """
    if values.shape[0] != len(video):
        raise ValueError(f"a map must have a value for each of {len(video)} frames: got {list(values.shape)}")
    figure, axes = plt.subplots(2, len(video), figsize=(9.2, 16.5 / len(video) + 0.6), squeeze=False)
    limits = {"vmin": float(values.min()), "vmax": float(values.max())}
    for index, (frame, heat, (top, bottom)) in enumerate(zip(video, values, axes.T, strict=True)):
        top.imshow(frame.transpose(1, 2, 0))
        top.set_title(f"{(index + 0.5) * seconds / len(video):.2f} s", fontsize=10.5, weight="normal")
        map_image = bottom.imshow(heat, cmap=HEAT, **limits)
        for axis in (top, bottom):
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
    axes[0, 0].set_ylabel("frame")
    axes[1, 0].set_ylabel("map")
    bar = figure.colorbar(map_image, ax=axes, shrink=0.8, ticks=[*limits.values()])
    bar.set_ticklabels(["low", "high"])
    figure.suptitle(title, fontsize=12, weight="bold")
    return figure


def map_over_text(tokens: Sequence[str], maps: Mapping[str, np.ndarray]) -> Figure:
    """A row per map: the tokens of a text, shaded by their values from the minimum to the maximum."""
    figure, axis = plt.subplots(figsize=(max(6.0, 0.75 * len(tokens) + 2.2), 0.5 * len(maps) + 0.5))
    for row, values in enumerate(maps.values()):
        spread = float(values.max() - values.min()) or 1.0
        for column, (token, value) in enumerate(zip(tokens, values, strict=True)):
            shade = float(value - values.min()) / spread
            axis.add_patch(Rectangle((column, -row - 0.9), 1, 0.8, fc=plt.get_cmap("Blues")(0.8 * shade), ec="white"))
            color = "white" if shade > 0.7 else "#222222"
            axis.text(column + 0.5, -row - 0.5, token, ha="center", va="center", color=color, fontsize=10.5)
    axis.set(xlim=(0, len(tokens)), ylim=(-len(maps), 0), xticks=[])
    axis.set_yticks([-row - 0.5 for row in range(len(maps))], list(maps))
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure
