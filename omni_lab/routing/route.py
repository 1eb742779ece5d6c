"""What runs for which sample: `Route`, the decisions for a batch, and `RouteSpace`, all routes that are legal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality

# The first of these that is present carries the question.
QUESTION_ORDER = (Modality.TEXT, Modality.AUDIO, Modality.IMAGE, Modality.VIDEO)


class CrossModalPath(NamedTuple):
    """A directed interaction: tokens of `query` attend to tokens of `key`."""

    query: Modality
    key: Modality

    def __str__(self) -> str:
        return f"{self.query}_from_{self.key}"

    @classmethod
    def from_string(cls, name: str) -> CrossModalPath:
        return cls(*map(Modality, name.split("_from_")))


def all_cross_modal_paths(modalities: Sequence[Modality]) -> list[CrossModalPath]:
    """Every directed pair of different modalities."""
    return [CrossModalPath(m, n) for m in modalities for n in modalities if m is not n]


@dataclass(frozen=True)
class Route:
    """What runs for each sample of a batch.

    encoder_levels: [B, M], a `ComputeLevel` each.
    interaction_mask: [B, L, M, M], True where the query modality (row) attends to the key modality (column) in a layer.
        An encoded modality always attends to itself (the diagonal).
    """

    encoder_levels: Int[Tensor, "b m"]
    interaction_mask: Bool[Tensor, "b l m m"]

    def __len__(self) -> int:
        return len(self.encoder_levels)

    @staticmethod
    def cat(routes: Sequence[Route]) -> Route:
        return Route(torch.cat([r.encoder_levels for r in routes]), torch.cat([r.interaction_mask for r in routes]))

    def select(self, samples: Int[Tensor, " p"]) -> Route:
        """The routes of some of the samples, in that order."""
        return Route(self.encoder_levels[samples], self.interaction_mask[samples])

    def to(self, device: torch.device | str) -> Route:
        return Route(self.encoder_levels.to(device), self.interaction_mask.to(device))

    def path_mask(self, layer: int, path: CrossModalPath) -> Bool[Tensor, " b"]:
        return self.interaction_mask[:, layer, path.query.column, path.key.column]

    def signature(self) -> Int[Tensor, "b k"]:
        """[B, K]: rows are equal where routes are equal."""
        return torch.cat([self.encoder_levels.long(), self.interaction_mask.flatten(1).long()], dim=1)

    @property
    def num_distinct(self) -> int:
        """The number of different routes in the batch."""
        return len(self.signature().unique(dim=0))


class RouteError(ValueError):
    """A route that cannot run; the message names the sample and what is wrong with its route."""


@dataclass(frozen=True)
class RouteSpace:
    """Every legal route of a model. The modality of the question (text, else audio, else the first present) is always
    encoded in full.

    modalities: those with an encoder.
    paths: the paths of each of `depth` layers.
    encoder_levels: what a route may choose per modality; by default to skip it or to run it in full.
    pruned_paths: (layer, path) pairs that were removed; a route that wants one gets that path in the nearest layer that
        still has it.
    """

    modalities: tuple[Modality, ...]
    paths: tuple[CrossModalPath, ...]
    depth: int
    encoder_levels: Mapping[Modality, tuple[ComputeLevel, ...]] = field(default_factory=dict)
    pruned_paths: tuple[tuple[int, CrossModalPath], ...] = ()

    def allowed_levels(self, modality: Modality) -> tuple[ComputeLevel, ...]:
        return self.encoder_levels.get(modality, (ComputeLevel.SKIP, ComputeLevel.FULL))

    def question_mask(self, present: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
        """[B, M], True for the one modality of each sample that carries its question."""
        rank = torch.tensor([QUESTION_ORDER.index(m) for m in Modality], device=present.device)
        first = torch.where(present, rank, NUM_MODALITIES).argmin(dim=1, keepdim=True)
        return torch.zeros_like(present).scatter(1, first, True) & present

    def project(
        self, levels: Int[Tensor, "b m"], path_mask: Bool[Tensor, "b l p"], present: Bool[Tensor, "b m"]
    ) -> Route:
        """The nearest legal route: absent modalities are skipped, the question is encoded in full, and a path runs only
        where both its ends are encoded. path_mask: in the order of `paths`."""
        levels, path_mask = self.project_decisions(levels, path_mask, present)
        queries, keys = (column.to(present.device) for column in self.path_columns)
        interactions = torch.diag_embed(levels > ComputeLevel.SKIP)[:, None].repeat(1, self.depth, 1, 1)
        interactions[:, :, queries, keys] = path_mask
        return Route(levels, interactions)

    def project_decisions(
        self, levels: Int[Tensor, "b m"], path_mask: Bool[Tensor, "b l p"], present: Bool[Tensor, "b m"]
    ) -> tuple[Int[Tensor, "b m"], Bool[Tensor, "b l p"]]:
        """The levels and paths of `project`."""
        device = present.device
        has_encoder = torch.tensor([m in self.modalities for m in Modality], device=device)
        levels = torch.where(self.question_mask(present), int(ComputeLevel.FULL), levels)
        levels = torch.where(present & has_encoder, levels, int(ComputeLevel.SKIP))
        encoded = levels > ComputeLevel.SKIP
        queries, keys = (column.to(device) for column in self.path_columns)
        runs = path_mask & (encoded[:, queries] & encoded[:, keys])[:, None]
        for layer, path in self.pruned_paths:
            column = self.paths.index(path)
            left = [other for other in range(self.depth) if (other, path) not in self.pruned_paths]
            if left:
                runs[:, min(left, key=lambda other: abs(other - layer)), column] |= runs[:, layer, column]
            runs[:, layer, column] = False
        return levels, runs

    @cached_property
    def path_columns(self) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """The columns of each path's query and of its key."""
        queries = torch.tensor([p.query.column for p in self.paths], dtype=torch.long)
        return queries, torch.tensor([p.key.column for p in self.paths], dtype=torch.long)

    def path_mask(self, route: Route) -> Bool[Tensor, "b l p"]:
        """True where a path runs, in the order of `paths`."""
        queries, keys = self.path_columns
        return route.interaction_mask[:, :, queries, keys]

    def dense(self, present: Bool[Tensor, "b m"]) -> Route:
        """The route that runs everything."""
        levels = torch.full((len(present), NUM_MODALITIES), int(ComputeLevel.FULL), device=present.device)
        path_mask = torch.ones(len(present), self.depth, len(self.paths), dtype=torch.bool, device=present.device)
        return self.project(levels, path_mask, present)

    def sample(self, present: Bool[Tensor, "b m"], *, generator: torch.Generator | None = None) -> Route:
        """Random routes. Each sample draws a probability from [0, 1], with which an encoder runs in full (else at a
        random lower level) and a path runs."""
        size, device = len(present), present.device
        prob = torch.rand(size, 1, generator=generator).to(device)
        levels = torch.full((size, NUM_MODALITIES), int(ComputeLevel.FULL), device=device)
        for modality in self.modalities:
            lower = torch.tensor([int(c) for c in self.allowed_levels(modality) if c is not ComputeLevel.FULL])
            if len(lower):
                sampled = lower[torch.randint(len(lower), (size,), generator=generator)].to(device)
                full = torch.rand(size, generator=generator).to(device) < prob[:, 0]
                levels[:, modality.column] = torch.where(full, int(ComputeLevel.FULL), sampled)
        path_mask = torch.rand(size, self.depth, len(self.paths), generator=generator).to(device) < prob[:, :, None]
        return self.project(levels, path_mask, present)

    def check(self, route: Route, present: Bool[Tensor, "b m"], ids: Sequence[str]) -> None:
        """Raises RouteError for a route that runs what a sample lacks or what this space does not have."""
        size, depth = route.interaction_mask.shape[:2]
        if (size, depth) != (len(present), self.depth):
            raise RouteError(f"route for {size} samples, {depth} layers: expected {len(present)} and {self.depth}")
        legal = self.project(route.encoder_levels, self.path_mask(route), present)
        encoded = (route.encoder_levels > ComputeLevel.SKIP) & (legal.encoder_levels == ComputeLevel.SKIP)
        interacts = route.interaction_mask & ~legal.interaction_mask
        if not (encoded.any() | interacts.any()):  # one synchronization with the device
            return
        modalities = list(Modality)
        if encoded.any():
            column, sample = encoded.T.nonzero()[0].tolist()
            why = "which the model cannot" if present[sample, column] else "which it does not have"
            raise RouteError(f"the route of sample {ids[sample]!r} encodes {modalities[column]}, {why}")
        sample, layer, query, key = interacts.nonzero()[0].tolist()
        raise RouteError(
            f"the route of sample {ids[sample]!r} opens {CrossModalPath(modalities[query], modalities[key])} in layer "
            f"{layer}: both ends must be present and encoded, and the path must exist"
        )

    def to_dict(self) -> dict[str, object]:
        """What a router's weights depend on, as JSON values."""
        pruned = [[layer, str(path)] for layer, path in self.pruned_paths]
        return {
            "modalities": [m.value for m in self.modalities],
            "paths": [str(path) for path in self.paths],
            "depth": self.depth,
            "levels": {m.value: [level.name for level in self.allowed_levels(m)] for m in self.modalities},
            **({"taken_out": pruned} if pruned else {}),
        }
