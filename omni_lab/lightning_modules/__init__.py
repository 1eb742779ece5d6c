"""TODO"""

from omni_lab.lightning_modules.contrastive import (
    contrastive_loss,
    embed,
    late_interaction,
    pooled_embedding,
    positive_pairs,
    unit_normalize,
)
from omni_lab.lightning_modules.multitask import LitMultitask
from omni_lab.lightning_modules.router import evaluate_route
from omni_lab.lightning_modules.vqa import LitVQA, answer_loss
