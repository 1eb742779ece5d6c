"""LightningModules: one per way of training; each gets its network injected and logs named metrics.

base.py         SeededModule: seeded training steps; AdamW with warm-up and cosine decay (routers: Adam, router.py)
contrastive.py  LitContrastive: contrastive pre-training of the encoders
vqa.py          LitVQA: supervised training on the answer head
multitask.py    LitMultitask: all heads, one task per batch
router.py       LitRouter: the router, by policy gradient on a frozen network
sequential_router.py  LitSequentialRouter: the router that looks, decides and looks again, by policy gradient
gates.py        LitGates: gates by backpropagation, the router's baselines
qat.py          LitQAT: quantization-aware training, with distillation after pruning
"""

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
