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
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.7))
    for axis, names in ((left, ("train loss", "validation loss")), (right, ("validation accuracy", "macro F1"))):
        for name in names:
            axis.plot(epochs, [row[name] for row in history], marker="o", label=name)
    last = history[-1]
    title = f"The validation loss ends at {last['validation loss']:.3f}"
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=title, ylim=(0, None))
    left.legend()
    right.axhline(floor, linestyle="--", color=BASELINE_COLOR, label=floor_label)
    title = f"Accuracy ends at {last['validation accuracy']:.3f}; baseline: {floor:.3f}"
    right.set(xlabel="epoch", ylabel="accuracy and macro F1 (0 to 1)", title=title, ylim=(0, 1.02))
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


def confusion_matrix_plot(
    truth: np.ndarray, predicted: np.ndarray, answers: Sequence[str], *, families: Sequence[str] | None = None
) -> Figure:
    """Counts of predicted against true answers: right ones in grey, mistakes shaded by their share of the true answer.

    families: of each answer; those of a family stand together, between lines.
    """
    families = ["" for _ in answers] if families is None else families
    order = sorted(range(len(answers)), key=lambda i: (families[i], answers[i]))
    names, count = [answers[i] for i in order], len(answers)
    counts = np.bincount(truth * count + predicted, minlength=count**2).reshape(count, count)[np.ix_(order, order)]
    mistakes = counts / counts.sum(axis=1, keepdims=True).clip(min=1) * (1 - np.eye(count))
    figure, axis = plt.subplots(figsize=(min(9.2, 0.55 * count + 2.4), 0.38 * count + 1.6))
    shades, darkest = np.ma.masked_equal(mistakes, 0), max(0.01, float(mistakes.max()))
    image = labelled_matrix(axis, shades, names, names, rotation=45, cmap="Oranges", vmax=darkest)
    for (y, x), n in np.ndenumerate(counts):
        if n:
            color = "#595959" if x == y else "white" if mistakes[y, x] > 0.6 * darkest else "black"
            weight = "normal" if x == y else "bold"
            axis.text(x, y, f"{n:,}", ha="center", va="center", fontsize=10.5, color=color, fontweight=weight)
    for i in range(1, count):
        if families[order[i]] != families[order[i - 1]]:
            axis.axhline(i - 0.5, color=BASELINE_COLOR, lw=1)
            axis.axvline(i - 0.5, color=BASELINE_COLOR, lw=1)
    wrong, total = int((truth != predicted).sum()), len(truth)
    axis.set(xlabel="predicted answer", ylabel="true answer", title=f"{wrong:,} of {total:,} answers are wrong")
    figure.colorbar(image, ax=axis, label="mistakes (fraction of the true answer)")
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
