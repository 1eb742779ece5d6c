"""TODO"""

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
    attention_map,
    explain,
    relevance_map,
    rollout_map,
    token_windows,
    trace_attention,
    without_tokens,
)
