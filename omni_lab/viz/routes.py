"""Routes as figures: which encoders and paths run, and how often, for one question or for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from omni_lab.batch import Modality
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace
from omni_lab.viz.style import BASELINE_COLOR, MODALITY_COLORS, labelled_matrix, text_box

WIDTH, HEIGHT, SPACING = 1.5, 0.8, 2.6  # of boxes, and of the columns they stand in
MIN_RATE = 0.02  # what runs less often is drawn as skipped
LEVEL_NAMES = dict(zip(ComputeLevel, ("skipped", "tiny", "early exit", "encoder"), strict=True))


def route_graph(space: RouteSpace, route: Route, *, title: str = "", axis: Axes | None = None) -> Figure:
    """The network from left to right: encoders, the streams after each fusion layer, the answer head.

    Edges between modalities are paths, in the colour of their key modality. The more often a path or an encoder runs
    (`route` may hold many questions), the stronger it is drawn; what never runs is grey. Lower levels are dashed.
    """
    if axis is None:
        _, axis = plt.subplots(figsize=(min(9.2, 1.2 + 2.6 * (space.depth + 2)), len(space.modalities) + 0.7))
    heights = {m: -1.15 * i for i, m in enumerate(space.modalities)}
    head_y = sum(heights.values()) / len(heights)
    columns = [SPACING * i for i in range(space.depth + 2)]
    axis.set(xlim=(-0.1, columns[-1] + WIDTH + 0.1), ylim=(min(heights.values()) - 0.6, 1.0))
    axis.axis("off")
    for m, y in heights.items():
        levels, color = route.encoder_levels[:, m.column], MODALITY_COLORS[m]
        rate, full_rate = _rate(levels > ComputeLevel.SKIP), _rate(levels == ComputeLevel.FULL)
        runs, lower = rate > MIN_RATE, rate > MIN_RATE and full_rate < rate / 2
        what = f"{rate:.0%}" if len(route) > 1 else LEVEL_NAMES[ComputeLevel(int(levels[0]))]
        _node(axis, columns[0], y, f"{m}\n{what}", color, rate, dashed=lower)
        for x in columns[1:-1]:
            _node(axis, x, y, str(m) if runs else "", color, rate)
        for left, right in pairwise(columns):
            end = (right, y) if right != columns[-1] else (right, head_y)
            _edge(axis, (left + WIDTH, y), end, BASELINE_COLOR, rate, bend=0.0)
    _node(axis, columns[-1], head_y, "answer", "#333333", 1.0)
    for layer, x in enumerate(columns[:-2]):
        for path in [p for p in space.paths if (layer, p) not in space.pruned_paths]:
            start, end = (x + WIDTH, heights[path.key]), (columns[layer + 1], heights[path.query])
            _edge(axis, start, end, MODALITY_COLORS[path.key], _rate(route.path_mask(layer, path)))
        axis.text(x + (WIDTH + SPACING) / 2, 0.62, f"layer {layer + 1}", ha="center", color="#444444", fontsize=11)
    if title:
        axis.set_title(title)
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _rate(mask: Tensor) -> float:
    return float(mask.double().mean())


def _node(axis: Axes, x: float, y: float, text: str, color: str, rate: float, *, dashed: bool = False) -> None:
    runs = rate > MIN_RATE
    alpha = 0.25 + 0.75 * rate if runs and not dashed else 0.15
    text_color = "white" if runs and not dashed and rate > 0.5 else "#222222"
    fill, edge, line = (color, color, 2) if runs else ("white", "#bbbbbb", 1)
    look = {"fc": (*to_rgb(fill), alpha), "ec": edge, "lw": line, "ls": "--" if dashed else "-"}
    text_box(axis, x, y, text, size=(WIDTH, HEIGHT), color=text_color, largest=11.5, **look)


def _edge(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str, rate: float, *, bend: float = 0.12
) -> None:
    look: dict[str, Any] = {"arrowstyle": "-", "color": "#dddddd", "lw": 0.6, "alpha": 0.7, "zorder": 1}
    if rate > MIN_RATE:
        look = {"arrowstyle": "-|>", "color": color, "lw": 0.8 + 4.2 * rate, "alpha": 0.9, "zorder": 2}
    look |= {"connectionstyle": f"arc3,rad={bend}", "mutation_scale": 8 + 8 * rate}
    axis.add_patch(FancyArrowPatch(start, end, shrinkA=1, shrinkB=1, **look))


def route_matrix(space: RouteSpace, routes: Mapping[str, Route], needs: Mapping[str, Sequence[Modality]]) -> Figure:
    """How often each encoder and each path runs, a row per question family. needs: modalities that a family requires;
    they are framed."""
    paths = [(layer, path) for layer in range(space.depth) for path in space.paths]
    rates = np.zeros((len(routes), len(space.modalities) + len(paths)))
    for row, route in enumerate(routes.values()):
        encoded = [_rate(route.encoder_levels[:, m.column] > ComputeLevel.SKIP) for m in space.modalities]
        rates[row] = encoded + [_rate(route.path_mask(layer, path)) for layer, path in paths]
    figure, axis = plt.subplots(figsize=(0.42 * rates.shape[1] + 3.3, 0.24 * len(routes) + 2.2))
    labels = [*map(str, space.modalities), *(f"{path}, {layer + 1}".replace("_", " ") for layer, path in paths)]
    image = labelled_matrix(axis, rates, labels, list(routes))
    for row, name in enumerate(routes):
        for column, m in enumerate(space.modalities):
            if m in needs.get(name, ()):
                axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=1.5))
    axis.axvline(len(space.modalities) - 0.5, color="white", lw=3)
    axis.set_xlabel("encoders (framed: needed), and paths with their layer")
    figure.colorbar(image, ax=axis, label="share of questions for which it runs")
    return figure
