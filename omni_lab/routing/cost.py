"""What a route costs, in FLOPs per sample (2 x MACs), from closed forms.

Matrix products, convolutions and attention are counted, as `torch.utils.flop_counter` counts them; norms, activations
and the Fourier transform of audio are not. A sample is charged as if it were alone: entries that samples of a batch
share make the batch cheaper than the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni_lab.batch import Modality, OmniBatch
from omni_lab.routing.route import ComputeLevel, Route, RouteSpace
from omni_lab.routing.sequential import Trajectory


class FlopBreakdown(NamedTuple):
    """FLOPs per sample, by part. cross_modal: the paths. fusion_blocks: the transformer blocks after them."""

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
    """The FLOPs of any route of a model.

    encoder_coefs: coefficients of 1, n and n^2 for n tokens, per modality and compute level.
    dim, mlp_dim: widths of the fusion layers.
    tokens_per_item: tokens of an image, and of a video frame.
    samples_per_token: audio samples that one token covers.
    router_flops: of one decision; 0 without a router.
    head: FLOPs of another answer head than `AnswerHead`: once, and per encoded modality.
    """

    encoder_coefs: Float[Tensor, "m l 3"]
    dim: int
    mlp_dim: int
    num_answers: int
    gated: bool
    tokens_per_item: dict[Modality, int]
    samples_per_token: int
    router_flops: float = 0.0
    head: tuple[float, float] | None = None

    def count_tokens(self, batch: OmniBatch) -> Int[Tensor, "b m"]:
        """[B, M], the tokens that each modality has once it is encoded; 0 where it is absent."""
        counts = torch.zeros(batch.present.shape, dtype=torch.long)
        for modality, inputs in batch.inputs.items():
            each = inputs.mask.sum(1)
            if not inputs.is_encoded:
                if modality is Modality.AUDIO:
                    each = -(-each // self.samples_per_token)
                each = each * self.tokens_per_item.get(modality, 1)
            rows = inputs.entry_index
            counts[:, modality.column] = torch.where(rows >= 0, each[rows.clamp(min=0)], 0).cpu()
        return counts

    def encoder_flops(self, modality: Modality, level: ComputeLevel, tokens: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        n = tokens.double()
        powers = torch.stack([torch.ones_like(n), n, n**2], dim=1)  # [B, 3]
        return powers @ self.encoder_coefs[modality.column, level].double()

    def path_flops(self, space: RouteSpace, tokens: Int[Tensor, "b m"]) -> Float[Tensor, "b p"]:
        """Of each path in one layer: projections of queries and outputs, of keys and values, scores, mixture, gate."""
        queries, keys = (tokens[:, column].double() for column in space.path_columns)  # [B, P]
        return 4.0 * (queries + keys) * self.dim**2 + 4.0 * queries * keys * self.dim + 4.0 * self.dim * self.gated

    def block_flops(self, space: RouteSpace, modality: Modality, tokens: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Of the blocks of an encoded modality: projections, scores and mixture, MLP; zero without incoming paths."""
        n, blocks = tokens.double(), space.depth * any(path.query is modality for path in space.paths)
        return blocks * (8.0 * n * self.dim**2 + 4.0 * n**2 * self.dim + 4.0 * n * self.dim * self.mlp_dim)

    @property
    def head_flops(self) -> tuple[float, float]:
        """Of the answer head: once, and per encoded modality."""
        return self.head or (2.0 * self.dim * self.num_answers, 2.0 * self.dim**2 + 2.0 * self.dim * self.gated)

    def __call__(self, space: RouteSpace, route: Route, tokens: Int[Tensor, "b m"]) -> FlopBreakdown:
        """tokens: see `count_tokens`."""
        zero = torch.zeros(len(route), dtype=torch.double, device=tokens.device)
        once, per_modality = self.head_flops
        encoders, blocks, heads = zero.clone(), zero.clone(), zero + once
        for modality in space.modalities:
            column = modality.column
            for level in ComputeLevel:
                chosen = route.encoder_levels[:, column] == level
                encoders += chosen * self.encoder_flops(modality, level, tokens[:, column])
            encoded = route.encoder_levels[:, column] > ComputeLevel.SKIP
            heads += encoded * per_modality
            blocks += encoded * self.block_flops(space, modality, tokens[:, column])
        paths = (space.path_mask(route).sum(1) * self.path_flops(space, tokens)).sum(1)
        return FlopBreakdown(encoders, paths, blocks, heads, zero + self.router_flops)

    def of_trajectory(
        self, space: RouteSpace, trajectory: Trajectory, tokens: Int[Tensor, "b m"], *, step: float, glances: Tensor
    ) -> FlopBreakdown:
        """Of everything that a sequential router ran. step: of one decision. glances: [B], of looking at the inputs."""
        parts = self(space, trajectory.route, tokens)
        again = torch.zeros_like(parts.encoders)  # levels whose tokens a higher one replaced
        for modality in space.modalities:
            column = modality.column
            for level in space.allowed_levels(modality)[1:]:
                replaced = trajectory.ran[:, column, level] & (trajectory.route.encoder_levels[:, column] > level)
                again += replaced * self.encoder_flops(modality, level, tokens[:, column])
        return parts._replace(encoders=parts.encoders + again, router=trajectory.steps * step + glances)
