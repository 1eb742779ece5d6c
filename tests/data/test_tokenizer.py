"""Texts to ids and back, and control tokens."""

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
def tokenizer() -> DecoderTokenizer:
    return DecoderTokenizer(train_tokenizer(TEXTS, vocab_size=400), max_length=40)


def test_texts_come_back(tokenizer: DecoderTokenizer) -> None:
    texts = [*TEXTS, "我看见一只 frog 和 lion。", "an unseen sentence"]
    ids = tokenizer.encode_targets(texts)
    assert tokenizer.batch_decode(ids) == [
        *(t.lower() for t in TEXTS),
        "我看见一只frog和lion。",
        "an unseen sentence",
    ], "in lower case, and without spaces around Chinese characters"
    assert (ids == tokenizer.eos_id).sum(1).eq(1).all() and ids.max() < tokenizer.vocab_size


def test_each_chinese_character_is_encoded_by_itself(tokenizer: DecoderTokenizer) -> None:
    whole = tokenizer.tokenizer.encode("一只青蛙", add_special_tokens=False).ids
    assert len(whole) == 1, "the tokenizer has one piece for it all"
    characters = [tokenizer.encode_targets([c])[0, :-1].tolist() for c in "一只青蛙"]
    assert tokenizer.encode_targets(["一只青蛙"])[0, :-1].tolist() == [*itertools.chain(*characters)]
    assert tokenizer.batch_decode(tokenizer.encode_targets(["只蛙一"])) == ["只蛙一"], (
        "any other order can be written too"
    )


def test_prompts_begin_with_a_control_token(tokenizer: DecoderTokenizer) -> None:
    prompts = tokenizer.encode_prompts(["en", "<zh>"], ["a", "a green frog"])
    assert (
        prompts[0, 0] == -1
        and prompts[0, -2] == tokenizer.control_token_id("en")
        and prompts[1, 0] == tokenizer.control_token_id("zh")
    )
    assert torch.equal(
        tokenizer.encode_prompts(["de", "transcript"]),
        torch.tensor([[tokenizer.control_token_id("de")], [tokenizer.control_token_id("transcript")]]),
    )
    assert len({tokenizer.control_token_id(m) for m in ("en", "de", "zh", "transcript", "answer", "end")}) == 6


def test_some_prompts_are_a_control_token_alone(tokenizer: DecoderTokenizer) -> None:
    prompts = tokenizer.encode_prompts(["en", "zh", "de"], ["a green", None, "zwei"])
    assert prompts[1].tolist() == [-1] * (prompts.shape[1] - 1) + [tokenizer.control_token_id("zh")]
    assert torch.equal(prompts[:1], tokenizer.encode_prompts(["en"], ["a green"])), "the longest, as it would be alone"
    assert torch.equal(tokenizer.encode_prompts(["en", "zh"], [None, None]), tokenizer.encode_prompts(["en", "zh"]))
    with pytest.raises(ValueError, match="zip"):
        tokenizer.encode_prompts(["en", "zh"], [None])


@pytest.mark.parametrize("text", [*TEXTS, "我看见一只 frog 和 lion。"])
def test_encoder_and_decoder_get_the_same_tokens(tokenizer: DecoderTokenizer, text: str) -> None:
    ids = tokenizer.encode_input(text)
    assert ids[0] == tokenizer.tokenizer.token_to_id(CLS)
    assert ids[1:] == tokenizer.encode_targets([text])[0, :-1].tolist()
    if text.isascii():
        assert ids == encode_text(tokenizer.tokenizer, text, name="")


def test_letters_are_indices(tokenizer: DecoderTokenizer) -> None:
    ids = encode_letters(["a Bee", "o'clock, so-so"])
    assert ids[0].tolist() == [1, 0, 2, 5, 5] + [-1] * 9
    assert "".join(LETTERS[i] for i in ids[1].tolist()) == "o'clock, so-so"
    assert len(set(LETTERS)) == len(LETTERS) == 30


def test_other_characters_are_named() -> None:
    for text in ("drei Frösche", "一只青蛙", "3 frogs", "", "  "):
        with pytest.raises(TokenizerError, match=f"takes the characters .*: got '{text}'"):
            encode_letters(["a frog", text])


def test_what_cannot_be_encoded_is_named(tokenizer: DecoderTokenizer) -> None:
    with pytest.raises(TokenizerError, match="unknown language or task 'fr'; expected one of"):
        tokenizer.control_token_id("fr")
    with pytest.raises(TokenizerError, match="a prompt must hold text, or be None: got '  '"):
        tokenizer.encode_prompts(["answer"], ["  "])
    with pytest.raises(TokenizerError, match="a prompt must hold text, or be None: got ''"):
        tokenizer.encode_prompts(["en", "de"], [None, ""])
    with pytest.raises(TokenizerError, match="an input text must not be empty: got ' '"):
        tokenizer.encode_input(" ")
    with pytest.raises(TokenizerError, match="a prompt must be shorter than 40 tokens: got"):
        tokenizer.encode_prompts(["answer"], ["frog " * 50])
    with pytest.raises(TokenizerError, match="a text must be shorter than 40 tokens: got .* of 'key key"):
        tokenizer.encode_targets(["key " * 50])
