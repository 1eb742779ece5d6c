"""SeededModule: the base class of all LightningModules here; only routers override its optimizer and schedule."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler


class SeededModule(L.LightningModule):
    """All randomness of a training step (augmentation, dropout, routes) depends on (seed, epoch, batch) alone.

    A training that is stopped at any step and resumed therefore ends with the same weights.
    """

    def __init__(self, config: Any, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(hash((self.seed, self.current_epoch, batch_idx)) % 2**63)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW (Loshchilov and Hutter 2019) with linear warm-up and cosine decay to zero, by a `TrainingConfig`.

        Vectors (biases, norms) have no weight decay. Encoders learn at `encoder_lr_scale` times the learning rate.
        """
        config = self.config
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            scale = config.encoder_lr_scale if name.startswith("model.encoders.") else 1.0
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale * config.learning_rate, decay), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()],
            fused=self.trainer.precision == "32-true",  # faster; Lightning will not clip with it in mixed precision
        )
        # trainer.estimated_stepping_batches, asked this early, would build the loaders before the state that a
        # checkpoint holds for them is restored: a resumed epoch would begin again at its first batch.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        total = config.epochs * math.ceil(batches / config.accumulate)
        warmup = max(1, round(total * config.warmup_fraction))

        def lr_factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule: Any = {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}
