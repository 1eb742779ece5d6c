"""Fusion: streams of tokens meet. Mid fusion by directed cross-modal attention paths."""

from omni_lab.fusion.cross_modal import CrossModalAttention, CrossModalFusion, FusionOutput, Path, all_paths

__all__ = ["CrossModalAttention", "CrossModalFusion", "FusionOutput", "Path", "all_paths"]
