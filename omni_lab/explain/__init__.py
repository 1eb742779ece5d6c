"""Explains a model's answers, and measures whether the explanations are faithful.

maps.py          a value per token: attention, rollout, relevance, integrated gradients, occlusion, CAM
faithfulness.py  pointing game, deletion and insertion, randomised weights
"""

from omni_lab.explain.faithfulness import (
    BASELINES,
    cells_in_box,
    randomize_weights,
    rank_correlation,
    score_faithfulness,
    spans_in_time,
)
from omni_lab.explain.maps import (
    METHODS,
    PerturbedModel,
    explain,
    relevance_map,
    rollout_map,
    token_windows,
    trace_attention,
    without_tokens,
)
