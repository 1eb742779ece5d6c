"""The TTS head: durations, voices, and that streamed chunks are the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from omni_lab.batch import Modality, Tokens
from omni_lab.heads.context import FusedContext, HeadError
from omni_lab.heads.tts import AUDIBLE, SILENT, GriffinLimVocoder, TTSHead
from omni_lab.layers.mel import N_MELS, LogMelSpectrogram
from omni_lab.worlds.espeak import synthesize


def context_of(size: int) -> FusedContext:
    torch.manual_seed(3)
    tokens = Tokens(torch.randn(size, 4, 16), torch.ones(size, 4, dtype=torch.bool))
    return FusedContext(tokens, {Modality.TEXT: slice(0, 4)})


@pytest.fixture
def head() -> TTSHead:
    torch.manual_seed(0)
    made = TTSHead(vocab_size=20, num_voices=3, dim=16, separator_ids=(7, 2)).eval()
    with torch.no_grad():
        made.last[-1].bias.fill_(2.0)  # seven frames a token
    return made


IDS = torch.tensor([[3, 5, 7, 2, 9, 11], [4, 4, 1, -1, -1, -1]])
VOICE = torch.tensor([0, 2])


def test_every_token_lasts_for_its_duration(head: TTSHead) -> None:
    durations = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0]])
    spoken = head(context_of(2), ids=IDS, voice=VOICE, durations=durations)
    assert spoken.mel.shape == (2, 23, N_MELS) and spoken.frames.tolist() == [23, 13]


def test_a_word_lasts_evenly_and_rounding_never_adds_up(head: TTSHead) -> None:
    """Separators belong to the word that follows: 3 5, 7 2 9 11; and 4 4 1."""
    with torch.no_grad():
        torch.nn.init.normal_(head.last[-1].weight, std=0.2)  # words of different paces
        spoken = head(context_of(2), ids=IDS, voice=VOICE)
    for said, durations, words in zip(spoken.log_durations.exp(), spoken.durations, ([2, 4], [3]), strict=True):
        first = 0
        for count in words:
            assert (said[first : first + count] - said[first]).abs().max() < 1e-4
            lasting = durations[first : first + count]
            assert lasting.max() - lasting.min() <= 1 and lasting.min() >= 1
            first += count
            assert abs(float(durations[:first].sum() - said[:first].sum())) <= 0.5 + 1e-4
        assert not durations[first:].any()
    assert abs(float(spoken.log_durations[0, 0] - spoken.log_durations[0, 2])) > 0.01
    assert torch.equal(spoken.frames, spoken.durations.sum(1))


def test_a_sample_is_synthesized_as_if_alone(head: TTSHead) -> None:
    together = head(context_of(2), ids=IDS, voice=VOICE)
    context = context_of(2)
    one = FusedContext(context.tokens.select(torch.tensor([1])).expand_entries(), context.modality_slices)
    alone = head(one, ids=IDS[1:, :3], voice=VOICE[1:])
    count = int(alone.frames)
    assert torch.equal(alone.frames, together.frames[1:])
    assert torch.allclose(alone.mel[0], together.mel[1, :count], atol=1e-5)


@pytest.mark.parametrize("chunk", [7, 30, 1000])
def test_chunks_of_the_spectrogram_are_the_whole(head: TTSHead, chunk: int) -> None:
    context = context_of(1)
    long = IDS[:1].repeat(1, 8)
    whole = head(context, ids=long, voice=VOICE[:1]).mel
    pieces = list(head.stream(context, ids=long, voice=VOICE[:1], chunk=chunk))
    assert len(pieces) == -(-whole.shape[1] // chunk) and whole.shape[1] > 2 * head.receptive_field
    assert (torch.cat(pieces, dim=1) - whole).abs().max() < 1e-5


def tone(seconds: float = 2.0) -> Tensor:
    """Gliding harmonics with pauses, [1, S]."""
    t = torch.arange(round(seconds * 16_000) // 640 * 640) / 16_000
    wave = sum(torch.sin(2 * np.pi * k * (180 * t + 30 * t**2)) / k for k in range(1, 6))
    return (0.2 * wave * (torch.sin(2 * np.pi * 1.5 * t) > -0.3))[None]


@pytest.mark.parametrize("chunk", [9, 40])
def test_chunks_of_the_waveform_are_the_whole(chunk: int) -> None:
    mel = LogMelSpectrogram()(tone(3.0)).transpose(1, 2)
    vocoder = GriffinLimVocoder(n_iter=6)
    whole = vocoder(mel)
    pieces = list(vocoder.stream(iter(mel.split(chunk, dim=1))))
    assert len(pieces) > 3 and whole.shape == (1, mel.shape[1] * 160)
    assert (torch.cat(pieces, dim=1) - whole).abs().max() < 1e-4


def test_the_waveform_has_the_given_spectrogram() -> None:
    mel = LogMelSpectrogram()(tone()).transpose(1, 2)
    loud = mel > mel.max() - 5
    off = []
    for rounds in (1, 8, 24):
        again = LogMelSpectrogram()(GriffinLimVocoder(n_iter=rounds)(mel)).transpose(1, 2)
        off.append(float((again - mel)[loud].abs().mean()))
    assert off == sorted(off, reverse=True) and off[-1] < 0.25, "each round brings it nearer"
    assert GriffinLimVocoder()(mel[:, :2]).shape == (1, 320), "however short"


def test_inaudible_energies_add_no_loss(head: TTSHead) -> None:
    durations = 5 * (IDS >= 0)
    spoken = head(context_of(2), ids=IDS, voice=VOICE, durations=durations)
    silent, quieter = torch.full_like(spoken.mel, -5.0), torch.full_like(spoken.mel, -13.0)
    assert head.loss(spoken, silent, durations)[0] == head.loss(spoken, quieter, durations)[0] > 0.1
    assert head.loss(spoken._replace(mel=quieter), silent, durations)[0] == 0
    hushed = head.train()(context_of(2), ids=IDS, voice=VOICE, durations=durations).mel < AUDIBLE
    assert hushed.any() and not hushed.all()
    assert torch.equal(spoken.mel == SILENT, hushed) and (spoken.mel[~hushed] >= AUDIBLE).all()


def test_at_first_it_is_about_as_loud_as_speech() -> None:
    """Log energies far from zero would take long to be reached."""
    torch.manual_seed(0)
    heard = LogMelSpectrogram()(torch.from_numpy(synthesize("a green frog left of a key").waveform)[None])
    head = TTSHead(vocab_size=20, num_voices=3, dim=16)
    with torch.no_grad():
        said = head(context_of(2), ids=IDS, voice=VOICE, durations=5 * (IDS >= 0)).mel[0]
    assert heard.mean() < -3 and abs(float(said.mean() - heard.mean())) < 3
    assert 0.5 < float(said.std() / heard.std()) < 2


def test_it_learns_sound_durations_and_voices() -> None:
    torch.manual_seed(0)
    head = TTSHead(vocab_size=20, num_voices=2, dim=16, separator_ids=(5,))  # two words
    ids, voice = torch.tensor([[3, 5], [3, 5]]), torch.tensor([0, 1])
    durations = torch.tensor([[6, 3], [4, 8]])
    mel = torch.zeros(2, 12, N_MELS)
    mel[0, :6, :20], mel[0, 6:9, 40:], mel[1, :4, 10:30], mel[1, 4:, 50:] = 2.0, 1.0, 2.0, 1.0
    context = context_of(2)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        heard, timed = head.loss(head(context, ids=ids, voice=voice, durations=durations), mel, durations)
        optimizer.zero_grad()
        (heard + timed).backward()
        optimizer.step()
    spoken = head.eval()(context, ids=ids, voice=voice)
    assert torch.equal(spoken.durations, durations), "each voice at its own pace"
    assert heard < 0.15 and (spoken.mel[0, :5, :20].mean() > 1.5) and (spoken.mel[1, 5:11, 50:].mean() > 0.7)


def test_invalid_requests_are_errors(head: TTSHead) -> None:
    context = context_of(2)
    with pytest.raises(HeadError, match=r"voices are 0 to 2: got \[0, 3\]"):
        head(context, ids=IDS, voice=torch.tensor([0, 3]))
    with pytest.raises(HeadError, match=r"texts must have 1 to 80 tokens: got \[6, 0\]"):
        head(context, ids=torch.where(torch.tensor([[True], [False]]), IDS, -1), voice=VOICE)
    with pytest.raises(HeadError, match=r"texts must have 1 to 80 tokens"):
        head(context, ids=IDS.repeat(1, 20), voice=VOICE)
    for i, wrong in ((1, torch.ones_like(IDS)), (0, torch.where(torch.tensor([[True], [False]]), 0, 3 * (IDS >= 0)))):
        with pytest.raises(HeadError, match=rf"and 0 for padding: got .* for texts \[{i}\] of"):
            head(context, ids=IDS, voice=VOICE, durations=wrong)
    with pytest.raises(HeadError, match="a chunk must have at least one frame: got 0"):
        list(head.stream(context, ids=IDS, voice=VOICE, chunk=0))
