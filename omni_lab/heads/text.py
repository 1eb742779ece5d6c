"""The text head: a decoder that writes, token after token, about what the model has fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.data.tokenizer import DecoderTokenizer
from omni_lab.heads.context import FusedContext, HeadError
from omni_lab.layers.decoder import CrossAttentionCache, DecoderLayer, KVCache


@dataclass(frozen=True)
class GenerationConfig:
    """How to write. beams: so many texts are kept at a time (1: greedy). length_power: finished beams are compared by
    log-probability over length to this power (Wu et al. 2016, eq. 14, without its constants). temperature: above 0,
    draw instead, from the likeliest tokens that together have the probability `nucleus` (Holtzman et al. 2020), with
    `seed`. longest: tokens written at most; a text not ended by then is cut there, and `Written.finished` says so.
    cached: keep keys and values of what is written; without, all is worked out again for every token."""

    num_beams: int = 1
    length_penalty: float = 0.6
    temperature: float = 0.0
    top_p: float = 0.95
    seed: int = 0
    max_new_tokens: int = 72
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise HeadError(
                "text: decoding wants beams and longest of 1 or more, a temperature of 0 or more, and a nucleus in "
                f"(0, 1]: got {self}"
            )
        if self.num_beams > 1 and self.temperature > 0:
            raise HeadError(f"text: either beams or a temperature: got beams={self.num_beams} and {self.temperature}")


class GenerationOutput(NamedTuple):
    """ids: [B, T], without the prompt, filled up with the id of the end. finished: [B], whether a text ended by itself.
    scores: [B], log-probability of what was written."""

    sequences: Int[Tensor, "b t"]
    finished: Bool[Tensor, " b"]
    scores: Float[Tensor, " b"]


@dataclass(frozen=True)
class DecoderState:
    """Everything that the next token depends on. real: [B, T], False where a shorter prompt was filled up (before)."""

    cross_caches: Sequence[CrossAttentionCache]
    kv_caches: Sequence[KVCache]
    attention_mask: Bool[Tensor, "b t"]

    def select(self, rows: Int[Tensor, " r"]) -> DecoderState:
        return DecoderState(
            [h.select(rows) for h in self.cross_caches],
            [p.select(rows) for p in self.kv_caches],
            self.attention_mask[rows],
        )


class TextHead(nn.Module):
    """An autoregressive decoder (Vaswani et al. 2017) over the tokens of a `Codec`, whose marks say what to write.
    Called with a target it returns logits [B, T, V] for each next token (teacher forcing), else what it writes.

    size, end: of the codec. dim: of the memory, too. max_length: of prompt and text together.
    """

    needs_context: ClassVar = True

    def __init__(
        self,
        *,
        vocab_size: int,
        eos_id: int,
        dim: int,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        max_length: int = 80,
    ) -> None:
        super().__init__()
        self.eos_id = eos_id
        self.max_length = max_length
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.02)
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.ctc_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)  # it also reads the tokens out

    def forward(
        self,
        context: FusedContext,
        *,
        prompt: Int[Tensor, "b p"],
        target: Int[Tensor, "b t"] | None = None,
        generation: GenerationConfig | None = None,
    ) -> Float[Tensor, "b t v"] | GenerationOutput:
        """prompt: see `Codec.prompts`. target: see `Codec.targets`; where given, logits for each of its tokens. Raises
        HeadError where they are too long, and as `begin`."""
        state = self.init_state(context.tokens, prompt)
        if target is None:
            return self.generate(state, prompt, generation or GenerationConfig())
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

    def ctc_loss(self, memory: FusedContext, target: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Connectionist temporal classification (Graves et al. 2006): each token of the sound in memory should say what
        is said at that time, in order, or the end for nothing new. Beside the decoder's loss it teaches where to listen
        (Kim et al. 2017). The mean over samples of the loss a target token. Raises HeadError where there is no sound.
        """
        deaf = (~memory.present(Modality.AUDIO)).nonzero().flatten().tolist()
        if deaf:
            raise HeadError(f"text: there is no sound in which the target could be heard: samples {deaf} lack one")
        place = memory.modality_slices[Modality.AUDIO]
        said = F.linear(self.ctc_proj(memory.tokens.values[:, place]), self.embedding.weight).log_softmax(
            dim=2
        )  # [B, N, V]
        lengths = memory.tokens.mask[:, place].sum(1)
        ids = target.clamp(min=0)
        counts = (target >= 0).sum(1) - 1  # without the end
        return F.ctc_loss(said.transpose(0, 1), ids, lengths, counts, blank=self.eos_id, zero_infinity=True)

    def init_state(self, memory: Tokens, prompt: Int[Tensor, "b p"]) -> DecoderState:
        """Before anything is read: keys and values of the memory. Raises HeadError for an empty prompt, one that leaves
        no room, or one that is not of as many samples."""
        if prompt.ndim != 2 or prompt.shape[1] == 0 or not (prompt[:, -1:] >= 0).all():
            raise HeadError(f"text: every sample wants a prompt that ends in a token: got {list(prompt.shape)}")
        if len(prompt) != len(memory) or prompt.shape[1] >= self.max_length:
            raise HeadError(
                f"text: expected {len(memory)} prompts, shorter than {self.max_length} tokens: got {list(prompt.shape)}"
            )
        heard = [cast(DecoderLayer, layer).cache_context(memory) for layer in self.layers]
        past = [KVCache.empty(known) for known in heard]
        return DecoderState(heard, past, torch.zeros(len(prompt), 0, dtype=torch.bool, device=prompt.device))

    @torch.no_grad()
    def generate(self, state: DecoderState, prompt: Int[Tensor, "b p"], decoding: GenerationConfig) -> GenerationOutput:
        """What it writes after the prompt, at most until it is full."""
        if decoding.num_beams > 1:
            return self._beam_search(state, prompt, decoding)
        ids, scores = [], torch.zeros(len(prompt), device=prompt.device)
        ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
        for chosen, likely in self._tokens(state, prompt, decoding):
            ids.append(torch.where(ended, self.eos_id, chosen))
            scores = scores + torch.where(ended, 0.0, likely)
            ended = ended | (chosen == self.eos_id)
            if ended.all():
                break
        return GenerationOutput(torch.stack(ids, dim=1), ended, scores)

    @torch.no_grad()
    def stream(
        self, memory: FusedContext, codec: DecoderTokenizer, prompt: Int[Tensor, "b p"], decoding: GenerationConfig
    ) -> Iterator[str]:
        """One text piece by piece, as it is written: together they are the text. Characters come whole. Raises
        HeadError for several prompts, or beams, which know the text only at its end."""
        if len(prompt) != 1 or decoding.num_beams > 1:
            raise HeadError(f"text: one text is streamed at a time, without beams: got {len(prompt)}, {decoding}")
        ids: list[int] = []
        said = ""
        for chosen, _ in self._tokens(self.init_state(memory.tokens, prompt), prompt, decoding):
            ids.append(int(chosen))
            if ids[-1] == self.eos_id:
                break
            text = codec.decode(ids).lstrip()
            if not text.endswith("\ufffd") and text != said:  # half a character so far
                yield text[len(said) :]
                said = text

    def _tokens(
        self, state: DecoderState, prompt: Int[Tensor, "b p"], decoding: GenerationConfig
    ) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, " b"]]]:
        """Token after token, and its log-probability."""
        dice = torch.Generator(device=prompt.device).manual_seed(decoding.seed)
        first, written = state, prompt
        for _ in range(self._max_new_tokens(prompt, decoding)):
            if decoding.use_cache:
                logits, state = self._step(state, written if state is first else written[:, -1:])
            else:
                logits, _ = self._step(first, written)
            likely = logits[:, -1].log_softmax(dim=1)  # [B, V]
            chosen = (
                likely.argmax(dim=1) if decoding.temperature == 0 else self._sample_top_p(logits[:, -1], decoding, dice)
            )
            yield chosen, likely.gather(1, chosen[:, None]).squeeze(1)
            written = torch.cat([written, chosen[:, None]], dim=1)

    def _max_new_tokens(self, prompt: Int[Tensor, "b p"], decoding: GenerationConfig) -> int:
        return min(decoding.max_new_tokens, self.max_length - prompt.shape[1])

    @staticmethod
    def _sample_top_p(
        logits: Float[Tensor, "b v"], decoding: GenerationConfig, dice: torch.Generator
    ) -> Int[Tensor, " b"]:
        chances, order = (logits / decoding.temperature).softmax(dim=1).sort(dim=1, descending=True)
        before = chances.cumsum(dim=1) - chances
        kept = chances.masked_fill(before >= decoding.top_p, 0.0)  # the likeliest is always kept
        return order.gather(1, torch.multinomial(kept, 1, generator=dice)).squeeze(1)

    def _beam_search(
        self, state: DecoderState, prompt: Int[Tensor, "b p"], decoding: GenerationConfig
    ) -> GenerationOutput:
        """The best of `beams` texts kept at a time. What ends is set aside; the rest goes on until none can win."""
        count, width, end = len(prompt), decoding.num_beams, self.eos_id
        device = prompt.device
        logits, state = self._step(state, prompt)
        likely = logits[:, -1].log_softmax(dim=1)  # [B, V]
        state = state.select(torch.arange(count, device=device).repeat_interleave(width))
        scores = torch.full((count, width), -torch.inf, device=device)  # at first, one beam stands for all
        scores[:, 0] = 0.0
        likely = likely.repeat_interleave(width, dim=0)
        written = torch.empty(count * width, 0, dtype=torch.long, device=device)
        best = [(-torch.inf, -torch.inf, torch.empty(0, dtype=torch.long, device=device))] * count
        room = self._max_new_tokens(prompt, decoding)
        for length in range(1, room + 1):
            total = scores[:, :, None] + likely.unflatten(0, (count, width))  # [B, K, V]
            top = total.flatten(1).topk(2 * width, dim=1)  # enough that `width` of them go on
            beam, token = top.indices // likely.shape[1], top.indices % likely.shape[1]
            ends = token == end
            for b, k in (ends & (torch.arange(2 * width, device=device) < width)).nonzero().tolist():
                score = float(top.values[b, k])
                if score / length**decoding.length_penalty > best[b][0]:
                    row = written[b * width + int(beam[b, k])]
                    best[b] = (score / length**decoding.length_penalty, score, row)
            going = top.values.masked_fill(ends, -torch.inf).topk(width, dim=1)
            scores = going.values
            rows = beam.gather(1, going.indices) + torch.arange(count, device=device)[:, None] * width
            chosen = token.gather(1, going.indices).flatten()
            written = torch.cat([written[rows.flatten()], chosen[:, None]], dim=1)
            longest = room**decoding.length_penalty
            if length == room or all(float(scores[b].max()) / longest <= best[b][0] for b in range(count)):
                break
            logits, state = self._step(state.select(rows.flatten()), chosen[:, None])
            likely = logits[:, -1].log_softmax(dim=1)
        finished = torch.tensor([found[0] > -torch.inf for found in best], device=device)
        for b in (~finished).nonzero().flatten().tolist():
            best[b] = (0.0, float(scores[b, 0]), written[b * width])  # cut, and said to be
        ids = nn.utils.rnn.pad_sequence([found[2] for found in best], batch_first=True, padding_value=end)
        return GenerationOutput(ids, finished, torch.tensor([found[1] for found in best], device=device))

    def _step(self, state: DecoderState, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n v"], DecoderState]:
        """Logits for what follows each of some more ids (-1: nothing), and the state after them."""
        before = state.attention_mask.shape[1]
        real = torch.cat([state.attention_mask, ids >= 0], dim=1)  # [B, T]
        place = (real.cumsum(dim=1) - 1).clamp(min=0)[:, before:]
        x = self.embedding(ids.clamp(min=0)) + self.position[place]
        at = torch.arange(real.shape[1], device=ids.device)
        earlier = at <= at[before:, None]  # [n, T]
        itself = at == at[before:, None]  # what was filled up attends to itself: nothing listens to it
        open_keys = (earlier & real[:, None] | itself)[:, None]  # [B, 1, n, T]
        past = []
        for layer, known, heard in zip(self.layers, state.kv_caches, state.cross_caches, strict=True):
            x, now = layer(x, known, open_keys, heard)
            past.append(now)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return logits, replace(state, kv_caches=past, attention_mask=real)
