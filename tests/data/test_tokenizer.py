"""The codec: texts as ids and back, and marks for what to write."""

from __future__ import annotations

import itertools

import pytest
import torch

from omni_lab.data.tokenizer import (
    CLS,
    LETTERS,
    DecoderTokenizer,
    TokenizerError,
    encode_letters,
    encode_text,
    train_tokenizer,
)

TEXTS = ["a green frog", "zwei Frösche", "一只青蛙和一头大象", "一只青蛙", "ein Löwe"]


@pytest.fixture(scope="module")
def codec() -> DecoderTokenizer:
    return DecoderTokenizer(train_tokenizer(TEXTS, vocab_size=400), max_length=40)


def test_texts_come_back(codec: DecoderTokenizer) -> None:
    texts = [*TEXTS, "我看见一只 frog 和 lion。", "an unseen sentence"]
    ids = codec.encode_targets(texts)
    assert codec.batch_decode(ids) == [
        *(t.lower() for t in TEXTS),
        "我看见一只frog和lion。",
        "an unseen sentence",
    ], "in lower case, and without spaces around Chinese characters"
    assert (ids == codec.eos_id).sum(1).eq(1).all() and ids.max() < codec.vocab_size


def test_each_chinese_character_is_written_by_itself(codec: DecoderTokenizer) -> None:
    whole = codec.tokenizer.encode("一只青蛙", add_special_tokens=False).ids
    assert len(whole) == 1, "the tokenizer has one piece for it all"
    characters = [codec.encode_targets([c])[0, :-1].tolist() for c in "一只青蛙"]
    assert codec.encode_targets(["一只青蛙"])[0, :-1].tolist() == [*itertools.chain(*characters)]
    assert codec.batch_decode(codec.encode_targets(["只蛙一"])) == ["只蛙一"], "any other order can be written too"


def test_prompts_begin_with_a_mark(codec: DecoderTokenizer) -> None:
    prompts = codec.encode_prompts(["en", "<zh>"], ["a", "a green frog"])
    assert (
        prompts[0, 0] == -1
        and prompts[0, -2] == codec.control_token_id("en")
        and prompts[1, 0] == codec.control_token_id("zh")
    )
    assert torch.equal(
        codec.encode_prompts(["de", "transcript"]),
        torch.tensor([[codec.control_token_id("de")], [codec.control_token_id("transcript")]]),
    )
    assert len({codec.control_token_id(m) for m in ("en", "de", "zh", "transcript", "answer", "end")}) == 6


def test_some_prompts_are_a_mark_alone(codec: DecoderTokenizer) -> None:
    prompts = codec.encode_prompts(["en", "zh", "de"], ["a green", None, "zwei"])
    assert prompts[1].tolist() == [-1] * (prompts.shape[1] - 1) + [codec.control_token_id("zh")]
    assert torch.equal(prompts[:1], codec.encode_prompts(["en"], ["a green"])), "the longest, as it would be alone"
    assert torch.equal(codec.encode_prompts(["en", "zh"], [None, None]), codec.encode_prompts(["en", "zh"]))
    with pytest.raises(ValueError, match="zip"):
        codec.encode_prompts(["en", "zh"], [None])


@pytest.mark.parametrize("text", [*TEXTS, "我看见一只 frog 和 lion。"])
def test_what_is_read_is_what_is_written_after_a_mark_of_its_own(codec: DecoderTokenizer, text: str) -> None:
    ids = codec.encode_input(text)
    assert ids[0] == codec.tokenizer.token_to_id(CLS)
    assert ids[1:] == codec.encode_targets([text])[0, :-1].tolist()
    if text.isascii():
        assert ids == encode_text(codec.tokenizer, text, name="")


def test_texts_to_be_spoken_are_spelt(codec: DecoderTokenizer) -> None:
    ids = encode_letters(["a Bee", "o'clock, so-so"])
    assert ids[0].tolist() == [1, 0, 2, 5, 5] + [-1] * 9
    assert "".join(LETTERS[i] for i in ids[1].tolist()) == "o'clock, so-so"
    assert len(set(LETTERS)) == len(LETTERS) == 30


def test_what_cannot_be_spelt_is_named() -> None:
    for text in ("drei Frösche", "一只青蛙", "3 frogs", "", "  "):
        with pytest.raises(TokenizerError, match=f"is spelt with .*: got '{text}'"):
            encode_letters(["a frog", text])


def test_what_cannot_be_written_is_named(codec: DecoderTokenizer) -> None:
    with pytest.raises(TokenizerError, match="nothing is written in or as 'fr'; the nearest of"):
        codec.control_token_id("fr")
    with pytest.raises(TokenizerError, match="nothing to go on from: the prompt is '  '"):
        codec.encode_prompts(["answer"], ["  "])
    with pytest.raises(TokenizerError, match="nothing to go on from: the prompt is ''"):
        codec.encode_prompts(["en", "de"], [None, ""])
    with pytest.raises(TokenizerError, match="there is nothing to read: the text is ' '"):
        codec.encode_input(" ")
    with pytest.raises(TokenizerError, match="a prompt must be shorter than 40 tokens: got"):
        codec.encode_prompts(["answer"], ["frog " * 50])
    with pytest.raises(TokenizerError, match="a text must be shorter than 40 tokens: got .* of 'key key"):
        codec.encode_targets(["key " * 50])
