"""Measures of what models produce, as numbers with intervals; no model is needed here.

bootstrap.py           Estimate, and what is behind all intervals: the cluster bootstrap, and Student's t over seeds
pareto.py              Pareto fronts, hypervolumes, paired differences and ratios, required modalities
detection.py           mean average precision
text.py                BLEU, chrF, word and character error rates
restoration.py         PSNR, SSIM, baselines that inpaint and denoise
retrieval.py           recall at k, cross-modal consistency
speech_recognition.py  an independent speech recogniser
"""

from omni_lab.metrics.bootstrap import Estimate, bootstrap_estimate, bootstrap_interval, proportion, t_interval
from omni_lab.metrics.detection import mean_average_precision
from omni_lab.metrics.pareto import Policies, hypervolume_difference, paired_difference, paired_ratio
from omni_lab.metrics.restoration import (
    INPAINT_BASELINES,
    denoise_baseline,
    inpaint_baseline,
    psnr_ssim,
    tune_denoise_baseline,
)
from omni_lab.metrics.retrieval import cross_modal_consistency, prototypes, recall_at_k
from omni_lab.metrics.speech_recognition import GrammarRecognizer, is_recognizer_available
from omni_lab.metrics.text import bleu, bleu_gain, chrf, error_rate, error_ratio
