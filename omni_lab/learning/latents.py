"""Encoders that stay as they are need to see every picture, sound and clip only once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import numpy as np
import torch

from omni_lab.data.module import QuestionDataset
from omni_lab.data.samples import Sample, collate
from omni_lab.encoders import Int8Latents, LatentTable
from omni_lab.modalities import Modality
from omni_lab.model import OmniModel
from omni_lab.progress import track
from omni_lab.routing import Level

TOGETHER = 64  # media encoded at a time


def encode_media(model: OmniModel, dataset: QuestionDataset, modalities: Collection[Modality]) -> None:
    """From here on, the samples of `dataset` carry, in place of these media, the 8-bit latents that `model` makes of
    them, in full and, where it has one, at its early exit. Raises ValueError for text, which is no medium."""
    if Modality.TEXT in modalities:
        raise ValueError("only pictures, sounds and clips can be encoded beforehand: got text")
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    for modality in modalities:
        used = dataset.media_rows[modality][dataset.present[:, modality.column]]
        rows, full, light = np.unique(used).tolist(), LatentTable(), LatentTable()
        has_exit = Level.LIGHT in model.space.choices(modality)
        chunks = [rows[start : start + TOGETHER] for start in range(0, len(rows), TOGETHER)]
        for chunk in track(chunks, f"{modality} latents", total=len(chunks), unit="batch"):
            media = [Sample(str(row), "encode", "", {modality: dataset.medium(modality, row)}) for row in chunk]
            batch = collate(media).to(device)
            with torch.inference_mode():
                full.add(chunk, model.encode_int8(batch)[modality])
                if has_exit:
                    given, encoder = batch.inputs[modality], cast(Any, model.encoders[modality.value])
                    light.add(chunk, Int8Latents.of(encoder.light(given.values, given.mask)))
        dataset.encoded[modality] = full
        if has_exit:
            dataset.encoded_light[modality] = light
    model.train(was_training)
