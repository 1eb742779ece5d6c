"""The architecture on one page, labelled with the shapes of a forward pass; other diagrams of boxes and arrows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from omni_lab.batch import OmniBatch
from omni_lab.fusion.cross_modal import FusionLayer
from omni_lab.model import OmniModel, OmniOutput
from omni_lab.viz.style import MODALITY_COLORS, text_box

WIDTH, HEIGHT, STEP = 1.95, 0.8, 2.42  # of boxes, and between the columns that they stand in; inches


def architecture(model: OmniModel, batch: OmniBatch, output: OmniOutput) -> Figure:
    """One lane per modality from input through encoder to fusion, then the heads. output: model(batch)."""
    lanes = list(output.encoded)
    heights = {m: 1.0 * (len(lanes) - 1 - i) for i, m in enumerate(lanes)}
    middle, top = sum(heights.values()) / len(lanes), max(heights.values())
    figure = plt.figure(figsize=(3 * STEP + WIDTH + 0.06, top + 2.0))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(-0.03, 3 * STEP + WIDTH + 0.03), ylim=(-0.5, top + 1.5))
    axis.axis("off")
    inputs, encoders, fusion, heads = (column * STEP for column in range(4))
    for m, y in heights.items():
        values, tokens, color = batch.inputs[m].values, output.encoded[m], MODALITY_COLORS[m]
        encoder = type(model.encoders[m.value]).__name__
        _box(axis, inputs, y, f"{m}\n{[*values.shape]}", color, fill=True)
        _box(axis, encoders, y, f"{encoder}\nTokens {[*tokens.values.shape]}", color)
        for x in (encoders, fusion):
            _arrow(axis, (x - STEP + WIDTH, y), (x, y), color)
    layers: list[FusionLayer] = list(model.fusion.layers)  # type: ignore[arg-type]
    paths = dict.fromkeys(path for layer in layers for path in layer.paths)
    edges = "\n".join(f"{path.key} → {path.query}" for path in paths) or "no path"
    text = f"{len(layers)} layer{'s' * (len(layers) != 1)}\n\n{edges}"
    _box(axis, fusion, middle, text, "#333333", height=top + HEIGHT)
    _arrow(axis, (fusion + WIDTH, middle), (heads, middle), "#333333")
    for i, (name, result) in enumerate(output.head_outputs.items()):
        _box(axis, heads, middle - i, f"{name}\n{[*result.shape]}", "#555555", fill=True)
    titles = ("inputs\neach once", "encoders\neach input once", "fusion\nper sample", "heads\nper sample")
    for column, title in enumerate(titles):
        x = column * STEP + WIDTH / 2
        axis.text(x, top + 0.55, title, ha="center", va="bottom", fontsize=12, color="#333333")
    message = f"{len(batch)} samples: each distinct input is encoded once"
    axis.text(2 * STEP - 0.23, top + 1.45, message, ha="center", va="top", fontsize=14, weight="bold")
    return figure


def flow_chart(
    boxes: Mapping[str, tuple[float, float, str, str]], arrows: Sequence[tuple[str, str, str]], *, title: str
) -> Figure:
    """Boxes of equal size and labelled arrows between them, from left to right.

    boxes: by name: column, row (counted downwards; halves stand between), text, colour. Those of column 0 are filled.
    arrows: (from, to, label), from the right side of a box to the left side of another.
    """
    columns, rows = 1 + max(x for x, *_ in boxes.values()), 1 + max(y for _, y, *_ in boxes.values())
    step, width, height = 9.1 / (columns - 0.25), 6.825 / (columns - 0.25), 0.64  # inches
    figure = plt.figure(figsize=(9.2, 0.85 * rows + 0.4))
    figure.set_layout_engine("none")  # the argument of `figure` would not survive saving
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.05, 9.15), ylim=(-0.85 * (rows - 0.5), 0.825))
    axis.text(4.55, 0.6, title, ha="center", va="center", fontweight="bold")
    axis.axis("off")
    corners = {name: (step * column, -0.85 * row) for name, (column, row, *_) in boxes.items()}
    for name, (column, _, text, color) in boxes.items():
        face, text_color = (color, "white") if column == 0 else ("white", "#222222")
        text_box(axis, *corners[name], text, size=(width, height), color=text_color, fc=face, ec=color, lw=2)
    for start, end, label in arrows:
        (x, y), to, color = corners[start], corners[end], boxes[start][3]
        _arrow(axis, (x + width, y), to, color)
        middle = ((x + width + to[0]) / 2, (y + to[1]) / 2 + 0.08)
        axis.text(*middle, label, ha="center", va="bottom", fontsize=10, color="#444444")
    return figure


def _box(axis: Axes, x: float, y: float, text: str, color: str, *, fill: bool = False, height: float = HEIGHT) -> None:
    face, text_color = (color, "white") if fill else ("white", "#222222")
    text_box(axis, x, y, text, size=(WIDTH, height), color=text_color, largest=12, fc=face, ec=color, lw=2)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color=color, lw=2, shrinkA=0))
