"""Routes as pictures: which encoders and paths ran, how often, for one question or for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from omni_lab.batch import Modality
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace
from omni_lab.viz.style import BASELINE_COLOR, MODALITY_COLORS

WIDE, HIGH = 1.5, 0.8
FAINT = 0.02  # what runs more seldom is drawn as closed


def route_graph(space: RouteSpace, route: Route, *, title: str = "", axis: Axes | None = None) -> Figure:
    """The network from left to right: encoders, the streams after each layer of fusion, the head.

    route: of one question or of many. An edge between modalities is a path: its colour is that of who is listened to,
    its thickness how often it is open. A box is as strong as its encoder runs often, dashed for the early exit. What
    never runs stays as a thin grey line.
    """
    if axis is None:
        _, axis = plt.subplots(figsize=(1.2 + 2.6 * (space.depth + 2), 1.15 * len(space.modalities) + 0.7))
    heights = {m: -1.15 * i for i, m in enumerate(space.modalities)}
    runs = {m: float((route.encoder_levels[:, m.column] > ComputeLevel.SKIP).double().mean()) for m in space.modalities}
    full = {
        m: float((route.encoder_levels[:, m.column] == ComputeLevel.FULL).double().mean()) for m in space.modalities
    }
    columns = [2.6 * i for i in range(space.depth + 2)]
    for m, y in heights.items():
        exits = runs[m] > FAINT and full[m] < runs[m] / 2
        share = "" if len(route) == 1 else f"\n{runs[m]:.0%}"
        kind = "skipped" if runs[m] <= FAINT else "early exit" if exits else "encoder"
        _node(
            axis,
            columns[0],
            y,
            f"{m}{share}" if len(route) > 1 else f"{m}\n{kind}",
            MODALITY_COLORS[m],
            runs[m],
            dashed=exits,
        )
        for layer in range(space.depth):
            _node(axis, columns[layer + 1], y, str(m) if runs[m] > FAINT else "", MODALITY_COLORS[m], runs[m])
        for left, right in pairwise(columns):
            goal = (right, y) if right != columns[-1] else (right, _head(heights))
            _edge(axis, (left + WIDE, y), goal, BASELINE_COLOR, runs[m], straight=True)
    _node(axis, columns[-1], _head(heights), "answer", "#333333", 1.0)
    for layer in range(space.depth):
        for path in space.paths:
            if (layer, path) in space.pruned_paths:
                continue
            often = float(route.path_mask(layer, path).double().mean())
            start, goal = (columns[layer] + WIDE, heights[path.key]), (columns[layer + 1], heights[path.query])
            _edge(axis, start, goal, MODALITY_COLORS[path.key], often)
        axis.text(
            columns[layer] + (WIDE + 2.6) / 2, 0.62, f"layer {layer + 1}", ha="center", color="#444444", fontsize=11
        )
    axis.set(xlim=(-0.1, columns[-1] + WIDE + 0.1), ylim=(min(heights.values()) - 0.6, 1.0))
    axis.axis("off")
    if title:
        axis.set_title(title)
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _head(heights: Mapping[Modality, float]) -> float:
    return sum(heights.values()) / len(heights)


def _node(axis: Axes, x: float, y: float, text: str, colour: str, often: float, *, dashed: bool = False) -> None:
    runs = often > FAINT
    face = colour if runs else "white"
    box = FancyBboxPatch(
        (x, y - HIGH / 2),
        WIDE,
        HIGH,
        boxstyle="round,pad=0,rounding_size=0.12",
        fc=(*to_rgb(face), 0.25 + 0.75 * often if runs and not dashed else 0.15),
        ec=colour if runs else "#bbbbbb",
        lw=2 if runs else 1,
        ls="--" if dashed else "-",
    )
    axis.add_patch(box)
    strong = runs and not dashed and often > 0.5
    axis.text(x + WIDE / 2, y, text, ha="center", va="center", fontsize=10.5, color="white" if strong else "#222222")


def _edge(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    often: float,
    *,
    straight: bool = False,
) -> None:
    runs = often > FAINT
    bend = 0.0 if straight else 0.12
    axis.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>" if runs else "-",
            mutation_scale=8 + 8 * often,
            connectionstyle=f"arc3,rad={bend}",
            color=colour if runs else "#dddddd",
            lw=0.8 + 4.2 * often if runs else 0.6,
            alpha=0.9 if runs else 0.7,
            shrinkA=1,
            shrinkB=1,
            zorder=2 if runs else 1,
        )
    )


def route_matrix(space: RouteSpace, routes: Mapping[str, Route], needs: Mapping[str, Sequence[Modality]]) -> Figure:
    """How often each encoder and each path runs, a row for each kind of question. needs: marks with a frame the
    modalities that a kind cannot do without."""
    names = list(routes)
    columns: list[tuple[str, int | None]] = [(str(m), None) for m in space.modalities]
    columns += [(str(path).replace("_", " "), layer) for layer in range(space.depth) for path in space.paths]
    shares = np.zeros((len(names), len(columns)))
    for row, route in enumerate(routes.values()):
        encoded = [(route.encoder_levels[:, m.column] > ComputeLevel.SKIP).double().mean() for m in space.modalities]
        paths = [route.path_mask(layer, p).double().mean() for layer in range(space.depth) for p in space.paths]
        shares[row] = [float(share) for share in (*encoded, *paths)]
    figure, axis = plt.subplots(figsize=(0.62 * len(columns) + 3.4, 0.3 * len(names) + 2.4))
    shades = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, name in enumerate(names):
        for place, m in enumerate(space.modalities):
            if m in needs.get(name, ()):
                axis.add_patch(plt.Rectangle((place - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=1.5))
    labels = [name if layer is None else f"{name}, {layer + 1}" for name, layer in columns]
    axis.set_xticks(range(len(columns)), labels, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.axvline(len(space.modalities) - 0.5, color="white", lw=3)
    axis.grid(False)
    axis.set_xlabel("encoders (framed: needed), and paths with their layer")
    figure.colorbar(shades, ax=axis, label="share of questions for which it runs")
    return figure
