"""Figures: every function takes data and returns a matplotlib Figure.

style.py      palette, look, shared elements
images.py     images with captions, boxes, restorations; spectrograms
attention.py  attention weights and maps over inputs
routes.py     routes as graphs and matrices
training.py   learning curves, accuracies, confusion matrices
worlds.py     scenes, speech, modality ablation
diagram.py    the architecture; boxes and arrows
explorer.py   the interactive panel
tradeoffs.py  accuracy against cost; what decisions depend on
"""

from omni_lab.viz.attention import (
    attention_over_image,
    map_over_text,
    map_over_video,
    maps_over_audio,
    maps_over_image,
    weight_matrix,
)
from omni_lab.viz.diagram import architecture, flow_chart
from omni_lab.viz.images import before_after, boxes_in_images, show_images, spectrograms
from omni_lab.viz.routes import route_graph, route_matrix
from omni_lab.viz.style import BASELINE_COLOR, METHOD_COLOR, MODALITY_COLORS, use_style
from omni_lab.viz.tradeoffs import cost_accuracy_fronts, decision_maps
from omni_lab.viz.training import accuracy_bars, confusion_matrix_plot, line_plot, training_curves
from omni_lab.viz.worlds import filmstrip, modality_ablation_chart, phonemes_and_mouth, show_scene
