"""Learning curves, accuracy beside baselines, and which answers are confused with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from omni_lab.viz.style import BASELINE_COLOR, METHOD_COLOR, labelled_matrix


def training_curves(history: Sequence[Mapping[str, float]], *, floor: float, floor_label: str) -> Figure:
    """Loss and validation scores by epoch.

    history: a row per epoch, as in the training table.
    floor: accuracy of a baseline, drawn dashed.
    """
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    for axis, names in ((left, ("train loss", "validation loss")), (right, ("validation accuracy", "macro F1"))):
        for name in names:
            axis.plot(epochs, [row[name] for row in history], marker="o", label=name)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="loss", ylim=(0, None))
    left.legend()
    right.axhline(floor, linestyle="--", color=BASELINE_COLOR, label=floor_label)
    right.set(xlabel="epoch", ylabel="share", title="validation", ylim=(0, 1.02))
    right.legend(loc="lower right")
    return figure


def accuracy_bars(
    rows: Sequence[tuple[str, float, tuple[float, float] | None, bool]], *, title: str, xlabel: str = "test accuracy"
) -> Figure:
    """Horizontal bars. rows: (label, value, (low, high) or None, whether it is a baseline), from top to bottom."""
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.2))
    for y, (_, value, interval, baseline) in enumerate(rows):
        error = None if interval is None else np.abs(np.array(interval) - value)[:, None]
        axis.barh(y, value, xerr=error, color=BASELINE_COLOR if baseline else METHOD_COLOR, height=0.65, capsize=3)
        end = value if interval is None else interval[1]
        x, color = (0.01, "white") if value > 0.15 else (end + 0.01, None)
        axis.text(x, y, f"{value:.3f}", va="center", color=color, fontweight="bold")
    axis.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set(xlim=(0, 1.02), xlabel=xlabel, title=title)
    return figure


def confusion_matrix_plot(truth: np.ndarray, predicted: np.ndarray, answers: Sequence[str]) -> Figure:
    """Counts of predicted against true answers, shaded by the fraction of each true answer."""
    counts = np.zeros((len(answers), len(answers)), dtype=int)
    np.add.at(counts, (truth, predicted), 1)
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure, axis = plt.subplots(figsize=(0.62 * len(answers) + 2.5, 0.5 * len(answers) + 1.5))
    image = labelled_matrix(axis, fractions, answers, answers, rotation=45)
    for (y, x), count in np.ndenumerate(counts):
        if count:
            color = "white" if fractions[y, x] > 0.5 else "black"
            axis.text(x, y, str(count), ha="center", va="center", color=color)
    axis.set(xlabel="predicted answer", ylabel="true answer", title="test questions by true and predicted answer")
    figure.colorbar(image, ax=axis, label="share of the true answer")
    return figure


def line_plot(
    x: Sequence[float], series: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str, title: str
) -> Figure:
    """A line per named series over a common axis."""
    figure, axis = plt.subplots(figsize=(7, 3.8))
    for name, values in series.items():
        axis.plot(x, values, marker="o", label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.legend()
    return figure
