"""Byte-level BPE (Sennrich et al. 2016, on bytes), trained per data set, and the tokenizer of the text decoder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omni_lab.utils.lookup import lookup

CHINESE = "[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]"  # characters and their punctuation
PAD, CLS = "[PAD]", "[CLS]"
EOS_TOKEN = "<end>"
CONTROL_TOKENS = (EOS_TOKEN, "<en>", "<de>", "<zh>", "<transcript>", "<answer>")  # their ids follow the tokenizer's
LETTERS = " abcdefghijklmnopqrstuvwxyz,'-"  # the alphabet of text to speech


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
    """Trains a tokenizer that puts [CLS] first and has [PAD] at id 0. It covers every script: its alphabet is bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, CLS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    special_tokens = [(CLS, tokenizer.token_to_id(CLS))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{CLS} $A", special_tokens=special_tokens)
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str, *, name: str) -> list[int]:
    """Token ids of `text`. Raises ValueError, naming the sample, for an empty text."""
    if not text.strip():
        raise ValueError(f"{name}: the text has no tokens: got {text!r}")
    return tokenizer.encode(text).ids


def encode_letters(texts: Sequence[str]) -> Int[Tensor, "b t"]:
    """Indices into `LETTERS`, right-padded with -1. Raises TokenizerError for an empty text or another character."""
    for text in texts:
        if {*text.lower()} - {*LETTERS} or not text.strip():
            raise TokenizerError(f"text to speech takes the characters {LETTERS!r}: got {text!r}")
    return _pad([[LETTERS.index(letter) for letter in text.lower()] for text in texts])


def _pad(rows: Sequence[Sequence[int]], *, side: str = "right") -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1, padding_side=side)


class TokenizerError(ValueError):
    """A text, language or task that cannot be encoded; the message says which."""


class DecoderTokenizer:
    """The tokenizer of the text decoder: a trained tokenizer plus `CONTROL_TOKENS` for language, task and end of text.

    Each Chinese character is encoded by itself: the trained tokenizer has pieces for whole sentences, from which no
    other sentence could be composed.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_length: int = 80) -> None:
        """max_length: tokens of a text, and of a prompt and its continuation together."""
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._num_pieces = tokenizer.get_vocab_size()
        self._control_ids = {token.strip("<>"): self._num_pieces + i for i, token in enumerate(CONTROL_TOKENS)}
        self.vocab_size = self._num_pieces + len(CONTROL_TOKENS)
        self.eos_id = self.control_token_id(EOS_TOKEN)
        self._cls_id = cast(int, tokenizer.token_to_id(CLS))

    def control_token_id(self, name: str) -> int:
        """The id of a control token, with or without brackets: "de" or "<de>". Raises TokenizerError if unknown."""
        return lookup(name.strip("<>"), self._control_ids, "language or task", error=TokenizerError)

    def encode_prompts(self, names: Sequence[str], texts: Sequence[str | None] = ()) -> Int[Tensor, "b p"]:
        """One control token per row, followed by the beginning of a text if there is one; left-padded with -1.

        Raises TokenizerError for an empty text, or one that leaves no room for a continuation.
        """
        rows = [[self.control_token_id(name)] for name in names]
        for row, text in zip(rows, texts, strict=bool(texts)):
            if text is None:
                continue
            if not text.strip():
                raise TokenizerError(f"a prompt must hold text, or be None: got {text!r}")
            row += self._encode(text)
        longest = max(map(len, rows))
        if longest >= self.max_length:
            raise TokenizerError(f"a prompt must be shorter than {self.max_length} tokens: got {longest}")
        return _pad(rows, side="left")

    def encode_targets(self, texts: Sequence[str]) -> Int[Tensor, "b t"]:
        """The tokens of each text and its end, right-padded with -1. Raises TokenizerError for a text too long."""
        rows = [[*self._encode(text), self.eos_id] for text in texts]
        limit = self.max_length
        for row, text in zip(rows, texts, strict=True):
            if len(row) >= limit:
                raise TokenizerError(f"a text must be shorter than {limit} tokens: got {len(row)} of {text[:40]!r}")
        return _pad(rows)

    def encode_input(self, text: str) -> list[int]:
        """The same tokens for the text encoder, which wants [CLS] first. Raises TokenizerError for an empty text."""
        if not text.strip():
            raise TokenizerError(f"an input text must not be empty: got {text!r}")
        return [self._cls_id, *self._encode(text)]

    def _encode(self, text: str) -> list[int]:
        pieces = re.findall(rf"{CHINESE}|(?:(?!{CHINESE}).)+", text, flags=re.DOTALL)
        return [i for piece in pieces for i in self.tokenizer.encode(piece, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; control tokens and padding are skipped."""
        text = self.tokenizer.decode([i for i in ids if 0 <= i < self._num_pieces])
        return re.sub(rf"(?<={CHINESE}) +| +(?={CHINESE})", "", text)

    def batch_decode(self, ids: Int[Tensor, "b t"]) -> list[str]:
        """The text of each row, up to its first end token."""
        rows = [row[: row.index(self.eos_id)] if self.eos_id in row else row for row in ids.tolist()]
        return [self.decode(row).strip() for row in rows]
