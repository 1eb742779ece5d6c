"""Early exits learn to say what the full encoder says."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.model import OmniModel
from omni_lab.routing.route import ComputeLevel
from omni_lab.utils.progress import track_progress

LEARNING_RATE = 2e-3


def train_early_exits(model: OmniModel, dataset: VQADataset, *, updates: int, media: int = 64, seed: int = 0) -> None:
    """Regression of the tokens of each early exit on those of the full encoder (knowledge distillation, Hinton et al.
    2015), on so many pictures, clips and sounds an update. Only the exits learn; the encoders stay as they are.

    Which media are drawn depends on the seed alone.
    """
    device = next(model.parameters()).device
    for modality in model.space.modalities:
        if ComputeLevel.EARLY_EXIT not in model.space.allowed_levels(modality):
            continue
        encoder = cast(Any, model.encoders[modality.value])
        before = [(parameter, parameter.requires_grad) for parameter in encoder.parameters()]
        encoder.requires_grad_(False)
        encoder.early_exit.requires_grad_(True)
        optimizer = torch.optim.AdamW(encoder.early_exit.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        rows = np.unique(dataset.media_rows[modality][dataset.present[:, modality.column]])
        rng = np.random.default_rng([seed, modality.column])
        for _ in track_progress(range(updates), f"{modality} exit", total=updates, unit="update"):
            drawn = rng.choice(rows, size=min(media, len(rows)), replace=False).tolist()
            batch = collate(
                [Sample(str(row), "exit", "", {modality: dataset.load_media(modality, row)}) for row in drawn]
            )
            given = batch.to(device).inputs[modality]
            with torch.no_grad():
                full = encoder(given.values, given.mask)
            off = (encoder.forward_early_exit(given.values, given.mask).values - full.values).square().mean(dim=2)
            loss = (off * full.mask).sum() / full.mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        for parameter, learned in before:
            parameter.requires_grad_(learned)
