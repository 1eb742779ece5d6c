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
MARKERS = "s^DvPX<>ph"  # to tell lines apart in grey
GAP = 0.065  # between labels, fraction of the height of an axis
COST_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]  # of a logarithmic axis


def cost_accuracy_fronts(
    policies: Mapping[str, Sequence[Point]],
    *,
    ours: Sequence[str],
    close_up: tuple[Point, Point],
    rest: Sequence[str] = (),
    log_cost: bool = False,
) -> Figure:
    """The Pareto front of each kind of policy, and a close-up of a part below it, each labelled at its right end, in
    the close-up if it ends there.

    policies: points (cost, accuracy) by kind. ours: kinds that are drawn strongly. rest: kinds that stay grey.
    close_up: opposite corners. log_cost: whether the axes of costs, none zero, are logarithmic.
    """
    figure, axes = plt.subplots(2, 1, figsize=(9.2, 8.2), height_ratios=[1, 1.35], layout="constrained")
    ends: tuple[list[End], list[End]] = ([], [])
    (left, low), (right, high) = close_up
    scale = np.log if log_cost else np.asarray
    for number, (kind, points) in enumerate(policies.items()):
        strong, front = kind in ours, np.array(pareto_front(points))
        color = METHOD_COLOR if strong else BASELINE_COLOR if kind in rest else COLORS[number % len(COLORS)]
        look: dict[str, Any] = {"lw": 2.8, "marker": "o", "ms": 6, "zorder": 3}
        look = look if strong else {"lw": 1.2, "marker": MARKERS[number % len(MARKERS)], "ms": 5}
        inside = front[(front[:, 0] <= right) & (front[:, 1] <= high)]
        near = bool(len(inside) and inside[-1, 1] >= low)
        for axis, tint in zip(axes, (color if strong else BASELINE_COLOR, color), strict=True):
            axis.plot(*front.T, color=tint, **look)
        x, y = (inside if near else front)[-1]
        if near and front[-1, 0] > right:  # the line goes on beyond the close-up
            x, y = right, min(high, np.interp(scale(right), scale(front[:, 0]), front[:, 1]))
        quiet = not strong and (not near or kind in rest)
        ends[near].append((float(y), float(x), kind, "#555555" if quiet else color))
    axes[0].add_patch(plt.Rectangle((left, low), right - left, high - low, fill=False, ec="black", lw=1.2))
    axes[1].set(xlim=(left, right), ylim=(low, high))
    for axis, labels, title in zip(axes, ends, ("all policies (framed: the part below)", "close-up"), strict=True):
        if log_cost:
            axis.set_xscale("log")
            shown = [t for t in COST_TICKS if axis is axes[0] or left <= t <= right]
            axis.set_xticks(shown, [f"{t:g}" for t in shown])
            axis.minorticks_off()
        axis.set(xlabel="cost (fraction of the dense FLOPs)", ylabel="accuracy, test split")
        axis.set_title(title, loc="left", weight="normal", fontsize=11)
        _label_in_margin(axis, labels, ours)
    return figure


def _label_in_margin(axis: Axes, ends: Sequence[End], ours: Sequence[str]) -> None:
    """Labels of lines beside the axis, none over another, none above its top; a thin line leads from each end to the
    edge, so that no leader crosses another."""
    (low, high), right = axis.get_ylim(), axis.get_xlim()[1]
    heights: list[float] = []
    for y, *_ in sorted(ends):
        heights.append(max([(y - low) / (high - low), *(h + GAP for h in heights[-1:])]))
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], 1 - GAP * (len(heights) - 1 - i))
    for height, (y, x, kind, color) in zip(heights, sorted(ends), strict=True):
        look: dict[str, Any] = {"color": color, "fontsize": 10.5, "weight": "bold" if kind in ours else "normal"}
        thin: dict[str, Any] = {"color": color, "lw": 0.8, "alpha": 0.7}
        axis.plot([x, right], [y, y], ls=":", scalex=False, scaley=False, **thin)
        arrow = {"arrowstyle": "-", "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0, **thin}
        place: dict[str, Any] = {"textcoords": "axes fraction", "va": "center", "arrowprops": arrow}
        axis.annotate(kind, (right, y), (1.03, height), annotation_clip=False, **place, **look)


def decision_maps(
    shares: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], *, xlabel: str, ylabel: str
) -> Figure:
    """A matrix of shares, from 0 to 1, for each title, side by side, with their percentages; nan: left empty.

    rows, columns: labels of the bins.
    """
    figure, panels = plt.subplots(1, len(shares), figsize=(9.2, 3.9), sharey=True, squeeze=False)
    highest = max([0.1, *(float(np.nanmax(share, initial=0)) for share in shares.values())])
    for axis, (title, share) in zip(panels[0], shares.items(), strict=True):
        labelled_matrix(axis, share, columns, rows, vmax=highest)
        axis.set_xticks(range(len(columns)), columns, rotation=0, ha="center", rotation_mode="default")
        for (y, x), value in np.ndenumerate(share):
            color = "white" if value > 0.6 * highest else "black"
            axis.text(x, y, "" if np.isnan(value) else f"{100 * value:.0f}", ha="center", va="center", color=color)
        axis.set(title=title, xlabel=xlabel)
    panels[0, 0].set_ylabel(ylabel)
    return figure
