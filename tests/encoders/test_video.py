from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from omni_lab.batch import Modality
from omni_lab.build import build_encoders, build_model
from omni_lab.config.models import ModelConfig, VideoConfig
from omni_lab.encoders.video import VideoEncoder
from omni_lab.encoders.vision import VisionEncoder
from omni_lab.training.checkpoint import load_model, save_model
from tests.conftest import TINY_WORLD, as_saved

CONFIG: ModelConfig = TINY_WORLD.model


def video(**options: object) -> tuple[VideoEncoder, VisionEncoder]:
    torch.manual_seed(0)
    vision = VisionEncoder(CONFIG.vision, out_dim=24)
    config = replace(CONFIG.video, **options)  # type: ignore[arg-type]
    return VideoEncoder(config, vision=vision, out_dim=24).eval(), vision


def clip(frames: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (1, frames, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_a_clip_becomes_a_few_tokens_a_frame() -> None:
    encoder, _ = video(seconds=2.0, grid=2)
    tokens = encoder(clip(8), torch.ones(1, 8, dtype=torch.bool))
    assert tokens.values.shape == (1, 8 * 4, 24) and tokens.mask.all()
    assert tokens.times is not None
    assert torch.allclose(tokens.times[0], (torch.arange(8) * 0.25 + 0.125).repeat_interleave(4))


@torch.no_grad()
def test_padded_frames_change_nothing() -> None:
    encoder, _ = video()
    mask = torch.arange(7)[None] < 4
    alone = encoder(clip(7)[:, :4], mask[:, :4])
    padded = encoder(clip(7), mask)
    assert padded.mask.sum() == 16
    assert (alone.values - padded.values[:, :16]).abs().max() < 1e-5
    assert alone.times is not None and padded.times is not None
    assert torch.equal(alone.times, padded.times[:, :16])


@torch.no_grad()
def test_the_order_of_frames_matters() -> None:
    encoder, _ = video()
    mask = torch.ones(1, 5, dtype=torch.bool)
    forward, backward = encoder(clip(5), mask).values, encoder(clip(5).flip(1), mask).values
    assert (forward - backward.unflatten(1, (5, 4)).flip(1).flatten(1, 2)).abs().max() > 1e-2


def test_one_frame_is_a_clip() -> None:
    encoder, _ = video(seconds=2.0)
    tokens = encoder(clip(1), torch.ones(1, 1, dtype=torch.bool))
    assert tokens.values.shape == (1, 4, 24) and torch.isfinite(tokens.values).all()
    assert tokens.times is not None and tokens.times.unique().tolist() == [1.0]


def test_frames_of_the_wrong_size_are_named() -> None:
    encoder, vision = video()
    with pytest.raises(ValueError, match=r"video must be \[U, F, 3, 32, 32\]: got \[1, 2, 3, 16, 32\]"):
        encoder(torch.zeros(1, 2, 3, 16, 32, dtype=torch.uint8), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="frame_size must be a multiple of 16 x 2: got 48"):
        VideoEncoder(VideoConfig(frame_size=48, dim=16, num_heads=2), vision=vision, out_dim=24)


def test_clips_and_pictures_share_their_weights(tmp_path: Path) -> None:
    config = replace(CONFIG, modalities=(Modality.IMAGE, Modality.VIDEO))
    encoders = build_encoders(config, vocab_size=10)
    assert encoders[Modality.VIDEO].vision is encoders[Modality.IMAGE]
    assert any(name.startswith("vision.") for name in encoders[Modality.VIDEO].state_dict())

    model = build_model(config, vocab_size=10, answers=3)
    save_model(tmp_path, model, identity={}, metadata={})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        saved = [name for name in file.keys() if not name.endswith(".scales")]  # noqa: SIM118
    assert len(saved) == len({p.data_ptr() for p in model.parameters()}), "each weight once"
    torch.manual_seed(5)
    again = build_model(config, vocab_size=10, answers=3)
    load_model(tmp_path, again, identity={})
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], as_saved(value)), name
    swin, frames = again.encoders["image"].swin, again.encoders["video"].vision.swin
    assert all(a is b for a, b in zip(swin.parameters(), frames.parameters(), strict=True)), "still shared"
