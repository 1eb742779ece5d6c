"""The architecture on one page, labelled with the shapes of a forward pass."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from omni_lab.batch import OmniBatch
from omni_lab.fusion.cross_modal import FusionLayer
from omni_lab.model import OmniModel, OmniOutput
from omni_lab.viz.style import BASELINE_COLOR, MODALITY_COLORS, text_box

WIDTH, HEIGHT = 2.5, 0.95


def architecture(model: OmniModel, batch: OmniBatch, output: OmniOutput) -> Figure:
    """One lane per modality from input through encoder to fusion, then the heads. output: model(batch)."""
    lanes = list(output.encoded)
    figure, axis = plt.subplots(figsize=(13, 1.5 * len(lanes) + 1.6))
    heights = {m: 1.6 * (len(lanes) - 1 - i) for i, m in enumerate(lanes)}
    middle = sum(heights.values()) / len(lanes)
    top = max(heights.values())
    for m, y in heights.items():
        values, tokens, color = batch.inputs[m].values, output.encoded[m], MODALITY_COLORS[m]
        encoder = type(model.encoders[m.value]).__name__
        _box(axis, 0, y, f"{m}\n{[*values.shape]}", color, fill=True)
        _box(axis, 3.4, y, f"{encoder}\nTokens {[*tokens.values.shape]}", color)
        _arrow(axis, (WIDTH, y), (3.4, y), color, f"{len(values)} distinct")
        _arrow(axis, (3.4 + WIDTH, y), (7.1, y), color, f"{len(batch)} samples")
    layers: list[FusionLayer] = list(model.fusion.layers)  # type: ignore[arg-type]
    paths = dict.fromkeys(path for layer in layers for path in layer.paths)
    edges = "\n".join(f"{path.query} listens to {path.key}" for path in paths) or "no path"
    text = f"fusion\n{len(layers)} layer{'s' * (len(layers) != 1)}\n\n{edges}"
    _box(axis, 7.1, middle, text, "#333333", height=top + HEIGHT + 0.5)
    _arrow(axis, (7.1 + WIDTH, middle), (10.5, middle), "#333333", "pooled")
    for i, (name, result) in enumerate(output.head_outputs.items()):
        _box(axis, 10.5, middle - 1.4 * i, f"head: {name}\n{[*result.shape]}", BASELINE_COLOR, fill=True)
    axis.set(xlim=(-0.2, 13.2), ylim=(-0.9, top + 0.9))
    axis.axis("off")
    return figure


def _box(axis: Axes, x: float, y: float, text: str, color: str, *, fill: bool = False, height: float = HEIGHT) -> None:
    face, text_color = (color, "white") if fill else ("white", "#222222")
    text_box(axis, x, y, text, size=(WIDTH, height), color=text_color, fc=face, ec=color, lw=2)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str, label: str) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color=color, lw=2, shrinkA=0))
    axis.text((start[0] + end[0]) / 2, start[1] + 0.14, label, ha="center", va="bottom", fontsize=9, color="#444444")
