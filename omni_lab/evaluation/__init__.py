"""Evaluation: accuracy beside its controls, intervals, and times measured side by side."""

from omni_lab.evaluation.answers import Predictions, majority_by_question, predict, shuffle_pictures
from omni_lab.evaluation.intervals import bootstrap_interval
from omni_lab.evaluation.timing import interleaved_seconds, ratio

__all__ = [
    "Predictions",
    "bootstrap_interval",
    "interleaved_seconds",
    "majority_by_question",
    "predict",
    "ratio",
    "shuffle_pictures",
]
