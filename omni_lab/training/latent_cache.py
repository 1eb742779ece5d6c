"""Encoders that stay as they are need to see every picture, sound and clip only once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import numpy as np
import torch

from omni_lab.batch import Modality
from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.encoders.latents import Int8Latents, LatentTable
from omni_lab.model import OmniModel
from omni_lab.routing.route import ComputeLevel
from omni_lab.utils.progress import track_progress

ENCODE_BATCH_SIZE = 64  # media encoded at a time


def cache_latents(model: OmniModel, dataset: VQADataset, modalities: Collection[Modality]) -> None:
    """From here on, the samples of `dataset` carry, in place of these media, the 8-bit latents that `model` makes of
    them, in full and, where it has one, at its early exit."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    for modality in modalities:
        used = dataset.media_rows[modality][dataset.present[:, modality.column]]
        rows, full, light = np.unique(used).tolist(), LatentTable(), LatentTable()
        has_exit = ComputeLevel.EARLY_EXIT in model.space.allowed_levels(modality)
        chunks = [rows[start : start + ENCODE_BATCH_SIZE] for start in range(0, len(rows), ENCODE_BATCH_SIZE)]
        for chunk in track_progress(chunks, f"{modality} latents", total=len(chunks), unit="batch"):
            media = [Sample(str(row), "encode", "", {modality: dataset.load_media(modality, row)}) for row in chunk]
            batch = collate(media).to(device)
            with torch.inference_mode():
                full.add(chunk, model.encode_int8(batch)[modality])
                if has_exit:
                    given, encoder = batch.inputs[modality], cast(Any, model.encoders[modality.value])
                    light.add(chunk, Int8Latents.from_tokens(encoder.forward_early_exit(given.values, given.mask)))
        dataset.latents[modality] = full
        if has_exit:
            dataset.early_exit_latents[modality] = light
    model.train(was_training)
