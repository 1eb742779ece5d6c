"""Encoders that stay as they are need to see every picture, sound and clip only once."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

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
    them, in full and, where it has one, at its early exit."""
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


class EncodeFrozen(Callback):
    """Encodes the media of both splits when a training starts, by the weights that it starts or goes on with. seconds:
    what that took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        begin = time.perf_counter()
        training, data = cast(Any, pl_module), cast(Any, trainer).datamodule
        frozen = [m for m in training.config.frozen if m.value in training.model.encoders]
        for split in ("train", "validation") if frozen else ():
            encode_media(training.model, data.dataset(split), frozen)
        self.seconds = time.perf_counter() - begin
