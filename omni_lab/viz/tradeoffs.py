"""Accuracy against cost, and what decisions depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from omni_lab.metrics.pareto import Point, pareto_front
from omni_lab.viz.style import BASELINE_COLOR, METHOD_COLOR, labelled_matrix

End = tuple[float, float, str, str]  # of a line: y, x, label, colour
COLORS = ["#D55E00", "#009E73", "#CC79A7", "#882255", "#999933", "#661100", "#56B4E9", "#E69F00", "#332288", "#44AA99"]


def cost_accuracy_fronts(
    policies: Mapping[str, Sequence[Point]], *, ours: Sequence[str], close_up: tuple[Point, Point]
) -> Figure:
    """The Pareto front of each kind of policy, and a close-up of a part beside it, each labelled at its right end, in
    the close-up if it ends there.

    policies: points (cost, accuracy) by kind. ours: kinds that are drawn strongly. close_up: opposite corners.
    """
    figure, axes = plt.subplots(1, 2, figsize=(14.5, 5), width_ratios=[1, 1.3], layout="constrained")
    ends: tuple[list[End], list[End]] = ([], [])
    (left, low), (right, high) = close_up
    for number, (kind, points) in enumerate(policies.items()):
        strong, front = kind in ours, np.array(pareto_front(points))
        color = METHOD_COLOR if strong else COLORS[number % len(COLORS)]
        inside = front[(front[:, 0] <= right) & (front[:, 1] <= high)]
        near = bool(len(inside) and inside[-1, 1] >= low)
        for axis, tint in zip(axes, (color if strong else BASELINE_COLOR, color), strict=True):
            axis.plot(*front.T, "o-", ms=4, lw=2.5 if strong else 1.2, color=tint, alpha=1.0 if strong else 0.8)
        x, y = (inside if near else front)[-1]
        if near and front[-1, 0] > right:  # the line goes on beyond the close-up
            x, y = right, min(high, np.interp(right, *front.T))
        ends[near].append((float(y), float(x), kind, color if near else "#555555"))
    axes[0].add_patch(plt.Rectangle((left, low), right - left, high - low, fill=False, ec="black", lw=1.2))
    axes[0].set_title("all policies; framed: the close-up")
    axes[1].set(xlim=(left, right), ylim=(low, high), title="where the contenders are")
    for axis, labels in zip(axes, ends, strict=True):
        axis.set(xlabel="FLOPs, fraction of the dense ones", ylabel="accuracy, test split")
        _label_in_margin(axis, labels, ours)
    return figure


def _label_in_margin(axis: Axes, ends: Sequence[End], ours: Sequence[str]) -> None:
    """Labels of lines beside the axis, none over another, none above its top; a thin line leads from each end to the
    edge, so that no leader crosses another."""
    (low, high), right = axis.get_ylim(), axis.get_xlim()[1]
    heights: list[float] = []
    for y, *_ in sorted(ends):
        heights.append(max([(y - low) / (high - low), *(h + 0.055 for h in heights[-1:])]))
    above = max(0.0, *heights[-1:], 1.0) - 1.0
    for height, (y, x, kind, color) in zip(heights, sorted(ends), strict=True):
        look: dict[str, Any] = {"color": color, "fontsize": 9, "weight": "bold" if kind in ours else "normal"}
        thin: dict[str, Any] = {"color": color, "lw": 0.7, "alpha": 0.6}
        axis.plot([x, right], [y, y], ls=":", scalex=False, scaley=False, **thin)
        place: dict[str, Any] = {
            "textcoords": "axes fraction",
            "va": "center",
            "arrowprops": {"arrowstyle": "-", **thin},
        }
        axis.annotate(kind, (right, y), (1.03, height - above), annotation_clip=False, **place, **look)


def decision_maps(
    shares: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], *, xlabel: str, ylabel: str
) -> Figure:
    """A matrix of shares, from 0 to 1, for each title, side by side. rows, columns: labels of the bins."""
    figure, panels = plt.subplots(1, len(shares), figsize=(3.6 * len(shares) + 1, 3.9), sharey=True, squeeze=False)
    axes: list[Axes] = [*panels[0]]
    for axis, (title, share) in zip(axes, shares.items(), strict=True):
        image = labelled_matrix(axis, share, columns, rows)
        axis.set(title=title, xlabel=xlabel)
    axes[0].set_ylabel(ylabel)
    figure.colorbar(image, ax=axes, label="share of the questions")
    return figure
