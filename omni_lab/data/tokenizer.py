"""The tokenizer: byte-level BPE (Sennrich et al. 2016, on bytes), trained on the set at hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFKC, Lowercase
from tokenizers.normalizers import Sequence as InTurn
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from omni_lab.utils.lookup import closest_match

CHINESE = "[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]"  # characters and their punctuation
PAD, CLS = "[PAD]", "[CLS]"
EOS_TOKEN = "<end>"
CONTROL_TOKENS = (EOS_TOKEN, "<en>", "<de>", "<zh>", "<transcript>", "<answer>")  # ids after those of the tokenizer
LETTERS = " abcdefghijklmnopqrstuvwxyz,'-"  # what a text to be spoken is spelt with


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
    """Every text starts with [CLS]; [PAD] has id 0. Any script is representable, since the alphabet is bytes."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = InTurn([NFKC(), Lowercase()])
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, CLS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A", special_tokens=[(CLS, tokenizer.token_to_id(CLS))]
    )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def encode_text(tokenizer: Tokenizer, text: str, *, name: str) -> list[int]:
    """Token ids of `text`. Raises ValueError, naming the sample, where the text holds nothing to read."""
    if not text.strip():
        raise ValueError(f"{name}: the text has no tokens: got {text!r}")
    return tokenizer.encode(text).ids


def encode_letters(texts: Sequence[str]) -> Int[Tensor, "b t"]:
    """The letters of each text as their places in `LETTERS`, filled up behind with -1. Raises CodecError for an empty
    text, or one with other characters than those."""
    rows = []
    for text in texts:
        strange = sorted({*text.lower()} - {*LETTERS})
        if strange or not text.strip():
            raise TokenizerError(f"a text to be spoken is spelt with {LETTERS!r}: got {text!r}")
        rows.append(torch.tensor([LETTERS.index(letter) for letter in text.lower()]))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


class TokenizerError(ValueError):
    """A text that cannot be asked for or written: the message says which, and what can."""


class DecoderTokenizer:
    """Texts as a decoder reads and writes them: the tokenizer's ids, and after them those of `MARKS`, which say in what
    language or as what to write, and where a text ends. Each Chinese character is encoded by itself: the tokenizer has
    pieces for whole sentences, with which no other sentence could be written. size: how many ids there are.
    max_length: of a text."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int = 80) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._words = tokenizer.get_vocab_size()
        self.vocab_size = self._words + len(CONTROL_TOKENS)
        self.eos_id = self.control_token_id(EOS_TOKEN)
        self._first = cast(int, tokenizer.token_to_id(CLS))

    def control_token_id(self, name: str) -> int:
        """The id of a mark, by its name with or without brackets: "de" asks for German. Raises CodecError for a
        language or task that is not known."""
        wanted = f"<{name.strip('<>')}>"
        if wanted not in CONTROL_TOKENS:
            known = [m.strip("<>") for m in CONTROL_TOKENS]
            close = closest_match(name, known)
            raise TokenizerError(f"nothing is written in or as {name!r}; the nearest of {known} is {close!r}")
        return self._words + CONTROL_TOKENS.index(wanted)

    def encode_prompts(self, names: Sequence[str], texts: Sequence[str | None] = ()) -> Int[Tensor, "b p"]:
        """The marks of those names, each followed by the beginning of a text where one is given, filled up in front
        with -1. Raises CodecError for an empty text, or one that leaves no room to go on."""
        rows = [[self.control_token_id(name)] for name in names]
        for row, text in zip(rows, texts, strict=bool(texts)):
            if text is None:
                continue
            if not text.strip():
                raise TokenizerError(f"there is nothing to go on from: the prompt is {text!r}")
            row += self._ids(text)
        longest = max(map(len, rows))
        if longest >= self.max_length:
            raise TokenizerError(f"a prompt must be shorter than {self.max_length} tokens: got {longest}")
        return torch.tensor([[-1] * (longest - len(row)) + row for row in rows])

    def encode_targets(self, texts: Sequence[str]) -> Int[Tensor, "b t"]:
        """The tokens of each text and its end, filled up behind with -1. Raises CodecError for one that is too long."""
        rows = [[*self._ids(text), self.eos_id] for text in texts]
        for row, text in zip(rows, texts, strict=True):
            if len(row) >= self.max_length:
                raise TokenizerError(
                    f"a text must be shorter than {self.max_length} tokens: got {len(row)} of {text[:40]!r}..."
                )
        longest = max(map(len, rows))
        return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])

    def encode_input(self, text: str) -> list[int]:
        """The same tokens for an encoder, as `encode_text` gives them: they begin with [CLS]. Raises CodecError for a
        text without any."""
        if not text.strip():
            raise TokenizerError(f"there is nothing to read: the text is {text!r}")
        return [self._first, *self._ids(text)]

    def _ids(self, text: str) -> list[int]:
        pieces = re.findall(rf"{CHINESE}|(?:(?!{CHINESE}).)+", text, flags=re.DOTALL)
        return [i for piece in pieces for i in self.tokenizer.encode(piece, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """What ids say; marks say nothing."""
        text = self.tokenizer.decode([i for i in ids if 0 <= i < self._words])
        return re.sub(rf"(?<={CHINESE}) +| +(?={CHINESE})", "", text)

    def batch_decode(self, ids: Int[Tensor, "b t"]) -> list[str]:
        """What each row says, up to its first end."""
        rows = [row[: row.index(self.eos_id)] if self.eos_id in row else row for row in ids.tolist()]
        return [self.decode(row).strip() for row in rows]
