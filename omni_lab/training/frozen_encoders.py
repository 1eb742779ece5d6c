"""Frozen encoders: training of their early exits, and 8-bit latents, so that each medium is encoded once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import torch

from omni_lab.batch import ComputeLevel, Modality, ModalityInput
from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.encoders.latents import Int8Latents, LatentTable
from omni_lab.encoders.levels import encoder_at
from omni_lab.model import OmniModel
from omni_lab.routing.glance import Glance
from omni_lab.utils.progress import track_progress

LEARNING_RATE = 2e-3  # of the early exits
ENCODE_BATCH_SIZE = 64  # media encoded at a time


def train_early_exits(
    model: OmniModel, dataset: VQADataset, *, steps: int, batch_size: int = 64, seed: int = 0
) -> None:
    """Regression of the tokens of each early exit on those of its full encoder (knowledge distillation, Hinton et al.
    2015). Only the exits are trained. The media in each batch depend on the seed alone."""
    for modality in model.space.modalities:
        if ComputeLevel.EARLY_EXIT not in model.space.allowed_levels(modality):
            continue
        encoder = cast(Any, model.encoders[modality.value])
        trainable = [(parameter, parameter.requires_grad) for parameter in encoder.parameters()]
        encoder.requires_grad_(False)
        encoder.early_exit.requires_grad_(True)
        optimizer = torch.optim.AdamW(encoder.early_exit.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rows = dataset.used_rows(modality)
        dataset.store.build(modality, rows)
        rng = np.random.default_rng([seed, modality.column])
        for _ in track_progress(range(steps), f"{modality} exit", total=steps, unit="step"):
            sampled = rng.choice(rows, size=min(batch_size, len(rows)), replace=False).tolist()
            inputs = _load_media(dataset, modality, sampled, model)
            with torch.no_grad():
                full = encoder(inputs.values, inputs.mask)
            error = encoder.forward_early_exit(inputs.values, inputs.mask).values - full.values
            loss = (error.square().mean(dim=2) * full.mask).sum() / full.mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)


def cache_latents(model: OmniModel, dataset: VQADataset, modalities: Collection[Modality]) -> None:
    """Replaces these modalities in the samples of `dataset` by the 8-bit latents that `model` encodes them to, at every
    level that routes may choose."""
    was_training = model.training
    model.eval()
    for modality in modalities:
        encoder = model.encoders[modality.value]
        levels = {ComputeLevel.FULL, *model.space.allowed_levels(modality)} - {ComputeLevel.SKIP}
        tables = {level: LatentTable() for level in sorted(levels)}
        rows = dataset.used_rows(modality)
        dataset.store.build(modality, rows)
        chunks = [rows[start : start + ENCODE_BATCH_SIZE] for start in range(0, len(rows), ENCODE_BATCH_SIZE)]
        for chunk in track_progress(chunks, f"{modality} latents", total=len(chunks), unit="batch"):
            inputs = _load_media(dataset, modality, chunk, model)
            with torch.inference_mode():
                for level, table in tables.items():
                    tokens = encoder_at(encoder, level)(inputs.values, inputs.mask)
                    table.add(chunk, Int8Latents.from_tokens(tokens))
        dataset.latents[modality] = tables.pop(ComputeLevel.FULL)
        dataset.lower_latents[modality] = dict(tables)
    model.train(was_training)


def cache_glances(glance: Glance, dataset: VQADataset) -> None:
    """Looks once at every medium of the samples of `dataset`; batches then carry raw "glances" among their targets."""
    for modality in glance.modalities:
        if modality not in dataset.media_rows:
            continue
        rows = dataset.used_rows(modality)
        found: dict[int, torch.Tensor] = {}
        dataset.store.build(modality, rows)
        for start in range(0, len(rows), ENCODE_BATCH_SIZE):
            chunk = rows[start : start + ENCODE_BATCH_SIZE]
            samples = [Sample(str(row), "", "", {modality: dataset.load_media(modality, row)}) for row in chunk]
            found |= zip(chunk, glance.raw(collate(samples))[:, modality.column], strict=True)
        dataset.glances[modality] = found


def _load_media(dataset: VQADataset, modality: Modality, rows: Sequence[int], model: OmniModel) -> ModalityInput:
    """One batch of media, on the device of the model."""
    samples = [Sample(str(row), "", "", {modality: dataset.load_media(modality, row)}) for row in rows]
    return collate(samples).to(next(model.parameters()).device).inputs[modality]
