"""Video and audio joined below the upper layers of their encoders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from omni_lab.batch import Modality, ModalityInput, OmniBatch
from omni_lab.build import build_model
from omni_lab.config.models import AudioConfig, FusionConfig
from omni_lab.model import OmniModel
from tests.conftest import TINY_WORLD

AUDIO, VIDEO = Modality.AUDIO, Modality.VIDEO


EARLY = FusionConfig(early=True, paths=(), gated=True)


def joined_model(fusion: FusionConfig = EARLY) -> OmniModel:
    torch.manual_seed(0)
    model = build_model(replace(TINY_WORLD.model, modalities=(AUDIO, VIDEO), fusion=fusion), vocab_size=9, answers=2)
    return model.eval()


def batch_of(sounds: list[int], clips: list[int], *, shift: int = 0) -> OmniBatch:
    """Which of three sounds and of three clips each sample has; -1 for none. shift: of the sounds, in samples."""
    rng = torch.Generator().manual_seed(3)
    waves = torch.randn(3, 32_000, generator=rng)
    waves = waves * (torch.arange(32_000) // 4000 % 2)  # half a second of noise, half a second of nothing
    inputs = {
        AUDIO: ModalityInput(waves.roll(shift, dims=1), torch.ones(3, 32_000).bool(), torch.tensor(sounds)),
        VIDEO: ModalityInput(
            torch.randint(256, (3, 8, 3, 32, 32), generator=rng).to(torch.uint8),
            torch.ones(3, 8).bool(),
            torch.tensor(clips),
        ),
    }
    names = [str(i) for i in range(len(sounds))]
    inputs = {m: given for m, given in inputs.items() if (given.entry_index >= 0).any()}
    return OmniBatch(inputs, ["answer"] * len(sounds), ["family"] * len(sounds), names)


def test_nothing_joined_is_each_encoder_alone() -> None:
    model, batch = joined_model(), batch_of([0, 1, 2], [2, 1, 0])
    assert model.early_fusion is not None
    alone = joined_model(FusionConfig(early=False, paths=(), gated=True)).encode(batch)
    nn.init.zeros_(model.early_fusion.join.weight)
    nn.init.zeros_(model.early_fusion.join.bias)
    for modality, tokens in model.encode(batch).items():
        assert torch.allclose(tokens.expand_entries().values, alone[modality].expand_entries().values, atol=1e-5)


def test_samples_that_share_videos_are_as_if_alone() -> None:
    model, sounds, clips = joined_model(), [0, 1, 0, 2, -1, 1], [0, 0, 1, -1, 2, 0]
    together = model(batch_of(sounds, clips)).head_outputs["answer"]
    for i, pair in enumerate(zip(sounds, clips, strict=True)):
        assert torch.allclose(model(batch_of([pair[0]], [pair[1]])).head_outputs["answer"][0], together[i], atol=1e-5)
    encoded = model.encode(batch_of(sounds, clips))[VIDEO]
    assert len(encoded.values) == 4  # clip 0 with two sounds, clips 1 and 2 once each


def test_a_video_without_audio_is_as_if_alone() -> None:
    batch = batch_of([-1, 0], [1, 1])
    heard = joined_model().encode(batch)[VIDEO].expand_entries().values
    alone = joined_model(FusionConfig(early=False, paths=())).encode(batch)[VIDEO].expand_entries().values
    assert torch.allclose(heard[0], alone[0], atol=1e-5)
    assert not torch.allclose(heard[1], alone[1], atol=1e-2)


def test_the_time_of_audio_matters() -> None:
    model = joined_model()
    now, later = (model.encode(batch_of([0], [0], shift=s))[VIDEO].values for s in (0, 4000))
    assert (now - later).abs().mean() > 0.01


def test_gradients_reach_both_encoders() -> None:
    model = joined_model().train()
    model.encode(batch_of([0], [0]))[VIDEO].values.square().sum().backward()
    audio: nn.Module = model.encoders["audio"]
    reached = [name for name, p in audio.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert reached and all("stem" in name for name in reached)  # its upper layers are not heard


def test_what_cannot_be_joined_is_refused() -> None:
    model, batch = joined_model(), batch_of([0], [0])
    latents = ModalityInput(torch.zeros(1, 8, 16), torch.ones(1, 8).bool(), torch.zeros(1).long())
    with pytest.raises(ValueError, match="early fusion needs video and waveforms: got precomputed tokens"):
        model(replace(batch, inputs={**batch.inputs, VIDEO: latents}))
    with pytest.raises(ValueError, match="takes no route"):
        model(batch, route=model.space.dense(batch.present))
    config = replace(TINY_WORLD.model, modalities=(VIDEO,), fusion=FusionConfig(early=True))
    with pytest.raises(ValueError, match="early fusion needs video, and audio"):
        build_model(config, vocab_size=9, answers=2)
    wave = AudioConfig(front_end="wav2vec2", dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="the mel front end"):
        build_model(replace(TINY_WORLD.model, audio=wave, fusion=FusionConfig(early=True)), vocab_size=9, answers=2)
