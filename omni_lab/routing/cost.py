"""What a route costs, in FLOPs per sample (2 x MACs), from closed forms.

Counted are matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them; norms, activations
and the Fourier transform of a sound are not. A sample is charged as if it were alone: what it shares with others of its
batch makes the batch cheaper than the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni_lab.batch import Modality, OmniBatch
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace


def path_flops(queries: Tensor, keys: Tensor, dim: int, *, gated: bool = False) -> Tensor:
    """[B] token counts -> [B] FLOPs: query and output projections of the one side, key and value of the other, scores
    and mixture."""
    return 4.0 * (queries + keys) * dim**2 + 4.0 * queries * keys * dim + (4.0 * dim if gated else 0.0)


def block_flops(tokens: Tensor, dim: int, hidden: int) -> Tensor:
    """[B] token counts -> [B] FLOPs: self-attention (four projections, scores, mixture) and a feed-forward network of
    `hidden` units."""
    return 8.0 * tokens * dim**2 + 4.0 * tokens**2 * dim + 4.0 * tokens * dim * hidden


class FlopBreakdown(NamedTuple):
    """Each [B]. cross_modal: the paths. digestion: the transformer
    blocks (self-attention and feed-forward network) of the modalities that listen."""

    encoders: Float[Tensor, " b"]
    cross_modal: Float[Tensor, " b"]
    fusion_blocks: Float[Tensor, " b"]
    heads: Float[Tensor, " b"]
    router: Float[Tensor, " b"]

    @property
    def total(self) -> Float[Tensor, " b"]:
        return torch.stack(list(self)).sum(0)


@dataclass(frozen=True)
class CostModel:
    """encoders: [M, levels, 3], coefficients of 1, n and n^2 for n tokens. dim, hidden: of fusion. answers: how many
    the head tells apart. tokens_each: of a picture, and of a frame. samples_per_token: of sound. controller: FLOPs of
    one decision, 0 where nobody decides."""

    encoders: Float[Tensor, "m l 3"]
    dim: int
    hidden: int
    answers: int
    gated: bool
    tokens_each: dict[Modality, int]
    samples_per_token: int
    router_flops: float = 0.0

    def count_tokens(self, batch: OmniBatch) -> Int[Tensor, "b m"]:
        """[B, M], how many tokens each modality of a batch has once it is encoded, 0 where it is absent."""
        counts = torch.zeros(batch.present.shape, dtype=torch.long)
        for modality, given in batch.inputs.items():
            each = given.mask.sum(1)
            if not given.is_encoded:
                if modality is Modality.AUDIO:
                    each = -(-each // self.samples_per_token)
                each = each * self.tokens_each.get(modality, 1)
            counts[:, modality.column] = torch.where(
                given.entry_index >= 0, each[given.entry_index.clamp(min=0)], 0
            ).cpu()
        return counts

    def encoder_flops(self, modality: Modality, level: ComputeLevel, tokens: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        n = tokens.double()
        powers = torch.stack([torch.ones_like(n), n, n**2], dim=1)  # [B, 3]
        return powers @ self.encoders[modality.column, level].double()

    def path_flops(self, space: RouteSpace, tokens: Int[Tensor, "b m"]) -> Float[Tensor, "b p"]:
        """What opening each path in one layer costs."""
        n = tokens.double()
        each = [path_flops(n[:, p.query.column], n[:, p.key.column], self.dim, gated=self.gated) for p in space.paths]
        return torch.stack(each, dim=1)

    def block_flops(self, space: RouteSpace, modality: Modality, tokens: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The transformer blocks of a modality that is encoded; nothing for one that listens to nobody."""
        listens = any(path.query is modality for path in space.paths)
        return listens * space.depth * block_flops(tokens.double(), self.dim, self.hidden)

    @property
    def head_flops(self) -> float:
        """The part of each encoded modality."""
        return 2.0 * self.dim**2 + 2.0 * self.dim * self.gated

    def __call__(self, space: RouteSpace, route: Route, tokens: Int[Tensor, "b m"]) -> FlopBreakdown:
        """tokens: [B, M], see `tokens`."""
        zero = torch.zeros(len(route), dtype=torch.double, device=tokens.device)
        encoders, digestion, heads = zero.clone(), zero.clone(), zero.clone()
        for modality in space.modalities:
            column = modality.column
            for level in ComputeLevel:
                taken = route.encoder_levels[:, column] == level
                encoders += taken * self.encoder_flops(modality, level, tokens[:, column])
            encoded = route.encoder_levels[:, column] > ComputeLevel.SKIP
            heads += encoded * self.head_flops
            digestion += encoded * self.block_flops(space, modality, tokens[:, column])
        cross = (space.path_mask(route).sum(1) * self.path_flops(space, tokens)).sum(1)
        return FlopBreakdown(
            encoders, cross, digestion, heads + 2.0 * self.dim * self.answers, zero + self.router_flops
        )
