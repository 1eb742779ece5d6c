"""The speech head: a text, in one of several voices, as a mel spectrogram and then as sound, whole or in pieces."""

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
from omni_lab.layers.mel import HOP_LENGTH, N_MELS, WIN_LENGTH, LogMelSpectrogram

MAX_TOKEN_FRAMES = 60  # frames of one token
LOG_MEL_MEAN, LOG_MEL_STD = -1.0, 3.0  # of log energies
DURATION_LOSS_WEIGHT = 5.0  # what durations count: half of what was misheard of an early model went back to them
AUDIBLE = -4.6  # of a log energy: some 40 dB below the loudest; what is below is learned no further, and silent
SILENT = -13.8  # the log energy of silence, in `LogMel`


class TTSOutput(NamedTuple):
    """mel: [B, F, BANDS] log energies as `LogMel` makes them. frames: [B], how many of F are each sample's. said: [B,
    T], the logarithm of the frames that each token should last, as the head sees it, the same for all of a word.
    durations: [B, T] frames, as used."""

    mel: Float[Tensor, "b f m"]
    frames: Int[Tensor, " b"]
    log_durations: Float[Tensor, "b t"]
    durations: Int[Tensor, "b t"]


class TTSHead(nn.Module):
    """Every token is given a duration and lasts so many frames (FastSpeech, Ren et al. 2019, section 3.3); convolutions
    over the frames then make the spectrogram, all at once. In training durations are those of the reference; else the
    head's own. It decides how long a word lasts and deals that out evenly to its tokens, as the reference's are: so
    convolutions meet nothing else than in training. Rounding never adds up along a text.

    size: ids of the codec. between: those that stand between words; they are counted to the word behind them. voices:
    how many there are. dim: of the memory, too. layers: convolutions over frames.
    """

    pauses: Tensor

    needs_context: ClassVar = True

    def __init__(
        self,
        *,
        vocab_size: int,
        voices: int,
        dim: int,
        separator_ids: Sequence[int] = (),
        depth: int = 2,
        layers: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        max_length: int = 80,
    ) -> None:
        super().__init__()
        self.voices = voices
        self.max_length = max_length
        self.register_buffer("pauses", torch.tensor([*separator_ids], dtype=torch.long), persistent=False)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.02)
        self.voice = nn.Embedding(voices, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=0.0) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.last = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1))
        self.place = nn.Linear(4, dim)
        self.frames = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel_size=5, padding=2 * 2 ** (i % 3), dilation=2 ** (i % 3)) for i in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
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
        """ids: what to say, -1 where a text is shorter. durations: of each token in frames, 0 where there is none.
        Raises HeadError for a voice that there is not, a text that is empty or too long, and durations that do not fit.
        """
        planned, said, durations = self._planned(context, ids, voice, durations)
        return TTSOutput(self._drawn(planned), durations.sum(1), said, durations)

    def stream(
        self, memory: FusedContext, *, ids: Int[Tensor, "b t"], voice: Int[Tensor, " b"], chunk: int = 30
    ) -> Iterator[Float[Tensor, "b f m"]]:
        """The same spectrogram in pieces of `chunk` frames, each made from the frames it depends on alone."""
        if chunk < 1:
            raise HeadError(f"speech: a chunk must have a frame or more: got {chunk}")
        with torch.no_grad():
            planned, _, _ = self._planned(memory, ids, voice, None)
            for start in range(0, planned.shape[1], chunk):
                first = max(0, start - self.receptive_field)
                part = self._drawn(planned[:, first : start + chunk + self.receptive_field])
                yield part[:, start - first : start - first + chunk]

    def loss(
        self, spoken: TTSOutput, mel: Float[Tensor, "b f m"], durations: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Of the spectrogram (mean distance over real frames), and of the durations (`TIMED` times the squared distance
        of logarithms)."""
        real = torch.arange(mel.shape[1], device=mel.device) < spoken.frames[:, None]  # [B, F]
        heard = (spoken.mel.clamp(min=AUDIBLE) - mel.clamp(min=AUDIBLE)).abs().mean(2)
        timed = (spoken.log_durations - durations.clamp(min=1).float().log()).square()
        spoke = durations > 0
        return (heard * real).sum() / real.sum(), DURATION_LOSS_WEIGHT * (timed * spoke).sum() / spoke.sum().clamp(
            min=1
        )

    def _planned(
        self, memory: FusedContext, ids: Int[Tensor, "b t"], voice: Int[Tensor, " b"], durations: Tensor | None
    ) -> tuple[Float[Tensor, "b f d"], Float[Tensor, "b t"], Int[Tensor, "b t"]]:
        """What each frame is to say, and the durations as seen and as used."""
        real = ids >= 0
        if ids.shape[1] > self.max_length or not real.any(dim=1).all():
            raise HeadError(f"speech: texts must have 1 to {self.max_length} tokens: got {real.sum(1).tolist()}")
        if not ((voice >= 0) & (voice < self.voices)).all():
            raise HeadError(f"speech: voices are 0 to {self.voices - 1}: got {voice.tolist()}")
        x = self.embedding(ids.clamp(min=0)) + self.position[: ids.shape[1]] + self.voice(voice)[:, None]
        x = x * real[..., None]
        for layer in self.layers:
            x = layer.forward_parallel(x, memory.tokens, real)  # type: ignore[operator]
        x = self.norm(x)
        said = self.last(self._by_word(x, ids)).squeeze(2)
        if durations is None:
            ends = ((said.exp().clamp(1, MAX_TOKEN_FRAMES) * real).cumsum(1) + 0.5).floor().long()
            durations = torch.diff(ends, dim=1, prepend=torch.zeros_like(ends[:, :1]))
        if durations.shape != ids.shape:
            raise HeadError(f"speech: expected durations of {list(ids.shape)} tokens: got {list(durations.shape)}")
        odd = ((durations * ~real != 0).any(1) | (durations < 0).any(1) | (durations.sum(1) == 0)).nonzero().flatten()
        if len(odd):
            raise HeadError(
                f"speech: every text wants frames for its tokens, and for nothing else: got {durations[odd].tolist()} "
                f"for texts {odd.tolist()} of {real[odd].sum(1).tolist()} tokens"
            )
        rows = []
        for vectors, lasts in zip(x, durations, strict=True):
            token = torch.arange(len(lasts), device=x.device).repeat_interleave(lasts)  # [F]
            since = torch.arange(len(token), device=x.device) - (lasts.cumsum(0) - lasts)[token]
            share = (since + 0.5) / lasts[token]
            where = torch.stack([share, 1 - share, 1 / (1 + since), 1 / lasts[token]], dim=1)
            rows.append(vectors[token] + self.place(where))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), said, durations

    def _by_word(self, x: Float[Tensor, "b t d"], ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """For each token the mean over the word that it belongs to."""
        real = (ids >= 0).to(x.dtype)[..., None]
        pause = torch.isin(ids, self.pauses)
        word = (pause & ~F.pad(pause, (1, 0))[:, :-1]).cumsum(1)[..., None]  # [B, T, 1]
        sums = torch.zeros_like(x).scatter_add(1, word.expand_as(x), x * real)
        counts = torch.zeros_like(real).scatter_add(1, word, real)
        return (sums / counts.clamp(min=1)).gather(1, word.expand_as(x))

    def _drawn(self, planned: Float[Tensor, "b f d"]) -> Float[Tensor, "b f m"]:
        """Outside training in double precision: rounding differs between a piece and the whole, and phases that are
        worked out from a spectrogram blow the difference up."""
        x = planned.transpose(1, 2) if self.training else planned.transpose(1, 2).double()
        inside = planned.abs().sum(2, keepdim=True).transpose(1, 2) > 0  # beyond its end a text is silent
        for layer, before in zip(self.frames, self.norms, strict=True):
            conv, norm = cast(nn.Conv1d, layer), cast(nn.LayerNorm, before)
            weight, bias = conv.weight.to(x), cast(Tensor, conv.bias).to(x)
            h = F.layer_norm(x.transpose(1, 2), (x.shape[1],), norm.weight.to(x), norm.bias.to(x)).transpose(1, 2)
            said = F.conv1d(h * inside, weight, bias, padding=conv.padding, dilation=conv.dilation)
            x = (x + F.gelu(said)) * inside
        mel = LOG_MEL_MEAN + LOG_MEL_STD * F.linear(x.transpose(1, 2), self.out.weight.to(x), self.out.bias.to(x))
        return (mel if self.training else mel.masked_fill(mel < AUDIBLE, SILENT)).to(planned.dtype)


class GriffinLimVocoder(nn.Module):
    """A sound whose spectrogram is that of a mel spectrogram, by Griffin and Lim (1984) with the momentum of Perraudin
    et al. (2013), beginning with phases of zero. What is between the mel bands is filled by their pseudo-inverse.

    rounds: of going forth and back. Each lets a sample depend on frames further away, so `reach` grows with them.
    """

    bank: Tensor
    window: Tensor

    def __init__(self, *, n_iter: int = 24) -> None:
        super().__init__()
        self.rounds = n_iter
        mel = LogMelSpectrogram()
        self.register_buffer("bank", torch.linalg.pinv(mel.bank.T), persistent=False)  # [BINS, BANDS]
        self.register_buffer("window", torch.hann_window(WIN_LENGTH), persistent=False)

    @property
    def receptive_field(self) -> int:
        """How many frames to either side a sample depends on."""
        return 4 * (self.rounds + 1)

    def forward(self, mel: Float[Tensor, "b f m"]) -> Float[Tensor, "b s"]:
        """[B, F, BANDS] log energies to [B, F * HOP] samples at 16 kHz."""
        if mel.shape[1] < 4:  # too short for a window
            return self(F.pad(mel, (0, 0, 0, 4 - mel.shape[1]), value=SILENT))[:, : mel.shape[1] * HOP_LENGTH]
        power = (self.bank @ mel.exp().transpose(1, 2)).clamp(min=1e-8)  # [B, BINS, F]
        power = F.pad(power, (0, 1), mode="replicate")
        return torchaudio.functional.griffinlim(
            power, self.window, 512, HOP_LENGTH, WIN_LENGTH, 2.0, self.rounds, 0.99, mel.shape[1] * HOP_LENGTH, False
        )

    def stream(self, pieces: Iterator[Float[Tensor, "b f m"]]) -> Iterator[Float[Tensor, "b s"]]:
        """The same sound piece by piece, each as soon as the frames it depends on are there."""
        held: Tensor | None = None
        first = done = 0  # the frame that `held` begins with; and how many have been given out
        for piece in pieces:
            held = piece if held is None else torch.cat([held, piece], dim=1)
            upto = first + held.shape[1] - self.receptive_field
            if upto > done:
                yield self(held)[:, (done - first) * HOP_LENGTH : (upto - first) * HOP_LENGTH]
                done = upto
                keep = max(first, done - self.receptive_field)
                held, first = held[:, keep - first :], keep
        if held is not None and first + held.shape[1] > done:
            yield self(held)[:, (done - first) * HOP_LENGTH :]
