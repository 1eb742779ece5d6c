"""The architecture on one page, labelled with the shapes of a forward that really ran."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from omni_lab.batch import OmniBatch
from omni_lab.fusion.cross_modal import FusionLayer
from omni_lab.model import OmniModel, OmniOutput
from omni_lab.viz.style import BASELINE_COLOR, MODALITY_COLORS

WIDTH, HEIGHT = 2.5, 0.95


def architecture(model: OmniModel, batch: OmniBatch, output: OmniOutput) -> Figure:
    """One lane per modality from input through encoder to fusion, then the heads. `output` is model(batch)."""
    lanes = list(output.encoded)
    figure, axis = plt.subplots(figsize=(13, 1.5 * len(lanes) + 1.6))
    heights = {m: 1.6 * (len(lanes) - 1 - i) for i, m in enumerate(lanes)}
    middle = sum(heights.values()) / len(lanes)
    top = max(heights.values())
    for m, y in heights.items():
        given = batch.inputs[m]
        tokens = output.encoded[m]
        inside = type(model.encoders[m.value]).__name__
        _box(axis, 0, y, f"{m}\n{_shape(given.values)}", MODALITY_COLORS[m], filled=True)
        _box(axis, 3.4, y, f"{inside}\nTokens {_shape(tokens.values)}", MODALITY_COLORS[m])
        _arrow(axis, (WIDTH, y), (3.4, y), MODALITY_COLORS[m], f"{len(given.values)} distinct")
        _arrow(axis, (3.4 + WIDTH, y), (7.1, y), MODALITY_COLORS[m], f"{len(batch)} samples")
    layers: list[FusionLayer] = list(model.fusion.layers)  # type: ignore[arg-type]
    paths = dict.fromkeys(path for layer in layers for path in layer.paths)
    listening = "\n".join(f"{path.query} listens to {path.key}" for path in paths) or "no path"
    tall = top + HEIGHT + 0.5
    _box(
        axis, 7.1, middle, f"fusion\n{len(layers)} layer{'s' * (len(layers) != 1)}\n\n{listening}", "#333333", tall=tall
    )
    _arrow(axis, (7.1 + WIDTH, middle), (10.5, middle), "#333333", "pooled")
    for i, (name, result) in enumerate(output.head_outputs.items()):
        _box(axis, 10.5, middle - 1.4 * i, f"head: {name}\n{_shape(result)}", BASELINE_COLOR, filled=True)
    axis.set(xlim=(-0.2, 13.2), ylim=(-0.9, top + 0.9))
    axis.axis("off")
    return figure


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _box(axis: Axes, x: float, y: float, text: str, colour: str, *, filled: bool = False, tall: float = HEIGHT) -> None:
    face = colour if filled else "white"
    axis.add_patch(
        FancyBboxPatch(
            (x, y - tall / 2), WIDTH, tall, boxstyle="round,pad=0,rounding_size=0.12", fc=face, ec=colour, lw=2
        )
    )
    axis.text(x + WIDTH / 2, y, text, ha="center", va="center", color="white" if filled else "#222222", fontsize=10.5)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, label: str) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color=colour, lw=2, shrinkA=0))
    axis.text((start[0] + end[0]) / 2, start[1] + 0.14, label, ha="center", va="bottom", fontsize=9, color="#444444")
