"""Tiny routed models and batches of noise in which any modality may be missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from omni_lab.batch import Modality, ModalityInput, OmniBatch
from omni_lab.build import build_model
from omni_lab.model import OmniModel
from tests.conftest import TINY_WORLD

TEXT, IMAGE, AUDIO, VIDEO = Modality
MakeBatch = Callable[..., OmniBatch]


@pytest.fixture(scope="session")
def routed() -> OmniModel:
    """Two layers, random gates, early exits for image, audio and video."""
    tiny = TINY_WORLD.model
    config = replace(
        tiny,
        vision=replace(tiny.vision, early_exit=True),
        audio=replace(tiny.audio, early_exit=True),
        fusion=replace(tiny.fusion, depth=2, gated=True),
    )
    torch.manual_seed(0)
    model = build_model(config, vocab_size=50, answers=7).eval()
    for name, parameter in model.named_parameters():
        if ".gate." in name:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    def make(
        size: int, *, seed: int = 0, share: bool = False, missing: float = 0.0, lengths: bool = False
    ) -> OmniBatch:
        """missing: probability of each modality to be absent from a sample. share: half as many entries as samples,
        but for text. lengths: texts and waveforms of different lengths."""
        rng = torch.Generator().manual_seed(seed)
        present = torch.rand(size, 4, generator=rng) >= missing
        present[~present.any(dim=1), 0] = True
        rows = torch.arange(size)
        entries = {TEXT: size} | {m: max(1, size // 2) if share else size for m in (IMAGE, AUDIO, VIDEO)}
        words = torch.randint(2, 7, (size,), generator=rng) if lengths else torch.full((size,), 6)
        waves = torch.randint(1, 7, (entries[AUDIO],), generator=rng) if lengths else torch.full((entries[AUDIO],), 6)
        values = {
            TEXT: torch.randint(50, (size, 6), generator=rng),
            IMAGE: torch.randint(256, (entries[IMAGE], 3, 64, 64), generator=rng).to(torch.uint8),
            AUDIO: torch.randn(entries[AUDIO], 6 * 1920, generator=rng),
            VIDEO: torch.randint(256, (entries[VIDEO], 4, 3, 32, 32), generator=rng).to(torch.uint8),
        }
        masks = {
            TEXT: torch.arange(6) < words[:, None],
            IMAGE: torch.ones(entries[IMAGE], 1).bool(),
            AUDIO: torch.arange(6 * 1920) < 1920 * waves[:, None],
            VIDEO: torch.ones(entries[VIDEO], 4).bool(),
        }
        inputs = {
            m: ModalityInput(values[m], masks[m], torch.where(present[:, m.column], rows % entries[m], -1))
            for m in Modality
            if present[:, m.column].any()
        }
        names = [str(i) for i in range(size)]
        return OmniBatch(inputs, ["answer"] * size, ["family"] * size, names)

    return make
