from __future__ import annotations

import pytest
import torch

from omni_lab.batch import Modality, ModalityInput, OmniBatch
from omni_lab.routing.glance import Glance, glance_at_audio, glance_at_images, glance_at_video
from tests.routing.conftest import MakeBatch

TEXT, IMAGE, AUDIO, VIDEO = Modality


def test_a_dark_noisy_or_covered_picture_looks_different() -> None:
    rng = torch.Generator().manual_seed(0)
    clean = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    clean[:, :, 16:48, 24:40] = 255
    noisy = (clean.float() + 80 * torch.randn(1, 1, 64, 64, generator=rng)).clamp(0, 255).to(torch.uint8)
    dark = clean // 20
    one, noise, night = (glance_at_images(x)[0] for x in (clean, noisy, dark))
    assert noise[6] > 3 * one[6] and noise[7] > one[7] + 0.05, "neighbours differ inside cells"
    assert night[0] < one[0] / 10 and night[1] < one[1] / 10, "darker, and flatter"


def test_speech_varies_in_time_and_noise_does_not() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 8000, generator=rng)
    speech = noise * (torch.arange(8000) // 2000 % 2)
    steady, varied = (glance_at_audio(x, torch.ones(1, 8000).bool())[0] for x in (noise, speech))
    assert varied[1] > 5 * steady[1]
    longer = glance_at_audio(torch.cat([noise, torch.zeros(1, 8000)], 1), (torch.arange(16_000) < 8000)[None])[0]
    assert torch.allclose(longer, steady, atol=1e-5), "padding is not looked at"


def test_a_frozen_clip_does_not_move() -> None:
    rng = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (1, 4, 3, 32, 32), generator=rng).to(torch.uint8)
    mask = torch.ones(1, 4).bool()
    moving, frozen = glance_at_video(frames, mask)[0], glance_at_video(frames[:, :1].expand_as(frames), mask)[0]
    assert moving[3] > 0.01 and moving[6] == 1 and frozen[3] == frozen[6] == 0
    single = glance_at_video(frames[:, :1], mask[:, :1])
    assert single.isfinite().all()


def test_glances_of_a_batch(make_batch: MakeBatch) -> None:
    batch = make_batch(24, missing=0.3)
    glance = Glance([*Modality])
    raw = glance.raw(batch)
    assert raw.shape == (24, 4, 8) and not raw[:, TEXT.column].any(), "words are not glanced at"
    glance.fit(raw, batch.present)
    seen = glance(raw, batch.present)
    assert not seen[~batch.present].any(), "nothing of what is absent"
    images = seen[batch.present[:, IMAGE.column], IMAGE.column]
    assert images.mean(0).abs().max() < 0.2 and images.abs().max() <= 5
    assert not Glance([IMAGE]).raw(batch)[:, AUDIO.column].any()


def test_nothing_at_all_gives_finite_glances() -> None:
    """A black picture and a silent sound."""
    black = ModalityInput(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.ones(1, 1).bool(), torch.zeros(1).long())
    silent = ModalityInput(torch.zeros(1, 4000), torch.ones(1, 4000).bool(), torch.zeros(1).long())
    batch = OmniBatch({IMAGE: black, AUDIO: silent}, ["answer"], ["f"], ["0"])
    assert Glance([*Modality]).raw(batch).isfinite().all()


def test_precomputed_tokens_cannot_be_glanced_at() -> None:
    tokens = ModalityInput(torch.zeros(1, 4, 16), torch.ones(1, 4).bool(), torch.zeros(1).long())
    with pytest.raises(ValueError, match="a glance needs raw image: got precomputed tokens"):
        Glance([IMAGE]).raw(OmniBatch({IMAGE: tokens}, ["answer"], ["f"], ["0"]))


def test_its_cost() -> None:
    sizes = {IMAGE: torch.tensor([100, 0]), AUDIO: torch.tensor([1000, 500])}
    assert Glance([IMAGE, AUDIO]).flops(sizes).tolist() == [200 + 5000, 2500]
