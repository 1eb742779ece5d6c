"""The claims ledger: what is claimed of omni-modal systems, beside what our runs recorded; nothing else counts."""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
BAR = re.compile(r"(>=|>|<=|<) (-?[0-9]+(?:\.[0-9]+)?)")  # an order, and the figure that must be reached
ORDERS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class Verdict(enum.StrEnum):
    """held: every measure reaches its bar, with the worse end of its interval where it has one."""

    HELD = "held"
    NOT_HELD = "did not hold"
    NOT_MEASURED = "not measured yet"


@dataclass(frozen=True)
class Claim:
    """measures: by recorded metric, the bar, like ">= 0.65". figure: the descriptions' own, in words. notebook,
    parameters: of the run that counts; without parameters, the one of seed 0 with all others at their defaults. device:
    "gpu" where only such a run counts. controls: metrics shown beside it."""

    area: str
    claim: str
    measures: Mapping[str, str]
    reported: str = ""
    notebook: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    controls: Sequence[str] = ()
    device: str = ""

    def matches(self, result: Mapping[str, Any]) -> bool:
        """Whether a run is the one meant."""
        if result["notebook"] != self.notebook or (self.device == "gpu" and result["device"].startswith("cpu")):
            return False
        if self.parameters:
            return self.parameters.items() <= result["parameters"].items()
        return bool(result["folder"].name == "seed0")


@dataclass(frozen=True)
class ClaimMeasure:
    """One measure of a claim. metric: as it was recorded, None if it was not."""

    name: str
    threshold: str
    metric: Mapping[str, Any] | None

    @property
    def reached(self) -> bool:
        """Whether the worse end of the interval, or the value that has none, reaches the bar."""
        if self.metric is None:
            return False
        low, high = self.metric["interval"] or [self.metric["value"]] * 2
        order, figure = _order_and_figure(self.threshold)
        return bool(ORDERS[order](low if order.startswith(">") else high, figure))


@dataclass(frozen=True)
class ScoredClaim:
    """A claim and what the runs say of it. result: the run, None if there is none. controls: those recorded."""

    claim: Claim
    result: Mapping[str, Any] | None
    measured: Sequence[ClaimMeasure]
    controls: Sequence[Mapping[str, Any]]

    @property
    def verdict(self) -> Verdict:
        known = [m for m in self.measured if m.metric is not None]
        if not all(m.reached for m in known):
            return Verdict.NOT_HELD
        return Verdict.HELD if len(known) == len(self.measured) else Verdict.NOT_MEASURED


def _order_and_figure(bar: str) -> tuple[str, float]:
    found = BAR.fullmatch(bar)
    if found is None:
        raise ValueError(f"a bar must look like '>= 0.65': got {bar!r}")
    return found[1], float(found[2])


def load_claims(file: Path = CLAIMS_FILE) -> list[Claim]:
    """The ledger. Raises ValueError for an entry that lacks a key, has an unknown one, or a bar that is no number."""
    claims = []
    for place, entry in enumerate(yaml.safe_load(file.read_text(encoding="utf-8")), start=1):
        try:
            claim = Claim(**entry)
            bars = [_order_and_figure(bar) for bar in claim.measures.values()]
        except (TypeError, ValueError, AttributeError) as error:  # other keys, other words, no mapping
            raise ValueError(f"{file}: entry {place} is not a claim ({error}): got {entry!r}") from error
        if not bars:
            raise ValueError(f"{file}: entry {place} ({claim.claim!r}) has no measures: expected at least one")
        claims.append(claim)
    return claims


def score_claims(claims: Iterable[Claim], results: Sequence[Mapping[str, Any]]) -> list[ScoredClaim]:
    """Each claim beside the run that counts, the latest if there are several. results: see `read_results`."""
    scored = []
    for claim in claims:
        runs = sorted((r for r in results if claim.matches(r)), key=lambda r: str(r["started"]))
        result = runs[-1] if runs else None
        recorded = {m["name"]: m for m in result["metrics"]} if result else {}
        measured = [ClaimMeasure(name, bar, recorded.get(name)) for name, bar in claim.measures.items()]
        scored.append(ScoredClaim(claim, result, measured, [recorded[n] for n in claim.controls if n in recorded]))
    return scored
