"""The codec: texts as ids and back, and marks for what to write."""

from __future__ import annotations

import itertools

import pytest
import torch

from omni_lab.data.tokenizer import CLS, LETTERS, Codec, CodecError, encode_text, spelt, train_tokenizer

TEXTS = ["a green frog", "zwei Frösche", "一只青蛙和一头大象", "一只青蛙", "ein Löwe"]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(train_tokenizer(TEXTS, vocab_size=400), max_length=40)


def test_texts_come_back(codec: Codec) -> None:
    texts = [*TEXTS, "我看见一只 frog 和 lion。", "an unseen sentence"]
    ids = codec.targets(texts)
    assert codec.texts(ids) == [
        *(t.lower() for t in TEXTS),
        "我看见一只frog和lion。",
        "an unseen sentence",
    ], "in lower case, and without spaces around Chinese characters"
    assert (ids == codec.end).sum(1).eq(1).all() and ids.max() < codec.size


def test_each_chinese_character_is_written_by_itself(codec: Codec) -> None:
    whole = codec.tokenizer.encode("一只青蛙", add_special_tokens=False).ids
    assert len(whole) == 1, "the tokenizer has one piece for it all"
    characters = [codec.targets([c])[0, :-1].tolist() for c in "一只青蛙"]
    assert codec.targets(["一只青蛙"])[0, :-1].tolist() == [*itertools.chain(*characters)]
    assert codec.texts(codec.targets(["只蛙一"])) == ["只蛙一"], "any other order can be written too"


def test_prompts_begin_with_a_mark(codec: Codec) -> None:
    prompts = codec.prompts(["en", "<zh>"], ["a", "a green frog"])
    assert prompts[0, 0] == -1 and prompts[0, -2] == codec.mark("en") and prompts[1, 0] == codec.mark("zh")
    assert torch.equal(
        codec.prompts(["de", "transcript"]), torch.tensor([[codec.mark("de")], [codec.mark("transcript")]])
    )
    assert len({codec.mark(m) for m in ("en", "de", "zh", "transcript", "answer", "end")}) == 6


def test_some_prompts_are_a_mark_alone(codec: Codec) -> None:
    prompts = codec.prompts(["en", "zh", "de"], ["a green", None, "zwei"])
    assert prompts[1].tolist() == [-1] * (prompts.shape[1] - 1) + [codec.mark("zh")]
    assert torch.equal(prompts[:1], codec.prompts(["en"], ["a green"])), "the longest, as it would be alone"
    assert torch.equal(codec.prompts(["en", "zh"], [None, None]), codec.prompts(["en", "zh"]))
    with pytest.raises(ValueError, match="zip"):
        codec.prompts(["en", "zh"], [None])


@pytest.mark.parametrize("text", [*TEXTS, "我看见一只 frog 和 lion。"])
def test_what_is_read_is_what_is_written_after_a_mark_of_its_own(codec: Codec, text: str) -> None:
    ids = codec.heard(text)
    assert ids[0] == codec.tokenizer.token_to_id(CLS)
    assert ids[1:] == codec.targets([text])[0, :-1].tolist()
    if text.isascii():
        assert ids == encode_text(codec.tokenizer, text, name="")


def test_texts_to_be_spoken_are_spelt(codec: Codec) -> None:
    ids = spelt(["a Bee", "o'clock, so-so"])
    assert ids[0].tolist() == [1, 0, 2, 5, 5] + [-1] * 9
    assert "".join(LETTERS[i] for i in ids[1].tolist()) == "o'clock, so-so"
    assert len(set(LETTERS)) == len(LETTERS) == 30


def test_what_cannot_be_spelt_is_named() -> None:
    for text in ("drei Frösche", "一只青蛙", "3 frogs", "", "  "):
        with pytest.raises(CodecError, match=f"is spelt with .*: got '{text}'"):
            spelt(["a frog", text])


def test_what_cannot_be_written_is_named(codec: Codec) -> None:
    with pytest.raises(CodecError, match="nothing is written in or as 'fr'; the nearest of"):
        codec.mark("fr")
    with pytest.raises(CodecError, match="nothing to go on from: the prompt is '  '"):
        codec.prompts(["answer"], ["  "])
    with pytest.raises(CodecError, match="nothing to go on from: the prompt is ''"):
        codec.prompts(["en", "de"], [None, ""])
    with pytest.raises(CodecError, match="there is nothing to read: the text is ' '"):
        codec.heard(" ")
    with pytest.raises(CodecError, match="a prompt must be shorter than 40 tokens: got"):
        codec.prompts(["answer"], ["frog " * 50])
    with pytest.raises(CodecError, match="a text must be shorter than 40 tokens: got .* of 'key key"):
        codec.targets(["key " * 50])
