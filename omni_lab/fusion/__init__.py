"""Fusion: streams of tokens meet. Mid fusion by directed cross-modal attention paths."""

from omni_lab.fusion.cross_modal import CrossModalAttention, CrossModalFusion, FusionOutput, Path, all_paths
from omni_lab.fusion.timing import align_by_time

__all__ = ["CrossModalAttention", "CrossModalFusion", "FusionOutput", "Path", "align_by_time", "all_paths"]
