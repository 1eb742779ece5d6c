"""Fusion: streams of tokens meet. Mid fusion by directed cross-modal attention paths."""

from omni_lab.fusion.cross_modal import CrossModalAttention, CrossModalFusion, FusionOutput
from omni_lab.fusion.timing import align_by_time

__all__ = ["CrossModalAttention", "CrossModalFusion", "FusionOutput", "align_by_time"]
