"""Figures: functions that take data and return a matplotlib Figure, in one style."""

from omni_lab.viz.attention import (
    attention_over_picture,
    map_over_clip,
    map_over_text,
    maps_over_picture,
    maps_over_sound,
    weight_matrix,
)
from omni_lab.viz.diagram import architecture
from omni_lab.viz.heads import before_after, boxes_in_pictures, spectrograms
from omni_lab.viz.pictures import show_pictures
from omni_lab.viz.routes import route_graph, route_matrix
from omni_lab.viz.style import COLOURS, CONTROL, METHOD, use_style
from omni_lab.viz.training import accuracy_bars, confusion, lines, training_curves
from omni_lab.viz.worlds import blind_chart, phonemes_and_mouth, show_scene, strip

__all__ = [
    "COLOURS",
    "CONTROL",
    "METHOD",
    "accuracy_bars",
    "architecture",
    "attention_over_picture",
    "before_after",
    "blind_chart",
    "boxes_in_pictures",
    "confusion",
    "lines",
    "map_over_clip",
    "map_over_text",
    "maps_over_picture",
    "maps_over_sound",
    "phonemes_and_mouth",
    "route_graph",
    "route_matrix",
    "show_pictures",
    "show_scene",
    "spectrograms",
    "strip",
    "training_curves",
    "use_style",
    "weight_matrix",
]
