"""The text-to-speech head: text and a voice to a mel spectrogram and to a waveform, whole or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Float, Int
from torch import Tensor, nn

from omni_lab.heads.context import FusedContext, HeadError
from omni_lab.layers.decoder import DecoderLayer
from omni_lab.layers.mel import HOP_LENGTH, N_FFT, N_MELS, WIN_LENGTH, LogMelSpectrogram

MAX_TOKEN_FRAMES = 60  # the longest predicted duration of a token
LOG_MEL_MEAN, LOG_MEL_STD = -1.0, 3.0  # of log energies
DURATION_LOSS_WEIGHT = 5.0  # durations caused half of the recognition errors of an early model
AUDIBLE = -4.6  # log energy, some 40 dB below the loudest; energies below it add no loss and are output as silence
SILENT = -13.8  # the log energy of silence in `LogMelSpectrogram`


class TTSOutput(NamedTuple):
    """Spectrograms and durations.

    mel: log energies as in `LogMelSpectrogram`, padded to F frames.
    frames: the number of frames of each sample.
    log_durations: predicted log of each token's duration in frames, equal for all tokens of a word.
    durations: the frames of each token, as used.
    """

    mel: Float[Tensor, "b f m"]
    frames: Int[Tensor, " b"]
    log_durations: Float[Tensor, "b t"]
    durations: Int[Tensor, "b t"]


class TTSHead(nn.Module):
    """A length regulator repeats each token for its duration; convolutions then make all mel frames in parallel.

    After FastSpeech (Ren et al. 2019, section 3.3). Training uses the reference durations, inference predicted ones.
    The head predicts the duration of a word and divides it evenly among the word's tokens, as the references are, so
    that the convolutions meet the same inputs as in training. Rounding errors do not add up along a text.

    dim: width of the head and of the context.
    separator_ids: tokens between words; they belong to the word that follows.
    depth, num_conv_layers: layers over tokens, and over frames.
    """

    separator_ids: Tensor
    needs_context: ClassVar = True

    def __init__(
        self,
        *,
        vocab_size: int,
        num_voices: int,
        dim: int,
        separator_ids: Sequence[int] = (),
        depth: int = 2,
        num_conv_layers: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        max_length: int = 80,
    ) -> None:
        super().__init__()
        self.num_voices = num_voices
        self.max_length = max_length
        self.register_buffer("separator_ids", torch.tensor([*separator_ids], dtype=torch.long), persistent=False)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.02)
        self.voice = nn.Embedding(num_voices, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=0.0) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.last = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1))
        self.place = nn.Linear(4, dim)
        dilations = [2 ** (i % 3) for i in range(num_conv_layers)]
        self.frames = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size=5, padding=2 * d, dilation=d) for d in dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_conv_layers))
        self.out = nn.Linear(dim, N_MELS)

    @property
    def receptive_field(self) -> int:
        """How many frames to either side a frame depends on."""
        return sum(2 * 2 ** (i % 3) for i in range(len(self.frames)))

    def forward(
        self,
        context: FusedContext,
        *,
        ids: Int[Tensor, "b t"],
        voice: Int[Tensor, " b"],
        durations: Int[Tensor, "b t"] | None = None,
    ) -> TTSOutput:
        """ids: the text, padded with -1. durations: frames of each token, 0 for padding (default: predicted).

        Raises HeadError for an unknown voice, a text that is empty or too long, and durations that do not fit the text.
        """
        frames, log_durations, durations = self._expand_frames(context, ids, voice, durations)
        return TTSOutput(self._decode_mel(frames), durations.sum(1), log_durations, durations)

    def stream(
        self, context: FusedContext, *, ids: Int[Tensor, "b t"], voice: Int[Tensor, " b"], chunk: int = 30
    ) -> Iterator[Float[Tensor, "b f m"]]:
        """Yields the spectrogram in chunks of `chunk` frames, each computed from the frames that it depends on."""
        if chunk < 1:
            raise HeadError(f"tts: a chunk must have at least one frame: got {chunk}")
        with torch.no_grad():
            frames, _, _ = self._expand_frames(context, ids, voice, None)
            for start in range(0, frames.shape[1], chunk):
                first = max(0, start - self.receptive_field)
                mel = self._decode_mel(frames[:, first : start + chunk + self.receptive_field])
                yield mel[:, start - first : start - first + chunk]

    def loss(
        self, output: TTSOutput, mel: Float[Tensor, "b f m"], durations: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The L1 loss of the spectrogram, and `DURATION_LOSS_WEIGHT` times the squared error of log durations."""
        real = torch.arange(mel.shape[1], device=mel.device) < output.frames[:, None]  # [B, F]
        l1 = (output.mel.clamp(min=AUDIBLE) - mel.clamp(min=AUDIBLE)).abs().mean(2)
        squared = (output.log_durations - durations.clamp(min=1).float().log()).square()
        spoken = durations > 0
        duration_loss = DURATION_LOSS_WEIGHT * (squared * spoken).sum() / spoken.sum().clamp(min=1)
        return (l1 * real).sum() / real.sum(), duration_loss

    def _expand_frames(
        self, context: FusedContext, ids: Int[Tensor, "b t"], voice: Int[Tensor, " b"], durations: Tensor | None
    ) -> tuple[Float[Tensor, "b f d"], Float[Tensor, "b t"], Int[Tensor, "b t"]]:
        """The length regulator: one vector per frame; log durations as predicted, and durations as used."""
        real = ids >= 0
        if ids.shape[1] > self.max_length or not real.any(dim=1).all():
            raise HeadError(f"tts: texts must have 1 to {self.max_length} tokens: got {real.sum(1).tolist()}")
        if not ((voice >= 0) & (voice < self.num_voices)).all():
            raise HeadError(f"tts: voices are 0 to {self.num_voices - 1}: got {voice.tolist()}")
        x = self.embedding(ids.clamp(min=0)) + self.position[: ids.shape[1]] + self.voice(voice)[:, None]
        x = x * real[..., None]
        for layer in self.layers:
            x = layer.forward_parallel(x, context.tokens, real)  # type: ignore[operator]
        x = self.norm(x)
        log_durations = self.last(self._word_mean(x, ids)).squeeze(2)
        if durations is None:
            ends = ((log_durations.exp().clamp(1, MAX_TOKEN_FRAMES) * real).cumsum(1) + 0.5).floor().long()
            durations = torch.diff(ends, dim=1, prepend=torch.zeros_like(ends[:, :1]))
        if durations.shape != ids.shape:
            raise HeadError(f"tts: expected durations of {list(ids.shape)} tokens: got {list(durations.shape)}")
        bad = ((durations * ~real != 0).any(1) | (durations < 0).any(1) | (durations.sum(1) == 0)).nonzero().flatten()
        if len(bad):
            raise HeadError(
                "tts: durations must be positive in sum, never negative, and 0 for padding: got "
                f"{durations[bad].tolist()} for texts {bad.tolist()} of {real[bad].sum(1).tolist()} tokens"
            )
        expanded = []
        for vectors, frames in zip(x, durations, strict=True):
            token = torch.arange(len(frames), device=x.device).repeat_interleave(frames)  # [F]
            since = torch.arange(len(token), device=x.device) - (frames.cumsum(0) - frames)[token]
            fraction = (since + 0.5) / frames[token]
            position = torch.stack([fraction, 1 - fraction, 1 / (1 + since), 1 / frames[token]], dim=1)
            expanded.append(vectors[token] + self.place(position))
        return nn.utils.rnn.pad_sequence(expanded, batch_first=True), log_durations, durations

    def _word_mean(self, x: Float[Tensor, "b t d"], ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """For each token the mean over the tokens of its word."""
        real = (ids >= 0).to(x.dtype)[..., None]
        separator = torch.isin(ids, self.separator_ids)
        word = (separator & ~F.pad(separator, (1, 0))[:, :-1]).cumsum(1)[..., None]  # [B, T, 1]
        sums = torch.zeros_like(x).scatter_add(1, word.expand_as(x), x * real)
        counts = torch.zeros_like(real).scatter_add(1, word, real)
        return (sums / counts.clamp(min=1)).gather(1, word.expand_as(x))

    def _decode_mel(self, frames: Float[Tensor, "b f d"]) -> Float[Tensor, "b f m"]:
        """The convolutions. Outside training in double precision: rounding differs between a chunk and the whole, and
        the phases that a vocoder computes from a spectrogram amplify the difference."""
        x = frames.transpose(1, 2) if self.training else frames.transpose(1, 2).double()
        real = frames.abs().sum(2, keepdim=True).transpose(1, 2) > 0  # padding is zero
        for layer, layer_norm in zip(self.frames, self.norms, strict=True):
            conv, norm = cast(nn.Conv1d, layer), cast(nn.LayerNorm, layer_norm)
            weight, bias = conv.weight.to(x), cast(Tensor, conv.bias).to(x)
            h = F.layer_norm(x.transpose(1, 2), (x.shape[1],), norm.weight.to(x), norm.bias.to(x)).transpose(1, 2)
            h = F.conv1d(h * real, weight, bias, padding=conv.padding, dilation=conv.dilation)
            x = (x + F.gelu(h)) * real
        mel = LOG_MEL_MEAN + LOG_MEL_STD * F.linear(x.transpose(1, 2), self.out.weight.to(x), self.out.bias.to(x))
        return (mel if self.training else mel.masked_fill(mel < AUDIBLE, SILENT)).to(frames.dtype)


class GriffinLimVocoder(nn.Module):
    """Mel spectrogram to waveform, by Griffin and Lim (1984) with momentum (Perraudin et al. 2013), from zero phases.

    The linear spectrogram comes from the pseudo-inverse of the mel filter bank.
    n_iter: iterations; each lets a sample depend on frames further away, so `receptive_field` grows with them.
    """

    bank: Tensor
    window: Tensor

    def __init__(self, *, n_iter: int = 24) -> None:
        super().__init__()
        self.n_iter = n_iter
        self.register_buffer("bank", torch.linalg.pinv(LogMelSpectrogram().bank.T), persistent=False)  # [257, N_MELS]
        self.register_buffer("window", torch.hann_window(WIN_LENGTH), persistent=False)

    @property
    def receptive_field(self) -> int:
        """How many frames to either side a sample depends on."""
        return 4 * (self.n_iter + 1)

    def forward(self, mel: Float[Tensor, "b f m"]) -> Float[Tensor, "b s"]:
        """[B, F, N_MELS] log energies to [B, F * HOP_LENGTH] samples at 16 kHz."""
        samples = mel.shape[1] * HOP_LENGTH
        if mel.shape[1] < 4:  # shorter than a window
            return self(F.pad(mel, (0, 0, 0, 4 - mel.shape[1]), value=SILENT))[:, :samples]
        power = (self.bank @ mel.exp().transpose(1, 2)).clamp(min=1e-8)  # [B, 257, F]
        power = F.pad(power, (0, 1), mode="replicate")
        return torchaudio.functional.griffinlim(
            power, self.window, N_FFT, HOP_LENGTH, WIN_LENGTH, 2.0, self.n_iter, 0.99, samples, False
        )

    def stream(self, mel_chunks: Iterator[Float[Tensor, "b f m"]]) -> Iterator[Float[Tensor, "b s"]]:
        """Yields the waveform in pieces, each as soon as the frames that it depends on have arrived."""
        buffer: Tensor | None = None
        first = done = 0  # the first frame in the buffer, and the frames whose samples were yielded
        for mel in mel_chunks:
            buffer = mel if buffer is None else torch.cat([buffer, mel], dim=1)
            ready = first + buffer.shape[1] - self.receptive_field
            if ready > done:
                yield self(buffer)[:, (done - first) * HOP_LENGTH : (ready - first) * HOP_LENGTH]
                done = ready
                needed = max(first, done - self.receptive_field)
                buffer, first = buffer[:, needed - first :], needed
        if buffer is not None and first + buffer.shape[1] > done:
            yield self(buffer)[:, (done - first) * HOP_LENGTH :]
