"""Tokens stored in few bits.

Fixed: one 8-bit scale for a whole tensor. Dynamic: a scale per token. Adaptive: similar neighbours are merged first,
then each token gets as few bits as its content allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from omni_lab.batch import Tokens

SCALE_BYTES = 2  # scales are stored in half precision
HEADER_BYTES = 1  # per adaptive token: its bits, and how many tokens were merged into it


def token_scales(values: Float[Tensor, "... d"], bits: Tensor | int) -> Float[Tensor, "... 1"]:
    """The smallest symmetric `bits`-bit scale that holds each token, rounded up to half precision."""
    largest = values.abs().amax(dim=-1, keepdim=True)
    top = 2.0 ** (torch.as_tensor(bits, device=values.device) - 1) - 1
    return (largest / top * (1 + 2**-10)).half().float().clamp(min=2**-24)


def fake_quantize_tokens(values: Float[Tensor, "... d"], bits: int) -> Float[Tensor, "... d"]:
    """Quantizes and dequantizes with a scale per token; straight-through gradients (Bengio et al. 2013)."""
    scales = token_scales(values.detach(), bits)
    rounded = (values.detach() / scales).round() * scales
    return values + (rounded - values.detach())


@dataclass(frozen=True)
class Int8Latents:
    """Tokens stored in 8 bits per value with a scale per token. layout: the other fields of `Tokens`, values empty."""

    codes: Int8[Tensor, "u n d"]
    scales: Float[Tensor, "u n 1"]
    layout: Tokens

    @classmethod
    def from_tokens(cls, tokens: Tokens) -> Int8Latents:
        scales = token_scales(tokens.values.detach(), 8)
        codes = (tokens.values.detach() / scales).round().to(torch.int8)
        return cls(codes, scales.half(), replace(tokens, values=tokens.values.new_zeros(*tokens.values.shape[:2], 0)))

    def tokens(self) -> Tokens:
        """Dequantizes."""
        return self.layout.with_values(self.codes.float() * self.scales.float())

    @property
    def num_bytes(self) -> Int[Tensor, " u"]:
        """[U], of the codes and scales of the real tokens of each entry."""
        return self.layout.mask.sum(1) * (self.codes.shape[2] + SCALE_BYTES)


class LatentTable:
    """The 8-bit latents of many inputs, by index; a call with an index returns the tokens [N, D]."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Tensor, Tensor]] = []
        self._place: dict[int, tuple[int, int, int]] = {}  # chunk, entry, length

    def add(self, indices: Sequence[int], latents: Int8Latents) -> None:
        """indices: of the U entries, in order. Padding must come after the real tokens."""
        lengths = latents.layout.mask.sum(1).tolist()
        self._place |= {index: (len(self._chunks), i, lengths[i]) for i, index in enumerate(indices)}
        self._chunks.append((latents.codes.cpu(), latents.scales.cpu()))

    def __call__(self, index: int) -> Float[Tensor, "n d"]:
        chunk, entry, length = self._place[index]
        codes, scales = self._chunks[chunk]
        return codes[entry, :length].float() * scales[entry, :length].float()


def fixed_quantize(tokens: Tokens, max_abs: float) -> tuple[Tokens, Int[Tensor, " u"]]:
    """The baseline: one 8-bit scale up to +-max_abs. Returns dequantized tokens, and the bytes of each entry."""
    step = max_abs / 127
    values = (tokens.values / step).round().clamp(-127, 127) * step
    return tokens.with_values(values), tokens.mask.sum(1) * tokens.values.shape[2]


def adaptive_quantize(tokens: Tokens, *, min_similarity: float, max_error: float) -> tuple[Tokens, Int[Tensor, " u"]]:
    """Merges tokens and allots bits by content. Returns dequantized tokens, and the bytes of each entry.

    Codes are packed without gaps; each token adds its scale and a header.

    min_similarity: see `merge_similar`.
    max_error: of 2, 3, 4, 6 and 8 bits each token gets the fewest with a relative squared error up to this, or else 8.
    """
    merged = merge_similar(tokens, min_similarity)
    values, bits = merged.values, torch.full(merged.mask.shape, 8, device=merged.values.device)
    power = values.square().sum(-1).clamp(min=1e-12)
    for candidate in (6, 4, 3, 2):
        error = (values - fake_quantize_tokens(values, candidate)).square().sum(-1) / power
        bits = torch.where(error <= max_error, candidate, bits)
    scales = token_scales(values, bits.unsqueeze(-1))
    stored = merged.with_values((values / scales).round() * scales)
    size = (bits * values.shape[2] + 7) // 8 + SCALE_BYTES + HEADER_BYTES
    return stored, (size * merged.mask).sum(1)


def merge_similar(tokens: Tokens, min_similarity: float) -> Tokens:
    """Replaces each run of similar tokens by its mean, times included; a run never crosses padding.

    min_similarity: a token joins the run while its cosine similarity to the token before exceeds this; above 1: never.
    """
    x, mask = tokens.values, tokens.mask
    similar = F.cosine_similarity(x[:, 1:], x[:, :-1], dim=-1) > min_similarity
    joins = F.pad(similar & mask[:, 1:] & mask[:, :-1], (1, 0))  # [U, N]
    run = (~joins).long().cumsum(1) - 1  # [U, N], the run of each token
    fraction = F.one_hot(run, x.shape[1]).to(x.dtype) * mask.unsqueeze(-1)  # [U, N, runs]
    weight = fraction.sum(1)  # [U, runs], tokens per run
    fraction = fraction / weight.clamp(min=1).unsqueeze(1)
    longest = int((torch.arange(1, x.shape[1] + 1, device=x.device) * (weight > 0)).max().clamp(min=1))
    times = None if tokens.times is None else torch.einsum("unr,un->ur", fraction, tokens.times)[:, :longest]
    means = torch.einsum("unr,und->urd", fraction, x)[:, :longest]
    return replace(tokens, values=means, mask=(weight > 0)[:, :longest], times=times)


def pack_bits(codes: Int8[Tensor, " n"], bits: int) -> UInt8[Tensor, " p"]:
    """Packs codes of `bits` bits each without gaps, into ceil(n * bits / 8) bytes."""
    unsigned = codes.to(torch.int16) + 2 ** (bits - 1)
    ones = (unsigned.unsqueeze(1) >> torch.arange(bits - 1, -1, -1)) & 1  # [n, bits]
    stream = F.pad(ones.flatten(), (0, -ones.numel() % 8)).unflatten(0, (-1, 8))
    return (stream << torch.arange(7, -1, -1)).sum(1).to(torch.uint8)


def unpack_bits(packed: UInt8[Tensor, " p"], bits: int, count: int) -> Int8[Tensor, " n"]:
    """Inverse of `pack_bits`: the first `count` codes."""
    stream = (packed.to(torch.int16).unsqueeze(1) >> torch.arange(7, -1, -1)) & 1  # [p, 8]
    ones = stream.flatten()[: count * bits].unflatten(0, (count, bits))
    return ((ones << torch.arange(bits - 1, -1, -1)).sum(1) - 2 ** (bits - 1)).to(torch.int8)
