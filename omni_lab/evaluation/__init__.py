"""Evaluation: accuracy beside its controls, retrieval, what heads write, find, restore and say, intervals, and times
measured side by side."""

from omni_lab.evaluation.answers import (
    BlindRow,
    Predictions,
    blind_table,
    majority_by_question,
    predict,
    predict_blind,
    shuffle_pictures,
)
from omni_lab.evaluation.found import FoundPrecision, average_precision
from omni_lab.evaluation.intervals import Estimate, bootstrap_interval, corpus_estimate, share, share_interval
from omni_lab.evaluation.judge import Judge, JudgeError, caption_grammar, judge_available
from omni_lab.evaluation.pareto import (
    Difference,
    Policies,
    hypervolume,
    hypervolume_difference,
    paired_difference,
    pareto_front,
)
from omni_lab.evaluation.restored import FILLS, SMOOTHINGS, Restoration, best_smoothing, fill, restoration, smooth
from omni_lab.evaluation.retrieval import Consistency, consistency, prototypes, recall_at
from omni_lab.evaluation.timing import interleaved_seconds, ratio
from omni_lab.evaluation.written import bleu, bleu_gain, chrf, error_rate, error_ratio

__all__ = [
    "FILLS",
    "SMOOTHINGS",
    "BlindRow",
    "Consistency",
    "Difference",
    "Estimate",
    "FoundPrecision",
    "Judge",
    "JudgeError",
    "Policies",
    "Predictions",
    "Restoration",
    "average_precision",
    "best_smoothing",
    "bleu",
    "bleu_gain",
    "blind_table",
    "bootstrap_interval",
    "caption_grammar",
    "chrf",
    "consistency",
    "corpus_estimate",
    "error_rate",
    "error_ratio",
    "fill",
    "hypervolume",
    "hypervolume_difference",
    "interleaved_seconds",
    "judge_available",
    "majority_by_question",
    "paired_difference",
    "pareto_front",
    "predict",
    "predict_blind",
    "prototypes",
    "ratio",
    "recall_at",
    "restoration",
    "share",
    "share_interval",
    "shuffle_pictures",
    "smooth",
]
