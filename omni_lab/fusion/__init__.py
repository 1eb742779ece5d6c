"""Fusion: streams of tokens meet. Early, joined by time below an encoder's upper layers; mid, by directed cross-modal
attention paths; late, in the heads. Which pair meets where is a `FusionPlan`."""

from omni_lab.fusion.cross_modal import CrossModalAttention, CrossModalFusion, FusionOutput
from omni_lab.fusion.early import EarlyFusion
from omni_lab.fusion.plan import FusionPlan, Stage, association
from omni_lab.fusion.timing import align_by_time

__all__ = [
    "CrossModalAttention",
    "CrossModalFusion",
    "EarlyFusion",
    "FusionOutput",
    "FusionPlan",
    "Stage",
    "align_by_time",
    "association",
]
