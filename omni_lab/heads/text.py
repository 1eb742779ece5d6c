"""The text head: an autoregressive decoder over the fused context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omni_lab.batch import Modality, Tokens
from omni_lab.heads.context import FusedContext, HeadError
from omni_lab.layers.attention import CrossAttentionCache
from omni_lab.layers.decoder import DecoderLayer, KVCache

if TYPE_CHECKING:
    from omni_lab.data.tokenizer import DecoderTokenizer


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate. Raises HeadError for values out of range, and for beam search with a temperature.

    num_beams: 1 is greedy search.
    length_penalty: beams compare log-probability / length ** length_penalty (Wu et al. 2016, eq. 14, no constants).
    temperature: above 0, sample, with `seed`.
    top_p: sample from the fewest tokens that reach this probability (Holtzman et al. 2020).
    max_new_tokens: longer texts are cut, and `GenerationOutput.finished` is False.
    use_cache: False computes all keys and values again for every token.
    """

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
                "text: num_beams and max_new_tokens must be at least 1, temperature at least 0, and top_p in (0, 1]: "
                f"got {self}"
            )
        if self.num_beams > 1 and self.temperature > 0:
            raise HeadError(f"text: beam search takes no temperature: got {self}")


class GenerationOutput(NamedTuple):
    """Generated texts.

    sequences: without the prompt, padded with the end-of-sequence id.
    finished: whether a text ended by itself.
    scores: log-probability of each text.
    """

    sequences: Int[Tensor, "b t"]
    finished: Bool[Tensor, " b"]
    scores: Float[Tensor, " b"]


@dataclass(frozen=True)
class DecoderState:
    """All that the next token depends on. attention_mask: False where a shorter prompt is padded, on the left."""

    cross_caches: Sequence[CrossAttentionCache]
    kv_caches: Sequence[KVCache]
    attention_mask: Bool[Tensor, "b t"]

    def select(self, rows: Int[Tensor, " r"]) -> DecoderState:
        cross_caches, kv_caches = [c.select(rows) for c in self.cross_caches], [c.select(rows) for c in self.kv_caches]
        return DecoderState(cross_caches, kv_caches, self.attention_mask[rows])


