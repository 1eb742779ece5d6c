from __future__ import annotations

import pytest
import torch

from omni_lab.batch import ComputeLevel, Modality
from omni_lab.build import build_encoders, build_model
from omni_lab.config.models import AudioConfig, ModelConfig, VideoConfig, VisionConfig
from omni_lab.encoders.levels import encoder_at
from omni_lab.encoders.tiny import BANDS, TinyAudio, TinyVideo, band_energies
from omni_lab.encoders.vision import VisionEncoder
from omni_lab.evaluation.flops import build_cost_model

CONVOLUTIONAL = VisionConfig(
    name="resnet10t",
    tiny_channels=(6, 12, 20),
    overrides={
        "features_only": True,
        "out_indices": [3],
        "layers": [1, 1, 1, 1],
        "channels": [24, 48, 96, 32],
        "stem_width": 12,
    },
)
CONFIG = ModelConfig(
    modalities=tuple(Modality),
    dim=64,
    vision=CONVOLUTIONAL,
    audio=AudioConfig(dim=96, tiny_channels=(16, 24)),
    video=VideoConfig(dim=96, tiny_channels=(8, 16, 24)),
)


def test_tiny_encoders_cost_less_than_two_percent() -> None:
    model = build_model(CONFIG, vocab_size=20, answers=12)
    costs = build_cost_model(model)
    for modality, tokens in ((Modality.IMAGE, 16), (Modality.AUDIO, 17), (Modality.VIDEO, 32)):
        assert ComputeLevel.TINY in model.space.allowed_levels(modality)
        tiny, full = (
            costs.encoder_flops(modality, level, torch.tensor([tokens])).item()
            for level in (ComputeLevel.TINY, ComputeLevel.FULL)
        )
        assert 0 < tiny < 0.02 * full, modality
    assert ComputeLevel.TINY not in model.space.allowed_levels(Modality.TEXT)


def test_tiny_tokens_stand_where_full_ones_do() -> None:
    torch.manual_seed(0)
    encoders = build_encoders(CONFIG, vocab_size=20)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    video = torch.randint(256, (2, 5, 3, 32, 32), dtype=torch.uint8)
    frames = torch.arange(5) < torch.tensor([[5], [3]])
    waves = torch.randn(2, 10_000)
    lengths = torch.arange(10_000) < torch.tensor([[10_000], [4_000]])
    for modality, inputs, mask in (
        (Modality.IMAGE, images, torch.ones(2, 1).bool()),
        (Modality.AUDIO, waves, lengths),
        (Modality.VIDEO, video, frames),
    ):
        full, tiny = (
            encoder_at(encoders[modality], level)(inputs, mask) for level in (ComputeLevel.FULL, ComputeLevel.TINY)
        )
        assert tiny.values.shape == full.values.shape
        assert torch.equal(tiny.mask, full.mask)
        assert (full.times is None and tiny.times is None) or torch.equal(full.times, tiny.times)
        assert tiny.values.std() > 0.1


def test_band_energies_tell_low_from_high_and_not_how_loud() -> None:
    seconds = torch.arange(8000) / 16_000
    low, high = (torch.sin(2 * torch.pi * f * seconds)[None] for f in (200.0, 3800.0))
    window = torch.hann_window(512)
    peaks = [band_energies(x, window).mean(2).argmax(1).item() for x in (low, high)]
    assert peaks[0] < 3 and peaks[1] > BANDS - 4
    assert torch.allclose(band_energies(low, window), band_energies(0.5 * low, window), atol=0.3)


def test_a_tiny_look_at_a_clip_sees_motion_not_brightness_nor_what_is_behind_its_end() -> None:
    torch.manual_seed(0)
    tiny = TinyVideo((4, 8, 8), grid=2, out_dim=8).eval()
    video = torch.zeros(1, 8, 3, 32, 32)
    for f in range(8):
        video[0, f, :, 8:16, 3 * f : 3 * f + 8] = 200
    whole = torch.ones(1, 8, dtype=torch.bool)
    seen = tiny(video.byte(), whole)
    assert torch.allclose(seen, tiny((video / 2).byte(), whole), atol=0.1), "darker"
    assert not torch.allclose(seen.mean(1), tiny(video.flip(1).byte(), whole).mean(1), atol=1e-3), "backwards"
    short = torch.arange(8)[None] < 4
    rubbish = torch.cat([video[:, :4], torch.full((1, 4, 3, 32, 32), 99.0)], dim=1).byte()
    assert torch.allclose(tiny(video.byte(), short)[:, :4], tiny(rubbish, short)[:, :4], atol=1e-5)


def test_one_token_covers_its_samples() -> None:
    tiny = TinyAudio((4, 4), samples_per_token=1920, out_dim=8)
    assert tiny(torch.randn(1, 1920)).shape == (1, 1, 8) and tiny(torch.randn(1, 1921)).shape == (1, 2, 8)


def test_a_convolutional_encoder_gives_the_cells_of_its_last_stage() -> None:
    encoder = VisionEncoder(CONVOLUTIONAL, out_dim=32).eval()
    assert encoder.grid == (4, 4) and encoder.stride == 16
    tokens = encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.ones(2, 1).bool())
    assert tokens.values.shape == (2, 16, 32)


def test_a_convolutional_encoder_has_no_early_exit() -> None:
    config = VisionConfig(name="resnet10t", early_exit=True, overrides=CONVOLUTIONAL.overrides)
    with pytest.raises(ValueError, match="only a Swin transformer has an early exit: got 'resnet10t'"):
        VisionEncoder(config, out_dim=32)


def test_a_tiny_encoder_needs_the_channels_of_three_convolutions() -> None:
    with pytest.raises(ValueError, match=r"tiny_channels must be those of 3 convolutions: got \(4, 4\)"):
        TinyVideo((4, 4), grid=2, out_dim=8)


def test_skipping_is_no_level_to_encode_at() -> None:
    with pytest.raises(ValueError, match="an encoder that is skipped returns no tokens"):
        encoder_at(torch.nn.Identity(), ComputeLevel.SKIP)
