"""Evaluation: accuracy beside its controls, retrieval, intervals, and times measured side by side."""

from omni_lab.evaluation.answers import (
    BlindRow,
    Predictions,
    blind_table,
    majority_by_question,
    predict,
    predict_blind,
    shuffle_pictures,
)
from omni_lab.evaluation.intervals import bootstrap_interval, share_interval
from omni_lab.evaluation.pareto import (
    Difference,
    Policies,
    hypervolume,
    hypervolume_difference,
    paired_difference,
    pareto_front,
)
from omni_lab.evaluation.retrieval import Consistency, consistency, prototypes, recall_at
from omni_lab.evaluation.timing import interleaved_seconds, ratio

__all__ = [
    "BlindRow",
    "Consistency",
    "Difference",
    "Policies",
    "Predictions",
    "blind_table",
    "bootstrap_interval",
    "consistency",
    "hypervolume",
    "hypervolume_difference",
    "interleaved_seconds",
    "majority_by_question",
    "paired_difference",
    "pareto_front",
    "predict",
    "predict_blind",
    "prototypes",
    "ratio",
    "recall_at",
    "share_interval",
    "shuffle_pictures",
]
