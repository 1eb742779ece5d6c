"""The text head: a decoder that writes, token after token, about what the model has fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.data.tokenizer import Codec
from omni_lab.heads.decoder import Heard, Layer, Past
from omni_lab.heads.memory import HeadError, Remembered
from omni_lab.modalities import Modality, Tokens


@dataclass(frozen=True)
class Decoding:
    """How to write. beams: so many texts are kept at a time (1: greedy). length_power: finished beams are compared by
    log-probability over length to this power (Wu et al. 2016, eq. 14, without its constants). temperature: above 0,
    draw instead, from the likeliest tokens that together have the probability `nucleus` (Holtzman et al. 2020), with
    `seed`. longest: tokens written at most; a text not ended by then is cut there, and `Written.finished` says so.
    cached: keep keys and values of what is written; without, all is worked out again for every token."""

    beams: int = 1
    length_power: float = 0.6
    temperature: float = 0.0
    nucleus: float = 0.95
    seed: int = 0
    longest: int = 72
    cached: bool = True

    def __post_init__(self) -> None:
        if self.beams < 1 or self.longest < 1 or self.temperature < 0 or not 0 < self.nucleus <= 1:
            raise HeadError(
                "text: decoding wants beams and longest of 1 or more, a temperature of 0 or more, and a nucleus in "
                f"(0, 1]: got {self}"
            )
        if self.beams > 1 and self.temperature > 0:
            raise HeadError(f"text: either beams or a temperature: got beams={self.beams} and {self.temperature}")


class Written(NamedTuple):
    """ids: [B, T], without the prompt, filled up with the id of the end. finished: [B], whether a text ended by itself.
    scores: [B], log-probability of what was written."""

    ids: Int[Tensor, "b t"]
    finished: Bool[Tensor, " b"]
    scores: Float[Tensor, " b"]


@dataclass(frozen=True)
class State:
    """Everything that the next token depends on. real: [B, T], False where a shorter prompt was filled up (before)."""

    heard: Sequence[Heard]
    past: Sequence[Past]
    real: Bool[Tensor, "b t"]

    def of(self, rows: Int[Tensor, " r"]) -> State:
        return State([h.of(rows) for h in self.heard], [p.of(rows) for p in self.past], self.real[rows])


class TextHead(nn.Module):
    """An autoregressive decoder (Vaswani et al. 2017) over the tokens of a `Codec`, whose marks say what to write.
    Called with a target it returns logits [B, T, V] for each next token (teacher forcing), else what it writes.

    size, end: of the codec. dim: of the memory, too. max_length: of prompt and text together.
    """

    reads_memory: ClassVar = True

    def __init__(
        self,
        *,
        size: int,
        end: int,
        dim: int,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        max_length: int = 80,
    ) -> None:
        super().__init__()
        self.end = end
        self.max_length = max_length
        self.embedding = nn.Embedding(size, dim)
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.02)
        self.layers = nn.ModuleList(
            Layer(dim=dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.ear = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)  # it also reads the tokens out

    def forward(
        self,
        memory: Remembered,
        *,
        prompt: Int[Tensor, "b p"],
        target: Int[Tensor, "b t"] | None = None,
        decoding: Decoding | None = None,
    ) -> Float[Tensor, "b t v"] | Written:
        """prompt: see `Codec.prompts`. target: see `Codec.targets`; where given, logits for each of its tokens. Raises
        HeadError where they are too long, and as `begin`."""
        state = self.begin(memory.tokens, prompt)
        if target is None:
            return self.write(state, prompt, decoding or Decoding())
        read = (prompt >= 0).sum(1) + (target >= 0).sum(1) - 1  # the end is not read
        if (read > self.max_length).any():
            raise HeadError(
                f"text: prompt and target must have at most {self.max_length} tokens before the end: "
                f"got {read.tolist()}"
            )
        whole = torch.cat([prompt, target[:, :-1]], dim=1)
        return self._step(state, whole)[0][:, prompt.shape[1] - 1 :]

    def loss(self, logits: Float[Tensor, "b t v"], target: Int[Tensor, "b t"], *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, the mean over all tokens."""
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1, label_smoothing=smoothing)

    def heard_loss(self, memory: Remembered, target: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Connectionist temporal classification (Graves et al. 2006): each token of the sound in memory should say what
        is said at that time, in order, or the end for nothing new. Beside the decoder's loss it teaches where to listen
        (Kim et al. 2017). The mean over samples of the loss a target token. Raises HeadError where there is no sound.
        """
        deaf = (~memory.present(Modality.AUDIO)).nonzero().flatten().tolist()
        if deaf:
            raise HeadError(f"text: there is no sound in which the target could be heard: samples {deaf} lack one")
        place = memory.places[Modality.AUDIO]
        said = F.linear(self.ear(memory.tokens.values[:, place]), self.embedding.weight).log_softmax(dim=2)  # [B, N, V]
        lengths = memory.tokens.mask[:, place].sum(1)
        ids = target.clamp(min=0)
        counts = (target >= 0).sum(1) - 1  # without the end
        return F.ctc_loss(said.transpose(0, 1), ids, lengths, counts, blank=self.end, zero_infinity=True)

    def begin(self, memory: Tokens, prompt: Int[Tensor, "b p"]) -> State:
        """Before anything is read: keys and values of the memory. Raises HeadError for an empty prompt, one that leaves
        no room, or one that is not of as many samples."""
        if prompt.ndim != 2 or prompt.shape[1] == 0 or not (prompt[:, -1:] >= 0).all():
            raise HeadError(f"text: every sample wants a prompt that ends in a token: got {list(prompt.shape)}")
        if len(prompt) != len(memory) or prompt.shape[1] >= self.max_length:
            raise HeadError(
                f"text: expected {len(memory)} prompts, shorter than {self.max_length} tokens: got {list(prompt.shape)}"
            )
        heard = [cast(Layer, layer).hear(memory) for layer in self.layers]
        past = [Past.before(known) for known in heard]
        return State(heard, past, torch.zeros(len(prompt), 0, dtype=torch.bool, device=prompt.device))

    @torch.no_grad()
    def write(self, state: State, prompt: Int[Tensor, "b p"], decoding: Decoding) -> Written:
        """What it writes after the prompt, at most until it is full."""
        if decoding.beams > 1:
            return self._beams(state, prompt, decoding)
        ids, scores = [], torch.zeros(len(prompt), device=prompt.device)
        ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
        for chosen, likely in self._tokens(state, prompt, decoding):
            ids.append(torch.where(ended, self.end, chosen))
            scores = scores + torch.where(ended, 0.0, likely)
            ended = ended | (chosen == self.end)
            if ended.all():
                break
        return Written(torch.stack(ids, dim=1), ended, scores)

    @torch.no_grad()
    def stream(self, memory: Remembered, codec: Codec, prompt: Int[Tensor, "b p"], decoding: Decoding) -> Iterator[str]:
        """One text piece by piece, as it is written: together they are the text. Characters come whole. Raises
        HeadError for several prompts, or beams, which know the text only at its end."""
        if len(prompt) != 1 or decoding.beams > 1:
            raise HeadError(f"text: one text is streamed at a time, without beams: got {len(prompt)}, {decoding}")
        ids: list[int] = []
        said = ""
        for chosen, _ in self._tokens(self.begin(memory.tokens, prompt), prompt, decoding):
            ids.append(int(chosen))
            if ids[-1] == self.end:
                break
            text = codec.said(ids).lstrip()
            if not text.endswith("\ufffd") and text != said:  # half a character so far
                yield text[len(said) :]
                said = text

    def _tokens(
        self, state: State, prompt: Int[Tensor, "b p"], decoding: Decoding
    ) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, " b"]]]:
        """Token after token, and its log-probability."""
        dice = torch.Generator(device=prompt.device).manual_seed(decoding.seed)
        first, written = state, prompt
        for _ in range(self._room(prompt, decoding)):
            if decoding.cached:
                logits, state = self._step(state, written if state is first else written[:, -1:])
            else:
                logits, _ = self._step(first, written)
            likely = logits[:, -1].log_softmax(dim=1)  # [B, V]
            chosen = likely.argmax(dim=1) if decoding.temperature == 0 else self._drawn(logits[:, -1], decoding, dice)
            yield chosen, likely.gather(1, chosen[:, None]).squeeze(1)
            written = torch.cat([written, chosen[:, None]], dim=1)

    def _room(self, prompt: Int[Tensor, "b p"], decoding: Decoding) -> int:
        return min(decoding.longest, self.max_length - prompt.shape[1])

    @staticmethod
    def _drawn(logits: Float[Tensor, "b v"], decoding: Decoding, dice: torch.Generator) -> Int[Tensor, " b"]:
        chances, order = (logits / decoding.temperature).softmax(dim=1).sort(dim=1, descending=True)
        before = chances.cumsum(dim=1) - chances
        kept = chances.masked_fill(before >= decoding.nucleus, 0.0)  # the likeliest is always kept
        return order.gather(1, torch.multinomial(kept, 1, generator=dice)).squeeze(1)

    def _beams(self, state: State, prompt: Int[Tensor, "b p"], decoding: Decoding) -> Written:
        """The best of `beams` texts kept at a time. What ends is set aside; the rest goes on until none can win."""
        count, width, end = len(prompt), decoding.beams, self.end
        device = prompt.device
        logits, state = self._step(state, prompt)
        likely = logits[:, -1].log_softmax(dim=1)  # [B, V]
        state = state.of(torch.arange(count, device=device).repeat_interleave(width))
        scores = torch.full((count, width), -torch.inf, device=device)  # at first, one beam stands for all
        scores[:, 0] = 0.0
        likely = likely.repeat_interleave(width, dim=0)
        written = torch.empty(count * width, 0, dtype=torch.long, device=device)
        best = [(-torch.inf, -torch.inf, torch.empty(0, dtype=torch.long, device=device))] * count
        room = self._room(prompt, decoding)
        for length in range(1, room + 1):
            total = scores[:, :, None] + likely.unflatten(0, (count, width))  # [B, K, V]
            top = total.flatten(1).topk(2 * width, dim=1)  # enough that `width` of them go on
            beam, token = top.indices // likely.shape[1], top.indices % likely.shape[1]
            ends = token == end
            for b, k in (ends & (torch.arange(2 * width, device=device) < width)).nonzero().tolist():
                score = float(top.values[b, k])
                if score / length**decoding.length_power > best[b][0]:
                    row = written[b * width + int(beam[b, k])]
                    best[b] = (score / length**decoding.length_power, score, row)
            going = top.values.masked_fill(ends, -torch.inf).topk(width, dim=1)
            scores = going.values
            rows = beam.gather(1, going.indices) + torch.arange(count, device=device)[:, None] * width
            chosen = token.gather(1, going.indices).flatten()
            written = torch.cat([written[rows.flatten()], chosen[:, None]], dim=1)
            longest = room**decoding.length_power
            if length == room or all(float(scores[b].max()) / longest <= best[b][0] for b in range(count)):
                break
            logits, state = self._step(state.of(rows.flatten()), chosen[:, None])
            likely = logits[:, -1].log_softmax(dim=1)
        finished = torch.tensor([found[0] > -torch.inf for found in best], device=device)
        for b in (~finished).nonzero().flatten().tolist():
            best[b] = (0.0, float(scores[b, 0]), written[b * width])  # cut, and said to be
        ids = nn.utils.rnn.pad_sequence([found[2] for found in best], batch_first=True, padding_value=end)
        return Written(ids, finished, torch.tensor([found[1] for found in best], device=device))

    def _step(self, state: State, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n v"], State]:
        """Logits for what follows each of some more ids (-1: nothing), and the state after them."""
        before = state.real.shape[1]
        real = torch.cat([state.real, ids >= 0], dim=1)  # [B, T]
        place = (real.cumsum(dim=1) - 1).clamp(min=0)[:, before:]
        x = self.embedding(ids.clamp(min=0)) + self.position[place]
        at = torch.arange(real.shape[1], device=ids.device)
        earlier = at <= at[before:, None]  # [n, T]
        itself = at == at[before:, None]  # what was filled up attends to itself: nothing listens to it
        open_keys = (earlier & real[:, None] | itself)[:, None]  # [B, 1, n, T]
        past = []
        for layer, known, heard in zip(self.layers, state.past, state.heard, strict=True):
            x, now = layer(x, known, open_keys, heard)
            past.append(now)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return logits, replace(state, past=past, real=real)
