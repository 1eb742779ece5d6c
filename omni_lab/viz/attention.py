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
from omni_lab.viz.images import heat_over_image, image_grid
from omni_lab.viz.style import HEAT, labelled_matrix


def attention_over_image(
    image: np.ndarray, weights: np.ndarray, grid: tuple[int, int], labels: Sequence[str], *, columns: int = 6
) -> Figure:
    """Where each query token looks; all panels share one colour scale, from zero to the largest weight.

    image: [3, H, W] uint8.
    weights: [Nq, h*w], a row per query token, each summing to one.
    grid: (h, w).
    """
    if weights.shape != (len(labels), grid[0] * grid[1]):
        raise ValueError(f"weights must be [{len(labels)}, {grid[0] * grid[1]}]: got {list(weights.shape)}")
    figure, axes = _image_and_panels(image, len(labels), columns, height=2.3)
    heat = None
    for axis, row, label in zip(axes, weights, labels, strict=False):
        heat = heat_over_image(axis, image, row.reshape(grid), vmin=0, vmax=float(weights.max()))
        axis.set_title(label)
    if heat is not None:
        figure.colorbar(heat, ax=figure.axes, shrink=0.8, label="attention weight")
    return figure


def maps_over_image(
    image: np.ndarray, maps: Mapping[str, np.ndarray], grid: tuple[int, int], *, columns: int = 5
) -> Figure:
    """Maps [h*w] of one image [3, H, W] uint8 side by side, by name, each scaled from its own minimum to its own
    maximum. grid: (h, w)."""
    figure, axes = _image_and_panels(image, len(maps), columns, height=2.35)
    for axis, (name, values) in zip(axes, maps.items(), strict=False):
        if values.size != grid[0] * grid[1]:
            raise ValueError(f"{name}: a map must have {grid[0] * grid[1]} values: got {values.size}")
        heat_over_image(axis, image, values.reshape(grid))
        axis.set_title(name)
    return figure


def _image_and_panels(image: np.ndarray, count: int, columns: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure that begins with the image, and at least `count` more axes."""
    figure, axes = image_grid(count + 1, min(columns, count + 1), width=2.1, height=height)
    axes[0].imshow(image.transpose(1, 2, 0))
    axes[0].set_title("the picture")
    return figure, axes[1:]


def weight_matrix(
    weights: np.ndarray, *, queries: Sequence[str], keys: Sequence[str], titles: Sequence[str], xlabel: str, ylabel: str
) -> Figure:
    """Attention matrices side by side. weights: [panels, Nq, Nk]."""
    size = (0.42 * len(keys) * len(weights) + 2.2, 0.36 * len(queries) + 1.6)
    figure, axes = plt.subplots(1, len(weights), figsize=size, squeeze=False, sharey=True)
    for axis, matrix, title in zip(axes.flat, weights, titles, strict=True):
        image = labelled_matrix(axis, matrix, keys, queries, cmap=HEAT, vmax=float(weights.max()), aspect="equal")
        axis.set(title=title, xlabel=xlabel)
    axes.flat[0].set_ylabel(ylabel)
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


def map_over_video(video: np.ndarray, values: np.ndarray, *, seconds: float) -> Figure:
    """The frames of a video, and below them a map; all frames share one scale.

    video: [F, 3, h, w] uint8.
    values: [F, g, g].
    seconds: duration of the video.
    """
    if values.shape[0] != len(video):
        raise ValueError(f"a map must have a value for each of {len(video)} frames: got {list(values.shape)}")
    figure, axes = plt.subplots(2, len(video), figsize=(1.35 * len(video) + 0.6, 3.1), squeeze=False)
    limits = {"vmin": float(values.min()), "vmax": float(values.max())}
    for index, (frame, heat, (top, bottom)) in enumerate(zip(video, values, axes.T, strict=True)):
        top.axis("off")
        bottom.axis("off")
        top.imshow(frame.transpose(1, 2, 0))
        top.set_title(f"{(index + 0.5) * seconds / len(video):.2f} s", fontsize=10, weight="normal")
        image = heat_over_image(bottom, frame, heat, **limits)
    figure.colorbar(image, ax=axes[1], shrink=0.8)
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
