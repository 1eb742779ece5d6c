"""What runs for which sample: `Route`, the decision for a batch, and `RouteSpace`, all that may be decided."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, Modality


class CrossModalPath(NamedTuple):
    """A directed interaction: `query` listens to `key`."""

    query: Modality
    key: Modality

    def __str__(self) -> str:
        return f"{self.query}_from_{self.key}"

    @classmethod
    def from_string(cls, name: str) -> CrossModalPath:
        """The path that is written so."""
        return cls(*map(Modality, name.split("_from_")))


def all_cross_modal_paths(modalities: Sequence[Modality]) -> list[CrossModalPath]:
    """Every directed pair of different modalities."""
    return [CrossModalPath(m, n) for m in modalities for n in modalities if m is not n]


class ComputeLevel(enum.IntEnum):
    """How much of an encoder runs: none of it, up to its early exit, or all."""

    SKIP = 0
    EARLY_EXIT = 1
    FULL = 2


@dataclass(frozen=True)
class Route:
    """encoders: [B, M], a `Level` each. interactions: [B, L, M, M], whether, in that layer, the query modality (row)
    listens to the key modality (column). A modality that is encoded always attends to itself (the diagonal)."""

    encoder_levels: Int[Tensor, "b m"]
    interaction_mask: Bool[Tensor, "b l m m"]

    def __len__(self) -> int:
        return len(self.encoder_levels)

    @staticmethod
    def cat(routes: Sequence[Route]) -> Route:
        """One after the other."""
        return Route(torch.cat([r.encoder_levels for r in routes]), torch.cat([r.interaction_mask for r in routes]))

    def select(self, samples: Int[Tensor, " p"]) -> Route:
        """The route of some of the samples, in that order."""
        return Route(self.encoder_levels[samples], self.interaction_mask[samples])

    def to(self, device: torch.device | str) -> Route:
        return Route(self.encoder_levels.to(device), self.interaction_mask.to(device))

    def path_mask(self, layer: int, path: CrossModalPath) -> Bool[Tensor, " b"]:
        return self.interaction_mask[:, layer, path.query.column, path.key.column]

    def signature(self) -> Int[Tensor, "b k"]:
        """[B, K]: equal rows are equal routes."""
        return torch.cat([self.encoder_levels.long(), self.interaction_mask.flatten(1).long()], dim=1)

    @property
    def distinct(self) -> int:
        """How many different routes the batch holds."""
        return len(self.signature().unique(dim=0))


class RouteError(ValueError):
    """A route that cannot be run: the message names the sample, and what is wrong with it."""


@dataclass(frozen=True)
class RouteSpace:
    """Every legal route of a model.

    modalities: those with an encoder. paths: of each of `depth` layers. levels: what may be chosen for a modality;
    those not named have no early exit, and are skipped or run in full. taken_out: paths that a layer does not have any
    more; who wishes one gets the same path of the nearest layer that has it. What carries the question (the text, or
    without one the sound, or else the first modality present) is always encoded in full.
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
        rank = torch.tensor([0, 2, 1, 3], device=present.device)  # of text, picture, sound and clip
        first = torch.where(present, rank, NUM_MODALITIES).argmin(dim=1, keepdim=True)
        return torch.zeros_like(present).scatter(1, first, True) & present

    def project(
        self, levels: Int[Tensor, "b m"], path_mask: Bool[Tensor, "b l p"], present: Bool[Tensor, "b m"]
    ) -> Route:
        """The legal route nearest to what is wished: absent modalities are skipped, the question is heard in full, and
        a path is open only where both its ends are encoded. opened: per layer and path, in the order of `paths`."""
        device = present.device
        known = torch.tensor([m in self.modalities for m in Modality], device=device)
        levels = torch.where(self.question_mask(present), int(ComputeLevel.FULL), levels)
        levels = torch.where(present & known, levels, int(ComputeLevel.SKIP))
        encoded = levels > ComputeLevel.SKIP
        queries, keys = (column.to(device) for column in self._ends)
        interactions = torch.diag_embed(encoded)[:, None].repeat(1, self.depth, 1, 1)
        interactions[:, :, queries, keys] = path_mask & (encoded[:, queries] & encoded[:, keys])[:, None]
        for layer, path in self.pruned_paths:
            at = interactions[:, :, path.query.column, path.key.column]
            left = [other for other in range(self.depth) if (other, path) not in self.pruned_paths]
            if left:
                at[:, min(left, key=lambda other: abs(other - layer))] |= at[:, layer]
            at[:, layer] = False
        return Route(levels, interactions)

    @cached_property
    def _ends(self) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """Of every path, the columns of its query and its key."""
        queries = torch.tensor([p.query.column for p in self.paths], dtype=torch.long)
        return queries, torch.tensor([p.key.column for p in self.paths], dtype=torch.long)

    def path_mask(self, route: Route) -> Bool[Tensor, "b l p"]:
        """Which paths a route opens, in the order of `paths`."""
        queries, keys = self._ends
        return route.interaction_mask[:, :, queries, keys]

    def dense(self, present: Bool[Tensor, "b m"]) -> Route:
        """Everything that there is."""
        levels = torch.full((len(present), NUM_MODALITIES), int(ComputeLevel.FULL), device=present.device)
        opened = torch.ones(len(present), self.depth, len(self.paths), dtype=torch.bool, device=present.device)
        return self.project(levels, opened, present)

    def sample(self, present: Bool[Tensor, "b m"], *, generator: torch.Generator | None = None) -> Route:
        """For each sample a share of openness is drawn evenly from 0 to 1; with that chance an encoder runs in full or
        else at any of its lower levels, and with that chance each path is open."""
        size, device = len(present), present.device
        share = torch.rand(size, 1, generator=generator).to(device)
        levels = torch.full((size, NUM_MODALITIES), int(ComputeLevel.FULL), device=device)
        for modality in self.modalities:
            lower = torch.tensor([int(c) for c in self.allowed_levels(modality) if c is not ComputeLevel.FULL])
            if len(lower):
                drawn = lower[torch.randint(len(lower), (size,), generator=generator)].to(device)
                full = torch.rand(size, generator=generator).to(device) < share[:, 0]
                levels[:, modality.column] = torch.where(full, int(ComputeLevel.FULL), drawn)
        opened = torch.rand(size, self.depth, len(self.paths), generator=generator).to(device) < share[:, :, None]
        return self.project(levels, opened, present)

    def check(self, route: Route, present: Bool[Tensor, "b m"], ids: Sequence[str]) -> None:
        """Raises RouteError for a route that opens what is not there, or that this space does not have."""
        if route.interaction_mask.shape[1] != self.depth or len(route) != len(present):
            raise RouteError(
                f"route for {len(route)} samples and {route.interaction_mask.shape[1]} layers: expected {len(present)} "
                f"samples and {self.depth} layers"
            )
        legal = self.project(route.encoder_levels, self.path_mask(route), present)
        excess = route.interaction_mask & ~legal.interaction_mask
        if not (
            excess.any()
            | ((route.encoder_levels > ComputeLevel.SKIP) & (legal.encoder_levels == ComputeLevel.SKIP)).any()
        ):
            return
        for modality in Modality:
            column = modality.column
            encoded = route.encoder_levels[:, column] > ComputeLevel.SKIP
            for wrong, why in (
                (encoded & ~present[:, column], f"encodes {modality}, which it does not have"),
                (
                    encoded & (legal.encoder_levels[:, column] == ComputeLevel.SKIP),
                    f"encodes {modality}, which the model cannot",
                ),
            ):
                if wrong.any():
                    raise RouteError(f"the route of sample {ids[int(wrong.nonzero()[0])]!r} {why}")
        sample, layer, query, key = excess.nonzero()[0].tolist()
        modalities = list(Modality)
        raise RouteError(
            f"the route of sample {ids[sample]!r} opens {CrossModalPath(modalities[query], modalities[key])} in layer "
            f"{layer}: both ends must be present and encoded, and the path must exist"
        )

    def to_dict(self) -> dict[str, object]:
        """What a controller's weights depend on, as JSON keeps it."""
        gone = {"taken_out": [[layer, str(path)] for layer, path in self.pruned_paths]} if self.pruned_paths else {}
        return {
            "modalities": [m.value for m in self.modalities],
            "paths": [str(path) for path in self.paths],
            "depth": self.depth,
            "levels": {m.value: [level.name for level in self.allowed_levels(m)] for m in self.modalities},
            **gone,
        }

    @classmethod
    def from_dict(cls, identity: Mapping[str, Any]) -> RouteSpace:
        """The space that has this `identity`."""
        return cls(
            modalities=tuple(Modality(m) for m in identity["modalities"]),
            paths=tuple(CrossModalPath.from_string(path) for path in identity["paths"]),
            depth=identity["depth"],
            encoder_levels={
                Modality(m): tuple(ComputeLevel[name] for name in levels) for m, levels in identity["levels"].items()
            },
            pruned_paths=tuple(
                (layer, CrossModalPath.from_string(path)) for layer, path in identity.get("taken_out", ())
            ),
        )


def open_rates(route: Route, space: RouteSpace) -> Float[Tensor, "l p"]:
    """[L, P], how often each path of each layer is open."""
    return space.path_mask(route).float().mean(dim=0)
