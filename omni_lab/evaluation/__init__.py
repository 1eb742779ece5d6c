"""Runs models on data, and measures predictions, FLOPs, time and memory.

predictions.py  answers to all questions of a dataset, without each modality, and the majority baseline
multitask.py    predictions of the task heads, and one score per task
multitask_baselines.py  what rules answer and describe, from detected or annotated things, and priors
template_matching.py    detection by correlation with known artwork
policies.py     routing policies on many questions
outcome_table.py  what a network answers to each question under each combination of levels
contenders.py   kinds of policies on such a table, chosen on validation
flops.py        FLOPs that calls execute, and the cost model of routes
profiling.py    time and peak memory
association.py  canonical correlation of two modalities
"""

from omni_lab.evaluation.association import canonical_correlation
from omni_lab.evaluation.flops import build_cost_model, count_flops, head_flops, unused_flops
from omni_lab.evaluation.multitask import (
    answer_hits,
    detect,
    generate_texts,
    iter_examples,
    nearest_captions,
    posterior_mean_fill,
    restore_images,
    senses,
    synthesize_speech,
    task_score,
    without_images,
)
from omni_lab.evaluation.multitask_baselines import answer_by_rule, detect_things, prior_answers, template_captions
from omni_lab.evaluation.outcome_table import build_outcome_table
from omni_lab.evaluation.policies import PolicyEvaluator, cheapest_keeping, load_outcomes, save_outcomes
from omni_lab.evaluation.predictions import (
    majority_by_question,
    modality_ablation_table,
    predict,
    predict_without_each,
    shuffle_images,
)
from omni_lab.evaluation.profiling import peak_tensor_bytes, time_interleaved, time_ratio
from omni_lab.evaluation.template_matching import match_templates
