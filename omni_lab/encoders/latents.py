"""Latents: tokens stored in few bits.

Fixed: one 8-bit grid for a whole tensor, every token kept. Dynamic: a scale of its own for every token. Adaptive: like
neighbours merged first, then for each token as few bits as its content allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from omni_lab.batch import Tokens

SCALE_BYTES = 2  # scales are kept in half precision
HEADER_BYTES = 1  # per token of an adaptive latent: its bits, and how many tokens it stands for


def token_scales(values: Float[Tensor, "... d"], bits: Tensor | int) -> Float[Tensor, "... 1"]:
    """The step of a symmetric grid of `bits` bits that just holds each token, rounded up to half precision."""
    largest = values.abs().amax(dim=-1, keepdim=True)
    top = 2.0 ** (torch.as_tensor(bits, device=values.device) - 1) - 1
    return (largest / top * (1 + 2**-10)).half().float().clamp(min=2**-24)


def fake_quantize_tokens(values: Float[Tensor, "... d"], bits: int) -> Float[Tensor, "... d"]:
    """What storing in `bits` bits per value, scaled per token, leaves of the values; gradients pass straight through
    (Bengio et al. 2013)."""
    scales = token_scales(values.detach(), bits)
    rounded = (values.detach() / scales).round() * scales
    return values + (rounded - values.detach())


@dataclass(frozen=True)
class Int8Latents:
    """Tokens as they are stored: codes [U, N, D] int8, one scale per token [U, N, 1], and the rest of `Tokens`."""

    codes: Int8[Tensor, "u n d"]
    scales: Float[Tensor, "u n 1"]
    layout: Tokens

    @classmethod
    def from_tokens(cls, tokens: Tokens) -> Int8Latents:
        scales = token_scales(tokens.values.detach(), 8)
        codes = (tokens.values.detach() / scales).round().to(torch.int8)
        return cls(codes, scales.half(), replace(tokens, values=tokens.values.new_zeros(*tokens.values.shape[:2], 0)))

    def tokens(self) -> Tokens:
        """The tokens that the codes stand for."""
        return self.layout.with_values(self.codes.float() * self.scales.float())

    @property
    def bytes(self) -> Int[Tensor, " u"]:
        """[U], for the real tokens of each entry: codes and scales."""
        return self.layout.mask.sum(1) * (self.codes.shape[2] + SCALE_BYTES)


class LatentTable:
    """The 8-bit latents of many inputs, by number. Calling it with a number gives the tokens [N, D]."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Tensor, Tensor]] = []
        self._place: dict[int, tuple[int, int, int]] = {}  # chunk, entry, tokens

    def add(self, numbers: Sequence[int], latents: Int8Latents) -> None:
        """numbers: of the U entries, in order. Real tokens stand before padding."""
        lengths = latents.layout.mask.sum(1).tolist()
        self._place |= {n: (len(self._chunks), i, lengths[i]) for i, n in enumerate(numbers)}
        self._chunks.append((latents.codes.cpu(), latents.scales.cpu()))

    def __call__(self, number: int) -> Float[Tensor, "n d"]:
        chunk, entry, length = self._place[number]
        codes, scales = self._chunks[chunk]
        return codes[entry, :length].float() * scales[entry, :length].float()


def fixed_quantize(tokens: Tokens, largest: float) -> tuple[Tokens, Int[Tensor, " u"]]:
    """The usual way, as a control: one 8-bit grid from -largest to largest for all tokens, none dropped. Returns the
    tokens as they come back, and the bytes of each entry."""
    step = largest / 127
    values = (tokens.values / step).round().clamp(-127, 127) * step
    return tokens.with_values(values), tokens.mask.sum(1) * tokens.values.shape[2]


def adaptive_quantize(tokens: Tokens, *, alike: float, error: float) -> tuple[Tokens, Int[Tensor, " u"]]:
    """Pools and allots bits by content. Returns the tokens as they come back, and the bytes of each entry.

    alike: a token joins the one before it while their cosine similarity exceeds this (above 1: nothing is merged); what
    is stored is the mean of the run. error: of 2, 3, 4, 6 and 8 bits each token gets the fewest that keep its
    relative squared error below this. Codes are packed without gaps; each token adds its scale and a header.
    """
    merged = merge_alike(tokens, alike)
    values, bits = merged.values, torch.full(merged.mask.shape, 8, device=merged.values.device)
    power = values.square().sum(-1).clamp(min=1e-12)
    for candidate in (6, 4, 3, 2):
        off = (values - fake_quantize_tokens(values, candidate)).square().sum(-1) / power
        bits = torch.where(off <= error, candidate, bits)
    scales = token_scales(values, bits.unsqueeze(-1))
    stored = merged.with_values((values / scales).round() * scales)
    size = (bits * values.shape[2] + 7) // 8 + SCALE_BYTES + HEADER_BYTES
    return stored, (size * merged.mask).sum(1)


def merge_alike(tokens: Tokens, alike: float) -> Tokens:
    """Runs of neighbouring tokens that are alike become their mean; times too. A run never crosses padding."""
    x, mask = tokens.values, tokens.mask
    near = torch.nn.functional.cosine_similarity(x[:, 1:], x[:, :-1], dim=-1) > alike
    joins = torch.nn.functional.pad(near & mask[:, 1:] & mask[:, :-1], (1, 0))  # [U, N]
    run = (~joins).long().cumsum(1) - 1  # [U, N], which run each token belongs to
    share = torch.nn.functional.one_hot(run, x.shape[1]).to(x.dtype) * mask.unsqueeze(-1)  # [U, N, runs]
    weight = share.sum(1)  # [U, runs], how many tokens each run holds
    share = share / weight.clamp(min=1).unsqueeze(1)
    keep = int((torch.arange(1, x.shape[1] + 1, device=x.device) * (weight > 0)).max().clamp(min=1))
    times = None if tokens.times is None else torch.einsum("unr,un->ur", share, tokens.times)[:, :keep]
    return replace(
        tokens,
        values=torch.einsum("unr,und->urd", share, x)[:, :keep],
        mask=(weight > 0)[:, :keep],
        times=times,
    )


def pack_bits(codes: Int8[Tensor, " n"], bits: int) -> UInt8[Tensor, " p"]:
    """Codes of `bits` bits each, without gaps: ceil(n * bits / 8) bytes."""
    unsigned = codes.to(torch.int16) + 2 ** (bits - 1)
    ones = (unsigned.unsqueeze(1) >> torch.arange(bits - 1, -1, -1)) & 1  # [n, bits]
    stream = torch.nn.functional.pad(ones.flatten(), (0, -ones.numel() % 8)).unflatten(0, (-1, 8))
    return (stream << torch.arange(7, -1, -1)).sum(1).to(torch.uint8)


def unpack_bits(packed: UInt8[Tensor, " p"], bits: int, count: int) -> Int8[Tensor, " n"]:
    """The first `count` codes back from `pack`."""
    stream = (packed.to(torch.int16).unsqueeze(1) >> torch.arange(7, -1, -1)) & 1  # [p, 8]
    ones = stream.flatten()[: count * bits].unflatten(0, (count, bits))
    return ((ones << torch.arange(bits - 1, -1, -1)).sum(1) - 2 ** (bits - 1)).to(torch.int8)
