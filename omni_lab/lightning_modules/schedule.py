"""What every training here shares: the optimizer, its learning rate, and where a step's randomness comes from."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from omni_lab.config.schema import TrainingConfig


def seed_step(module: L.LightningModule, seed: int, batch_idx: int) -> None:
    """All randomness of a training step (augmentation, dropout) then depends on (seed, epoch, batch) alone: a training
    stopped at any update and resumed ends with the same weights."""
    torch.manual_seed(hash((seed, module.current_epoch, batch_idx)) % 2**63)


def adamw_warmup_cosine(module: L.LightningModule, config: TrainingConfig) -> OptimizerLRScheduler:
    """AdamW (Loshchilov and Hutter 2019), no decay on vectors (biases, norms); linear warm-up, cosine to zero. The
    encoders learn at `config.encoder_rate` times the rate of the rest."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        rate = config.encoder_lr_scale if name.startswith("model.encoders.") else 1.0
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate * config.learning_rate, decay), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()],
        fused=module.trainer.precision == "32-true",  # faster; Lightning will not clip with it in mixed precision
    )
    # trainer.estimated_stepping_batches, asked this early, would build the loaders before the state that a
    # checkpoint holds for them is restored: a resumed epoch would begin again at its first batch.
    batches = len(module.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
    total = config.epochs * math.ceil(batches / config.accumulate)
    warmup = max(1, round(total * config.warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    schedule: Any = {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": schedule}