class TextHead(nn.Module):
    """A transformer decoder (Vaswani et al. 2017) with tied embeddings, over the tokens of a `DecoderTokenizer`.

    Its control tokens in the prompt say what to write. With a target, `forward` returns logits for each next token
    (teacher forcing); else it generates. dim: width of the decoder and of the context. max_length: of prompt and text.
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
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)  # it is the output layer, too

    def forward(
        self,
        context: FusedContext,
        *,
        prompt: Int[Tensor, "b p"],
        target: Int[Tensor, "b t"] | None = None,
        generation: GenerationConfig | None = None,
    ) -> Float[Tensor, "b t v"] | GenerationOutput:
        """Logits of the target's tokens, or generated texts without a target. prompt, target: as `DecoderTokenizer`
        encodes them. Raises HeadError where they are too long, and as `init_state`."""
        state = self.init_state(context.tokens, prompt)
        if target is None:
            return self.generate(state, prompt, generation or GenerationConfig())
        lengths = (prompt >= 0).sum(1) + (target >= 0).sum(1) - 1  # the last token is no input
        if (lengths > self.max_length).any():
            raise HeadError(
                f"text: prompt and target must have at most {self.max_length} tokens before the end: "
                f"got {lengths.tolist()}"
            )
        ids = torch.cat([prompt, target[:, :-1]], dim=1)
        return self._step(state, ids)[0][:, prompt.shape[1] - 1 :]

    def loss(self, logits: Float[Tensor, "b t v"], target: Int[Tensor, "b t"], *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, the mean over all tokens."""
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1, label_smoothing=smoothing)

    def ctc_loss(self, context: FusedContext, target: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Connectionist temporal classification (Graves et al. 2006) of the audio tokens; end-of-sequence is blank.

        Beside the decoder's loss it teaches monotonic alignment (Kim et al. 2017). Mean over samples of the loss per
        target token. Raises HeadError for samples without audio.
        """
        audio = context.require(Modality.AUDIO, "text")
        logits = F.linear(self.ctc_proj(context.tokens.values[:, audio]), self.embedding.weight)  # [B, N, V]
        input_lengths = context.tokens.mask[:, audio].sum(1)
        target_lengths = (target >= 0).sum(1) - 1  # without the end
        log_probs = logits.log_softmax(dim=2).transpose(0, 1)
        lengths = (input_lengths, target_lengths)
        return F.ctc_loss(log_probs, target.clamp(min=0), *lengths, blank=self.eos_id, zero_infinity=True)

    def init_state(self, context: Tokens, prompt: Int[Tensor, "b p"]) -> DecoderState:
        """The state before the prompt. Raises HeadError for a prompt that is empty, too long, or of another batch."""
        if prompt.ndim != 2 or prompt.shape[1] == 0 or not (prompt[:, -1:] >= 0).all():
            raise HeadError(f"text: every sample needs a prompt that ends in a token: got {list(prompt.shape)}")
        size, longest = len(context), self.max_length - 1
        if len(prompt) != size or prompt.shape[1] > longest:
            raise HeadError(f"text: expected {size} prompts of at most {longest} tokens: got {list(prompt.shape)}")
        cross_caches = [cast(DecoderLayer, layer).cross_attn.cache_context(context) for layer in self.layers]
        kv_caches = [KVCache.empty(cache) for cache in cross_caches]
        return DecoderState(cross_caches, kv_caches, (prompt >= 0)[:, :0])

    @torch.no_grad()
    def generate(
        self, state: DecoderState, prompt: Int[Tensor, "b p"], generation: GenerationConfig
    ) -> GenerationOutput:
        """Continues the prompt, at most up to `max_length`."""
        if generation.num_beams > 1:
            return self._beam_search(state, prompt, generation)
        ids, scores = [], torch.zeros(len(prompt), device=prompt.device)
        finished = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
        for token, log_prob in self._generate_tokens(state, prompt, generation):
            ids.append(torch.where(finished, self.eos_id, token))
            scores = scores + torch.where(finished, 0.0, log_prob)
            finished = finished | (token == self.eos_id)
            if finished.all():
                break
        return GenerationOutput(torch.stack(ids, dim=1), finished, scores)

    @torch.no_grad()
    def stream(
        self,
        context: FusedContext,
        tokenizer: DecoderTokenizer,
        prompt: Int[Tensor, "b p"],
        generation: GenerationConfig,
    ) -> Iterator[str]:
        """Yields the pieces of one text while it is generated, in whole characters; joined they are the text.

        Raises HeadError for several prompts, and for beam search, which knows the text only at its end.
        """
        if len(prompt) != 1 or generation.num_beams > 1:
            raise HeadError(f"text: streaming takes one prompt and no beams: got {len(prompt)}, {generation}")
        ids: list[int] = []
        streamed = ""
        for token, _ in self._generate_tokens(self.init_state(context.tokens, prompt), prompt, generation):
            ids.append(int(token))
            if ids[-1] == self.eos_id:
                break
            text = tokenizer.decode(ids).lstrip()
            if not text.endswith("\ufffd") and text != streamed:  # the last character is complete
                yield text[len(streamed) :]
                streamed = text

    def _generate_tokens(
        self, state: DecoderState, prompt: Int[Tensor, "b p"], generation: GenerationConfig
    ) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, " b"]]]:
        """Yields token ids and their log-probabilities, step by step, by greedy search or sampling."""
        generator = torch.Generator(device=prompt.device).manual_seed(generation.seed)
        first, ids = state, prompt
        for _ in range(min(generation.max_new_tokens, self.max_length - prompt.shape[1])):
            if generation.use_cache:
                logits, state = self._step(state, ids if state is first else ids[:, -1:])
            else:
                logits, _ = self._step(first, ids)
            log_probs = logits[:, -1].log_softmax(dim=1)  # [B, V]
            if generation.temperature == 0:
                token = log_probs.argmax(dim=1)
            else:
                token = self._sample_top_p(logits[:, -1], generation, generator)
            yield token, log_probs.gather(1, token[:, None]).squeeze(1)
            ids = torch.cat([ids, token[:, None]], dim=1)

    @staticmethod
    def _sample_top_p(
        logits: Float[Tensor, "b v"], generation: GenerationConfig, generator: torch.Generator
    ) -> Int[Tensor, " b"]:
        probs, order = (logits / generation.temperature).softmax(dim=1).sort(dim=1, descending=True)
        before = probs.cumsum(dim=1) - probs
        nucleus = probs.masked_fill(before >= generation.top_p, 0.0)  # always holds the likeliest token
        return order.gather(1, torch.multinomial(nucleus, 1, generator=generator)).squeeze(1)

    def _beam_search(
        self, state: DecoderState, prompt: Int[Tensor, "b p"], generation: GenerationConfig
    ) -> GenerationOutput:
        """Finished beams are set aside; the others continue until none of them can beat the best finished one."""
        size, k, device = len(prompt), generation.num_beams, prompt.device
        penalty, steps = generation.length_penalty, min(generation.max_new_tokens, self.max_length - prompt.shape[1])
        logits, state = self._step(state, prompt)
        log_probs = logits[:, -1].log_softmax(dim=1).repeat_interleave(k, dim=0)  # [B * K, V]
        state = state.select(torch.arange(size, device=device).repeat_interleave(k))
        scores = torch.full((size, k), -torch.inf, device=device)  # at first all beams are equal: start with one
        scores[:, 0] = 0.0
        sequences = torch.empty(size * k, 0, dtype=torch.long, device=device)
        best = [(-torch.inf, -torch.inf, sequences[0])] * size  # (penalized score, score, sequence) of finished beams
        for length in range(1, steps + 1):
            total = scores[:, :, None] + log_probs.unflatten(0, (size, k))  # [B, K, V]
            top = total.flatten(1).topk(2 * k, dim=1)  # enough for K of them to continue
            beam, token = top.indices // log_probs.shape[1], top.indices % log_probs.shape[1]
            ends = token == self.eos_id
            for b, rank in ends[:, :k].nonzero().tolist():
                score = float(top.values[b, rank])
                if score / length**penalty > best[b][0]:
                    best[b] = (score / length**penalty, score, sequences[b * k + int(beam[b, rank])])
            top = top.values.masked_fill(ends, -torch.inf).topk(k, dim=1)
            scores = top.values
            rows = (beam.gather(1, top.indices) + torch.arange(size, device=device)[:, None] * k).flatten()
            token = token.gather(1, top.indices).flatten()[:, None]
            sequences = torch.cat([sequences[rows], token], dim=1)
            if length == steps or all(float(scores[b].max()) / steps**penalty <= best[b][0] for b in range(size)):
                break
            logits, state = self._step(state.select(rows), token)
            log_probs = logits[:, -1].log_softmax(dim=1)
        finished = torch.tensor([penalized > -torch.inf for penalized, _, _ in best], device=device)
        for b in (~finished).nonzero().flatten().tolist():
            best[b] = (0.0, float(scores[b, 0]), sequences[b * k])  # cut off
        padded = nn.utils.rnn.pad_sequence([ids for _, _, ids in best], batch_first=True, padding_value=self.eos_id)
        return GenerationOutput(padded, finished, torch.tensor([score for _, score, _ in best], device=device))

    def _step(self, state: DecoderState, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n v"], DecoderState]:
        """Logits after each of the next ids (-1: padding), and the state after them."""
        cached = state.attention_mask.shape[1]
        mask = torch.cat([state.attention_mask, ids >= 0], dim=1)  # [B, T]
        position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, cached:]
        x = self.embedding(ids.clamp(min=0)) + self.position[position_ids]
        index = torch.arange(mask.shape[1], device=ids.device)
        causal = index <= index[cached:, None]  # [n, T]
        itself = index == index[cached:, None]  # padding attends to itself, so that its softmax stays finite
        attn_mask = (causal & mask[:, None] | itself)[:, None]  # [B, 1, n, T]
        kv_caches = []
        for layer, kv_cache, cross_cache in zip(self.layers, state.kv_caches, state.cross_caches, strict=True):
            x, kv_cache = layer(x, kv_cache, attn_mask, cross_cache)
            kv_caches.append(kv_cache)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return logits, replace(state, kv_caches=kv_caches, attention_mask=mask)
