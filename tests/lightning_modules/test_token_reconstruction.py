from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from omni_lab.batch import SAMPLE_RATE, Modality, ModalityInput, OmniBatch, Tokens
from omni_lab.build import build_encoders
from omni_lab.config.schema import Profile
from omni_lab.lightning_modules.contrastive import TARGET_DIMS, TokenReconstruction
from omni_lab.model import encode_inputs

TEXT, IMAGE, AUDIO, VIDEO = Modality


@pytest.fixture
def encoders(tiny_profile: Profile) -> nn.ModuleDict:
    made = build_encoders(tiny_profile.emoji_world.model, vocab_size=20)
    return nn.ModuleDict({m.value: encoder for m, encoder in made.items()})


def given(modality: Modality, values: torch.Tensor, length: int) -> OmniBatch:
    inputs = {modality: ModalityInput(values, torch.ones(len(values), length).bool(), torch.arange(len(values)))}
    return OmniBatch(inputs, *([["x"] * len(values)] * 3))


def test_targets_of_an_image_token_are_the_quarters_of_its_patch(encoders: nn.ModuleDict) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    tokens = Tokens(torch.zeros(2, 16, 16), torch.ones(2, 16).bool())  # 4 x 4 cells of 16 pixels
    targets = TokenReconstruction(encoders, dim=16)._targets(IMAGE, images, tokens)
    assert targets.shape == (2, 16, TARGET_DIMS[IMAGE])
    row, column = 2, 1
    cell = images[1, :, 32:48, 16:32] / 255 * 4 - 2
    quarters = cell.reshape(3, 2, 8, 2, 8).mean((2, 4)).flatten()
    assert torch.allclose(targets[1, 4 * row + column], quarters, atol=1e-5)


def test_targets_of_a_frame_have_the_order_of_its_tokens(encoders: nn.ModuleDict) -> None:
    clips = torch.zeros(1, 3, 3, 32, 32, dtype=torch.uint8)
    clips[0, 1, :, 16:, :16] = 255  # second frame, bottom left
    tokens = Tokens(torch.zeros(1, 12, 16), torch.ones(1, 12).bool())  # 2 x 2 cells a frame
    targets = TokenReconstruction(encoders, dim=16)._targets(VIDEO, clips, tokens)
    assert targets.shape == (1, 12, TARGET_DIMS[VIDEO])
    assert [i for i in range(12) if targets[0, i].mean() > 0] == [4 + 2]


def test_targets_of_audio_tokens_follow_pitch_and_time(encoders: nn.ModuleDict) -> None:
    low, high = (torch.sin(2 * math.pi * hertz * torch.arange(SAMPLE_RATE) / SAMPLE_RATE) for hertz in (300, 3000))
    tokens = encoders["audio"](torch.cat([low, high])[None], torch.ones(1, 2 * SAMPLE_RATE).bool())
    targets = TokenReconstruction(encoders, dim=16)._targets(AUDIO, torch.cat([low, high])[None], tokens)[0]
    middle = tokens.mask.shape[1] // 2
    loudest = targets.argmax(dim=1)
    assert len(targets) == tokens.mask.shape[1] and targets.shape[1] == TARGET_DIMS[AUDIO]
    assert max(loudest[: middle - 1]) < min(loudest[middle + 1 : -1])


def test_padding_does_not_count(encoders: nn.ModuleDict) -> None:
    reconstruction = TokenReconstruction(encoders, dim=16)
    images = given(IMAGE, torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), 1)
    tokens = encode_inputs(encoders, images)[IMAGE]
    half = torch.arange(tokens.mask.shape[1]) < 5
    kept = Tokens(tokens.values, tokens.mask & half)
    wild = Tokens(torch.where(half[None, :, None], tokens.values, 1e3), kept.mask)
    assert torch.equal(reconstruction(images, {IMAGE: kept}), reconstruction(images, {IMAGE: wild}))


def test_encoders_learn_what_their_tokens_cover(encoders: nn.ModuleDict) -> None:
    reconstruction = TokenReconstruction(encoders, dim=16)
    batch = given(IMAGE, torch.randint(0, 2, (4, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, 64, 64) * 255, 1)
    optimizer = torch.optim.AdamW([*encoders["image"].parameters(), *reconstruction.parameters()], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = reconstruction(batch, encode_inputs(encoders, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
