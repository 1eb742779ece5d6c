from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchaudio
from torch import Tensor

from omni_lab.batch import Tokens
from omni_lab.config.models import AudioConfig, ModelConfig
from omni_lab.encoders.audio import AudioEncoder
from omni_lab.layers.positional import sinusoidal_time_embedding
from tests.conftest import TINY_WORLD

CONFIG: ModelConfig = TINY_WORLD.model
SPAN = 0.12  # seconds a token
FRONTS = ["mel", "wav2vec2"]


def audio(front_end: str = "mel", **options: object) -> AudioEncoder:
    torch.manual_seed(0)
    config = replace(CONFIG.audio, front_end=front_end, **options)  # type: ignore[arg-type]
    return AudioEncoder(config, out_dim=24).eval()


def chirp(seconds: float, rate: int = 16_000, start: float = 200.0) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return 0.3 * torch.sin(2 * torch.pi * (start + 300 * time) * time)


@torch.no_grad()
def encode(encoder: AudioEncoder, *waves: Tensor) -> Tokens:
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    return encoder(padded, torch.arange(padded.shape[1]) < lengths[:, None])


@pytest.mark.parametrize("front", FRONTS)
def test_tokens_cover_equal_spans_of_the_waveform(front: str) -> None:
    tokens = encode(audio(front), chirp(1.0), chirp(0.6))
    assert tokens.values.shape == (2, 9, 24)
    assert tokens.mask.sum(dim=1).tolist() == [9, 5]
    assert tokens.times is not None
    for times, mask, seconds in zip(tokens.times, tokens.mask, (1.0, 0.6), strict=True):
        real = times[mask]
        assert torch.allclose(real.diff(), torch.tensor(SPAN), atol=1e-5)
        assert 0 < real[0] < SPAN and real[-1] - SPAN / 2 < seconds, "each token begins inside the sound"
        assert mask[: len(real)].all()


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("samples", [1700, 5000, 7777, 9600])
def test_padding_does_not_change_real_tokens(front: str, samples: int) -> None:
    encoder, short = audio(front), chirp(1.0)[:samples]
    alone, beside = encode(encoder, short), encode(encoder, short, chirp(1.3, start=500.0))
    count = int(alone.mask.sum())
    assert beside.mask[0].sum() == count
    assert (alone.values[0, :count] - beside.values[0, :count]).abs().max() < 1e-4
    assert (beside.values[0, :count] - beside.values[1, :count]).abs().max() > 1e-2


@pytest.mark.parametrize("front", FRONTS)
def test_samples_after_the_end_change_nothing(front: str) -> None:
    encoder, wave = audio(front), chirp(1.0)[None]
    mask = torch.arange(16_000)[None] < 6000
    with torch.no_grad():
        one, other = encoder(wave, mask), encoder(wave * mask, mask)
    assert torch.equal(one.mask, other.mask)
    assert (one.values - other.values)[one.mask].abs().max() < 1e-5


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("wave", [torch.zeros(16_000), torch.ones(16_000), 1e-9 * chirp(1.0), 1e4 * chirp(1.0)])
def test_silence_and_extremes_stay_finite(front: str, wave: Tensor) -> None:
    encoder = audio(front)
    assert torch.isfinite(encode(encoder, wave).values).all()
    assert torch.isfinite(encode(encoder, wave, chirp(0.4)).values).all()


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("samples", [1, 39, 400, 1599])
def test_the_shortest_sound_is_one_token(front: str, samples: int) -> None:
    tokens = encode(audio(front), chirp(1.0)[:samples])
    assert tokens.mask.sum() == 1 and torch.isfinite(tokens.values).all()


@pytest.mark.parametrize("front", FRONTS)
def test_loudness_does_not_matter(front: str) -> None:
    encoder = audio(front)
    loud, soft, other = (encode(encoder, w).values for w in (chirp(1.0), 0.2 * chirp(1.0), chirp(1.0, start=2000.0)))
    assert (loud - soft).abs().mean() < 0.2 * (loud - other).abs().mean()


@pytest.mark.parametrize("front", FRONTS)
def test_another_sample_rate_keeps_the_times(front: str) -> None:
    here, there = audio(front), audio(front, sample_rate=44_100)
    ours = encode(here, chirp(0.7), chirp(0.4))
    theirs = encode(there, chirp(0.7, rate=44_100), chirp(0.4, rate=44_100))
    assert ours.times is not None and theirs.times is not None
    assert torch.allclose(ours.times, theirs.times) and torch.equal(ours.mask, theirs.mask)
    assert ours.mask.sum(dim=1).unique().numel() == 2
    silent = encode(here, 0 * chirp(0.7), 0 * chirp(0.4))
    off, far = ((ours.values - other.values)[ours.mask].abs().mean() for other in (theirs, silent))
    assert off < 0.1 < far


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
def test_samples_per_token_counts_the_tokens_of_any_rate(rate: int) -> None:
    encoder = audio(sample_rate=rate)
    each = encoder.samples_per_token
    assert each == SPAN * rate
    lengths = torch.tensor([1, each - 1, each, each + 1, each + 2, 5 * each - 1, 5 * each, 5 * each + 1])
    waves = [torch.ones(int(n)) for n in lengths]
    assert encode(encoder, *waves).mask.sum(1).tolist() == (-(-lengths // each)).tolist()
    assert [encode(encoder, wave).values.shape[1] for wave in waves] == (-(-lengths // each)).tolist()


def test_a_longer_span_gives_fewer_tokens() -> None:
    tokens = encode(audio(seconds_per_token=0.24), chirp(1.0))
    assert tokens.values.shape[1] == 5


def test_a_sound_moves_only_the_tokens_of_its_time() -> None:
    """Most, that is: attention carries a little of it everywhere."""
    encoder, silence = audio(), torch.zeros(16_000)
    clicked = silence.clone()
    clicked[8000:8800] = chirp(0.05)
    moved = (encode(encoder, clicked).values - encode(encoder, chirp(1.0) * 0).values)[0].norm(dim=-1)
    assert moved.argmax() == int(0.525 / SPAN)


def test_front_ends_are_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"front_end must be 'mel', 'wav2vec2' or .*: got 'whisper'"):
        AudioEncoder(AudioConfig(front_end="whisper"), out_dim=8)

    class Bundle:
        @staticmethod
        def get_model() -> torch.nn.Module:
            return audio("wav2vec2").front.model

    monkeypatch.setattr(torchaudio.pipelines, "TINY_BUNDLE", Bundle, raising=False)
    assert encode(audio("TINY_BUNDLE"), chirp(1.0)).values.shape == (1, 9, 24)


def test_equal_times_look_alike_and_others_do_not() -> None:
    features = sinusoidal_time_embedding(torch.tensor([[0.5, 0.5, 0.6, 3.0]]), 16)[0]
    assert features.shape == (4, 16) and torch.equal(features[0], features[1])
    near, far = (features[0] - features[2]).norm(), (features[0] - features[3]).norm()
    assert 0.1 < near < far
    assert features.abs().max() <= 0.3 + 1e-6
    assert torch.allclose(sinusoidal_time_embedding(torch.tensor([[0.5]]), 16, amplitude=0.9)[0, 0], 3 * features[0])
