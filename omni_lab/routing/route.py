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

from omni_lab.modalities import M, Modality


class Path(NamedTuple):
    """A directed interaction: `query` listens to `key`."""

    query: Modality
    key: Modality

    def __str__(self) -> str:
        return f"{self.query}_from_{self.key}"

    @classmethod
    def named(cls, name: str) -> Path:
        """The path that is written so."""
        return cls(*map(Modality, name.split("_from_")))


def all_paths(modalities: Sequence[Modality]) -> list[Path]:
    """Every directed pair of different modalities."""
    return [Path(m, n) for m in modalities for n in modalities if m is not n]


class Level(enum.IntEnum):
    """How much of an encoder runs: none of it, up to its early exit, or all."""

    SKIP = 0
    LIGHT = 1
    FULL = 2


@dataclass(frozen=True)
class Route:
    """encoders: [B, M], a `Level` each. interactions: [B, L, M, M], whether, in that layer, the query modality (row)
    listens to the key modality (column). A modality that is encoded always attends to itself (the diagonal)."""

    encoders: Int[Tensor, "b m"]
    interactions: Bool[Tensor, "b l m m"]

    def __len__(self) -> int:
        return len(self.encoders)

    @staticmethod
    def cat(routes: Sequence[Route]) -> Route:
        """One after the other."""
        return Route(torch.cat([r.encoders for r in routes]), torch.cat([r.interactions for r in routes]))

    def of(self, samples: Int[Tensor, " p"]) -> Route:
        """The route of some of the samples, in that order."""
        return Route(self.encoders[samples], self.interactions[samples])

    def to(self, device: torch.device | str) -> Route:
        return Route(self.encoders.to(device), self.interactions.to(device))

    def opened(self, layer: int, path: Path) -> Bool[Tensor, " b"]:
        return self.interactions[:, layer, path.query.column, path.key.column]

    def signature(self) -> Int[Tensor, "b k"]:
        """[B, K]: equal rows are equal routes."""
        return torch.cat([self.encoders.long(), self.interactions.flatten(1).long()], dim=1)

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
    paths: tuple[Path, ...]
    depth: int
    levels: Mapping[Modality, tuple[Level, ...]] = field(default_factory=dict)
    taken_out: tuple[tuple[int, Path], ...] = ()

    def choices(self, modality: Modality) -> tuple[Level, ...]:
        return self.levels.get(modality, (Level.SKIP, Level.FULL))

    def carriers(self, present: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
        """[B, M], True for the one modality of each sample that carries its question."""
        rank = torch.tensor([0, 2, 1, 3], device=present.device)  # of text, picture, sound and clip
        first = torch.where(present, rank, M).argmin(dim=1, keepdim=True)
        return torch.zeros_like(present).scatter(1, first, True) & present

    def route(self, levels: Int[Tensor, "b m"], opened: Bool[Tensor, "b l p"], present: Bool[Tensor, "b m"]) -> Route:
        """The legal route nearest to what is wished: absent modalities are skipped, the question is heard in full, and
        a path is open only where both its ends are encoded. opened: per layer and path, in the order of `paths`."""
        device = present.device
        known = torch.tensor([m in self.modalities for m in Modality], device=device)
        levels = torch.where(self.carriers(present), int(Level.FULL), levels)
        levels = torch.where(present & known, levels, int(Level.SKIP))
        encoded = levels > Level.SKIP
        queries, keys = (column.to(device) for column in self._ends)
        interactions = torch.diag_embed(encoded)[:, None].repeat(1, self.depth, 1, 1)
        interactions[:, :, queries, keys] = opened & (encoded[:, queries] & encoded[:, keys])[:, None]
        for layer, path in self.taken_out:
            at = interactions[:, :, path.query.column, path.key.column]
            left = [other for other in range(self.depth) if (other, path) not in self.taken_out]
            if left:
                at[:, min(left, key=lambda other: abs(other - layer))] |= at[:, layer]
            at[:, layer] = False
        return Route(levels, interactions)

    @cached_property
    def _ends(self) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """Of every path, the columns of its query and its key."""
        queries = torch.tensor([p.query.column for p in self.paths], dtype=torch.long)
        return queries, torch.tensor([p.key.column for p in self.paths], dtype=torch.long)

    def opened(self, route: Route) -> Bool[Tensor, "b l p"]:
        """Which paths a route opens, in the order of `paths`."""
        queries, keys = self._ends
        return route.interactions[:, :, queries, keys]

    def dense(self, present: Bool[Tensor, "b m"]) -> Route:
        """Everything that there is."""
        levels = torch.full((len(present), M), int(Level.FULL), device=present.device)
        opened = torch.ones(len(present), self.depth, len(self.paths), dtype=torch.bool, device=present.device)
        return self.route(levels, opened, present)

    def random(self, present: Bool[Tensor, "b m"], *, generator: torch.Generator | None = None) -> Route:
        """For each sample a share of openness is drawn evenly from 0 to 1; with that chance an encoder runs in full or
        else at any of its lower levels, and with that chance each path is open."""
        size, device = len(present), present.device
        share = torch.rand(size, 1, generator=generator).to(device)
        levels = torch.full((size, M), int(Level.FULL), device=device)
        for modality in self.modalities:
            lower = torch.tensor([int(c) for c in self.choices(modality) if c is not Level.FULL])
            if len(lower):
                drawn = lower[torch.randint(len(lower), (size,), generator=generator)].to(device)
                full = torch.rand(size, generator=generator).to(device) < share[:, 0]
                levels[:, modality.column] = torch.where(full, int(Level.FULL), drawn)
        opened = torch.rand(size, self.depth, len(self.paths), generator=generator).to(device) < share[:, :, None]
        return self.route(levels, opened, present)

    def check(self, route: Route, present: Bool[Tensor, "b m"], ids: Sequence[str]) -> None:
        """Raises RouteError for a route that opens what is not there, or that this space does not have."""
        if route.interactions.shape[1] != self.depth or len(route) != len(present):
            raise RouteError(
                f"route for {len(route)} samples and {route.interactions.shape[1]} layers: expected {len(present)} "
                f"samples and {self.depth} layers"
            )
        legal = self.route(route.encoders, self.opened(route), present)
        excess = route.interactions & ~legal.interactions
        if not (excess.any() | ((route.encoders > Level.SKIP) & (legal.encoders == Level.SKIP)).any()):
            return
        for modality in Modality:
            column = modality.column
            encoded = route.encoders[:, column] > Level.SKIP
            for wrong, why in (
                (encoded & ~present[:, column], f"encodes {modality}, which it does not have"),
                (encoded & (legal.encoders[:, column] == Level.SKIP), f"encodes {modality}, which the model cannot"),
            ):
                if wrong.any():
                    raise RouteError(f"the route of sample {ids[int(wrong.nonzero()[0])]!r} {why}")
        sample, layer, query, key = excess.nonzero()[0].tolist()
        modalities = list(Modality)
        raise RouteError(
            f"the route of sample {ids[sample]!r} opens {Path(modalities[query], modalities[key])} in layer "
            f"{layer}: both ends must be present and encoded, and the path must exist"
        )

    def identity(self) -> dict[str, object]:
        """What a controller's weights depend on, as JSON keeps it."""
        gone = {"taken_out": [[layer, str(path)] for layer, path in self.taken_out]} if self.taken_out else {}
        return {
            "modalities": [m.value for m in self.modalities],
            "paths": [str(path) for path in self.paths],
            "depth": self.depth,
            "levels": {m.value: [level.name for level in self.choices(m)] for m in self.modalities},
            **gone,
        }

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any]) -> RouteSpace:
        """The space that has this `identity`."""
        return cls(
            modalities=tuple(Modality(m) for m in identity["modalities"]),
            paths=tuple(Path.named(path) for path in identity["paths"]),
            depth=identity["depth"],
            levels={Modality(m): tuple(Level[name] for name in levels) for m, levels in identity["levels"].items()},
            taken_out=tuple((layer, Path.named(path)) for layer, path in identity.get("taken_out", ())),
        )


def open_rates(route: Route, space: RouteSpace) -> Float[Tensor, "l p"]:
    """[L, P], how often each path of each layer is open."""
    return space.opened(route).float().mean(dim=0)
