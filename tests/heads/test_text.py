"""The text head: what it generates, and that caches change nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omni_lab.batch import Modality, Tokens
from omni_lab.data.tokenizer import DecoderTokenizer, TokenizerError, train_tokenizer
from omni_lab.heads.context import ContextEncoder, FusedContext, HeadError
from omni_lab.heads.text import GenerationConfig, GenerationOutput, TextHead

TEXT, IMAGE = Modality.TEXT, Modality.IMAGE
TEXTS = ["a green frog", "zwei Frösche", "一只青蛙", "a frog left of a key"]


@pytest.fixture(scope="module")
def codec() -> DecoderTokenizer:
    return DecoderTokenizer(train_tokenizer(TEXTS, vocab_size=300), max_length=24)


@pytest.fixture
def head(codec: DecoderTokenizer) -> TextHead:
    torch.manual_seed(0)
    return TextHead(vocab_size=codec.vocab_size, eos_id=codec.eos_id, dim=16, depth=2, max_length=24).eval()


@pytest.fixture
def streams() -> dict[Modality, Tokens]:
    """Four samples; the last has no image."""
    torch.manual_seed(1)
    images = Tokens(torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool), entry_index=torch.tensor([0, 1, 2, -1]))
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] * 4, [True] * 3 + [False]])
    return {TEXT: Tokens(torch.randn(4, 4, 16), mask), IMAGE: images}


def context_of(streams: dict[Modality, Tokens]) -> FusedContext:
    torch.manual_seed(2)
    with torch.no_grad():
        return ContextEncoder(modalities=(TEXT, IMAGE), dim=16, out_dim=16, depth=1).eval()(streams)


@pytest.fixture
def context(streams: dict[Modality, Tokens]) -> FusedContext:
    return context_of(streams)


def select(context: FusedContext, sample: int) -> FusedContext:
    return replace(context, tokens=context.tokens.select(torch.tensor([sample])).expand_entries())


def test_the_same_with_and_without_a_cache(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    prompt = codec.encode_prompts(["<en>"] * 4, ["a", "a green", "zwei", "a frog left"])
    assert (prompt[:, 0] == -1).any(), "prompts of several lengths"
    for temperature in (0.0, 1.5):
        cached, plain = (
            head(
                context,
                prompt=prompt,
                generation=GenerationConfig(temperature=temperature, max_new_tokens=12, use_cache=cached),
            )
            for cached in (True, False)
        )
        assert torch.equal(cached.sequences, plain.sequences)
        assert torch.allclose(cached.scores, plain.scores, atol=1e-4)


def test_a_sample_generates_as_if_alone(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    prompt = codec.encode_prompts(["<en>"] * 4, ["a", "a green", "zwei", "a frog left"])
    decoding = GenerationConfig(max_new_tokens=8)
    together = head(context, prompt=prompt, generation=decoding)
    for i in range(4):
        own = prompt[i : i + 1, prompt[i] >= 0]
        alone = head(select(context, i), prompt=own, generation=decoding)
        assert codec.batch_decode(alone.sequences) == codec.batch_decode(together.sequences[i : i + 1])
        assert torch.allclose(alone.scores, together.scores[i], atol=1e-4)


def test_teacher_forcing_scores_generated_texts(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    prompt = codec.encode_prompts(["en", "de", "zh", "transcript"])
    written = head(context, prompt=prompt, generation=GenerationConfig(max_new_tokens=6))
    logits = head(context, prompt=prompt, target=written.sequences)
    likely = logits.log_softmax(2).gather(2, written.sequences[..., None]).squeeze(2)
    upto = (written.sequences == codec.eos_id).cumsum(1).cumsum(1) <= 1  # the first END counts
    assert torch.allclose((likely * upto).sum(1), written.scores, atol=1e-4)
    assert torch.equal(logits[:, 0].argmax(1), written.sequences[:, 0])


def test_the_future_changes_nothing(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    prompt = codec.encode_prompts(["en"] * 4)
    target = codec.encode_targets(TEXTS)
    changed = target.clone()
    changed[:, 3:] = 7
    before, after = (head(context, prompt=prompt, target=t) for t in (target, changed))
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert not torch.allclose(before[0, 4:], after[0, 4:], atol=1e-3)


def test_the_context_matters_and_padding_does_not(
    head: TextHead, streams: dict[Modality, Tokens], codec: DecoderTokenizer
) -> None:
    context = context_of(streams)
    prompt = codec.encode_prompts(["en"] * 4)
    target = torch.zeros(4, 3, dtype=torch.long)
    said = head(context, prompt=prompt, target=target)
    blind = head(context_of({TEXT: streams[TEXT]}), prompt=prompt, target=target)
    assert not torch.allclose(said[:3], blind[:3], atol=1e-3)
    assert torch.allclose(said[3], blind[3], atol=1e-5), "it has no image anyway"
    louder = streams[TEXT].values.masked_fill(~streams[TEXT].mask[..., None], 1e4)
    other = context_of(streams | {TEXT: streams[TEXT].with_values(louder)})
    assert torch.allclose(said, head(other, prompt=prompt, target=target), atol=1e-5)


@torch.no_grad()
def exhaustive(
    head: TextHead, context: FusedContext, prompt: Tensor, length: int, power: float
) -> tuple[float, list[int]]:
    """The best of all texts of up to `length` tokens, tried one by one (one sample)."""
    end, size = head.eos_id, head.embedding.num_embeddings
    best: tuple[float, list[int]] = (-float("inf"), [])
    for count in range(length):
        for start in itertools.product(range(size), repeat=count):
            if end in start:
                continue
            ids = torch.tensor([[*start, end]])
            likely = head(context, prompt=prompt, target=ids).log_softmax(2).gather(2, ids[..., None]).sum()
            best = max(best, (float(likely) / (count + 1) ** power, list(start)))
    return best


def test_beam_search_finds_what_exhaustive_search_finds() -> None:
    torch.manual_seed(2)
    head = TextHead(vocab_size=6, eos_id=4, dim=8, depth=1, num_heads=2, max_length=8).eval()
    for i in range(4):
        torch.manual_seed(i)
        context = FusedContext(
            Tokens(3 * torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)), {TEXT: slice(0, 3)}
        )
        prompt = torch.tensor([[5]])
        score, ids = exhaustive(head, context, prompt, 3, power=0.6)
        written = head(context, prompt=prompt, generation=GenerationConfig(num_beams=100, max_new_tokens=3))
        assert written.sequences[0].tolist() == ids and written.finished.all()
        assert float(written.scores) / (len(ids) + 1) ** 0.6 == pytest.approx(score, abs=1e-4)


def test_beam_search_alone_or_in_a_batch(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    prompt = codec.encode_prompts(["en", "de", "zh", "en"])
    together = head(context, prompt=prompt, generation=GenerationConfig(num_beams=3, max_new_tokens=7))
    for i in range(4):
        alone = head(
            select(context, i), prompt=prompt[i : i + 1], generation=GenerationConfig(num_beams=3, max_new_tokens=7)
        )
        assert codec.batch_decode(alone.sequences) == codec.batch_decode(together.sequences[i : i + 1])
        assert torch.allclose(alone.scores, together.scores[i], atol=1e-4)


def test_unfinished_texts_are_cut_and_flagged(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    with torch.no_grad():
        head.embedding.weight[codec.eos_id] = 0.0
        head.norm.bias.copy_(10 * head.embedding.weight[5])  # it always generates 5
    prompt = codec.encode_prompts(["en"] * 4)
    for decoding in (GenerationConfig(max_new_tokens=10), GenerationConfig(num_beams=2, max_new_tokens=10)):
        written = head(context, prompt=prompt, generation=decoding)
        assert not written.finished.any() and written.sequences.shape == (4, 10)
    full = head(context, prompt=prompt, generation=GenerationConfig(max_new_tokens=1000))
    assert full.sequences.shape == (4, 23), "one place is the prompt's"


def test_sampling_follows_seed_and_top_p(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    prompt = codec.encode_prompts(["en"] * 4)

    def sampled(**changes: float) -> Tensor:
        written: GenerationOutput = head(
            context, prompt=prompt, generation=GenerationConfig(max_new_tokens=6, **changes)
        )  # type: ignore[arg-type]
        return written.sequences

    assert torch.equal(sampled(temperature=2.0, seed=1), sampled(temperature=2.0, seed=1))
    assert not torch.equal(sampled(temperature=2.0, seed=1), sampled(temperature=2.0, seed=2))
    assert torch.equal(sampled(temperature=2.0, top_p=1e-6), sampled()), "a nucleus of one token is greedy"


def test_tokens_are_sampled_with_their_probabilities(
    head: TextHead, context: FusedContext, codec: DecoderTokenizer
) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]]).log_softmax(1).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(0)
    found = (
        head._sample_top_p(logits, GenerationConfig(temperature=1.0, top_p=1.0), generator).bincount(minlength=4)
        / 20_000
    )
    assert torch.allclose(found, logits[0].exp(), atol=0.015)
    few = head._sample_top_p(logits, GenerationConfig(temperature=1.0, top_p=0.7), generator)
    assert set(few.tolist()) == {0, 1}, "the two that together have 0.7"


def test_a_stream_is_the_text_in_whole_characters(
    head: TextHead, context: FusedContext, codec: DecoderTokenizer
) -> None:
    one, prompt = select(context, 0), codec.encode_prompts(["zh"])
    for seed in range(5):
        decoding = GenerationConfig(temperature=3.0, top_p=1.0, max_new_tokens=20, seed=seed)
        pieces = list(head.stream(one, codec, prompt, decoding))
        whole, said = (
            codec.batch_decode(head(one, prompt=prompt, generation=decoding).sequences)[0],
            "".join(pieces).strip(),
        )
        assert len(pieces) > 1 and whole.startswith(said)
        assert set(whole[len(said) :]) <= {"\ufffd"}, "what is missing is half a character"
    with pytest.raises(HeadError, match="streaming takes one prompt and no beams"):
        list(head.stream(context, codec, codec.encode_prompts(["en"] * 4), GenerationConfig()))


def test_it_overfits_four_texts(codec: DecoderTokenizer, context: FusedContext) -> None:
    torch.manual_seed(0)
    head = TextHead(vocab_size=codec.vocab_size, eos_id=codec.eos_id, dim=16, depth=1, dropout=0.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    prompt, target = codec.encode_prompts(["en", "de", "zh", "en"]), codec.encode_targets(TEXTS)
    for _ in range(60):
        loss = head.loss(head(context, prompt=prompt, target=target), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    for beams in (1, 3):
        written = head(context, prompt=prompt, generation=GenerationConfig(num_beams=beams))
        assert codec.batch_decode(written.sequences) == [text.lower() for text in TEXTS]
        assert written.finished.all()
    assert (
        "".join(head.stream(select(context, 2), codec, codec.encode_prompts(["zh"]), GenerationConfig())) == "一只青蛙"
    )


def audio_context(target: Tensor, end: int, *, louder: bool = False) -> FusedContext:
    """A context of two text tokens, then of audio: each token of a target twice, and a pause behind it, in vectors
    that depend on the token alone. louder: what stands where the mask is False."""
    vectors = torch.randn(512, 16, generator=torch.Generator().manual_seed(4))
    rows = [torch.stack([row, row, torch.full_like(row, end)], dim=1).flatten() for row in target]
    ids = torch.stack(rows)  # [B, 3 * T]
    mask = ids.ge(0) & (target.clamp(min=0) != end).repeat_interleave(3, dim=1)
    values = vectors[ids.clamp(min=0)].masked_fill(~mask[..., None], 100.0 * louder)
    text = torch.ones(len(target), 2, 16)
    tokens = Tokens(torch.cat([text, values], dim=1), torch.cat([torch.ones(len(target), 2).bool(), mask], dim=1))
    return FusedContext(tokens, {TEXT: slice(0, 2), Modality.AUDIO: slice(2, 2 + ids.shape[1])})


def test_ctc_learns_tokens_in_order(head: TextHead, codec: DecoderTokenizer) -> None:
    target = codec.encode_targets(TEXTS)
    sounds = audio_context(target, codec.eos_id)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-2)
    losses = []
    for _ in range(100):
        losses.append(head.ctc_loss(sounds, target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]
    said = target[:1, : int((target[0] >= 0).sum())]
    backwards = torch.cat([said[:, :-1].flip(1), said[:, -1:]], dim=1)
    with torch.no_grad():
        right, wrong = (head.ctc_loss(audio_context(said, codec.eos_id), words) for words in (said, backwards))
    assert said.shape[1] > 3 and wrong > 10 * right, "the same tokens, but not in this order"


def test_ctc_ignores_padding(head: TextHead, codec: DecoderTokenizer) -> None:
    target = codec.encode_targets(TEXTS)
    assert (target < 0).any(), "texts of several lengths"
    silent, loud = (audio_context(target, codec.eos_id, louder=louder) for louder in (False, True))
    assert torch.equal(head.ctc_loss(silent, target), head.ctc_loss(loud, target))
    own = [head.ctc_loss(select(loud, i), target[i : i + 1]) for i in range(4)]
    assert torch.allclose(torch.stack(own).mean(), head.ctc_loss(loud, target), rtol=1e-4)


def test_ctc_needs_audio(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    target = codec.encode_targets(TEXTS)
    sounds = audio_context(target, codec.eos_id)
    deaf = sounds.tokens.mask.clone()
    deaf[2, sounds.modality_slices[Modality.AUDIO]] = False
    for without in (context, replace(sounds, tokens=replace(sounds.tokens, mask=deaf))):
        with pytest.raises(HeadError, match="text: every sample needs audio: samples"):
            head.ctc_loss(without, target)


def test_invalid_requests_are_errors(head: TextHead, context: FusedContext, codec: DecoderTokenizer) -> None:
    marks, long = codec.encode_prompts(["en"] * 4), torch.ones(4, 25, dtype=torch.long)
    long[1:, -1] = -1
    assert head(context, prompt=marks, target=long[:, :24]).shape[1] == 24, "it just fits"
    for call, said in (
        (lambda: codec.control_token_id("fr"), "unknown language or task 'fr'"),
        (lambda: codec.encode_prompts(["answer"], ["  "]), "a prompt must hold text, or be None: got '  '"),
        (lambda: codec.encode_prompts(["answer"], ["frog " * 30]), "must be shorter than 24 tokens"),
        (lambda: codec.encode_targets(["key " * 40]), "must be shorter than 24 tokens: got"),
        (lambda: head(context, prompt=torch.empty(4, 0, dtype=torch.long)), "needs a prompt"),
        (lambda: head(context, prompt=codec.encode_prompts(["en"])), "expected 4 prompts of at most 23 tokens"),
        (lambda: head(context, prompt=marks, target=long), r"at most 24 tokens before the end: got \[25, 24, 24, 24\]"),
        (lambda: GenerationConfig(num_beams=0), "num_beams and max_new_tokens must be at least 1"),
        (lambda: GenerationConfig(num_beams=2, temperature=1.0), "beam search takes no temperature"),
    ):
        with pytest.raises((HeadError, TokenizerError), match=said):
            call()
