"""The claims ledger: what is claimed of omni-modal systems, beside what our runs recorded. Nothing else counts.

Only runs of the profiles in `DECIDING` decide: others measure too few questions, or models that are too small.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DECIDING = ("standard", "full")
CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
THRESHOLD = re.compile(r"(>=|>|<=|<) (-?[0-9]+(?:\.[0-9]+)?)")
COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class Verdict(enum.StrEnum):
    """A claim is held if every measure reaches its threshold."""

    HELD = "held"
    NOT_HELD = "did not hold"
    NOT_MEASURED = "not measured yet"


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger.

    measures: recorded metric to threshold, like ">= 0.65".
    reported: what the descriptions state, in words.
    parameters: of the notebook's run that counts; empty for the run of seed 0 with all others at their defaults.
    controls: metrics shown beside it.
    device: "gpu" if only a run on a GPU counts.
    reason: why it is not measured; then it needs no measures.
    note: what else a reader has to know, such as what the number is not.
    """

    area: str
    claim: str
    measures: Mapping[str, str] = field(default_factory=dict)
    reported: str = ""
    notebook: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    controls: Sequence[str] = ()
    device: str = ""
    reason: str = ""
    note: str = ""

    def matches(self, result: Mapping[str, Any]) -> bool:
        """Whether a run is the one that counts."""
        if result["notebook"] != self.notebook or (self.device == "gpu" and result["device"].startswith("cpu")):
            return False
        if self.parameters:
            return self.parameters.items() <= result["parameters"].items()
        return bool(result["folder"].name == "seed0")


@dataclass(frozen=True)
class ClaimMeasure:
    """One measure of a claim. metric: as recorded, None if it was not."""

    name: str
    threshold: str
    metric: Mapping[str, Any] | None

    @property
    def reached(self) -> bool:
        """Whether the worse end of the interval, or the value if it has none, reaches the threshold."""
        if self.metric is None:
            return False
        low, high = self.metric["interval"] or [self.metric["value"]] * 2
        order, bound = _parse_threshold(self.threshold)
        return bool(COMPARISONS[order](low if order.startswith(">") else high, bound))


@dataclass(frozen=True)
class ScoredClaim:
    """A claim and what the runs recorded.

    result: the run that counts, None if there is none.
    here: this machine's latest run of a profile that decides nothing, such as quick.
    """

    claim: Claim
    result: Mapping[str, Any] | None
    measured: Sequence[ClaimMeasure]
    controls: Sequence[Mapping[str, Any]]
    here: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> Verdict:
        recorded = [m for m in self.measured if m.metric is not None]
        if not all(m.reached for m in recorded):
            return Verdict.NOT_HELD
        return Verdict.HELD if recorded and len(recorded) == len(self.measured) else Verdict.NOT_MEASURED


def _parse_threshold(threshold: str) -> tuple[str, float]:
    found = THRESHOLD.fullmatch(threshold)
    if found is None:
        raise ValueError(f"a bar must look like '>= 0.65': got {threshold!r}")
    return found[1], float(found[2])


def load_claims(file: Path = CLAIMS_FILE) -> list[Claim]:
    """Reads the ledger. Raises ValueError for an entry with a missing or unknown key, or an unreadable threshold."""
    claims = []
    for place, entry in enumerate(yaml.safe_load(file.read_text(encoding="utf-8")), start=1):
        try:
            claims.append(Claim(**entry))
            if not [_parse_threshold(bar) for bar in claims[-1].measures.values()] and not claims[-1].reason:
                raise ValueError("it has neither measures nor a reason")
        except (TypeError, ValueError, AttributeError) as error:  # other keys, other words, no mapping
            raise ValueError(f"{file}: entry {place} is not a claim ({error}): got {entry!r}") from error
    return claims


def score_claims(
    claims: Iterable[Claim], results: Sequence[Mapping[str, Any]], *, profile: str = "standard"
) -> list[ScoredClaim]:
    """Compares each claim with the run that counts: of `profile` if there is one, and the latest if there are several.
    results: see `read_results`."""
    scored = []
    for claim in claims:
        runs = sorted(
            (r for r in results if claim.matches(r)), key=lambda r: (r["profile"] == profile, str(r["started"]))
        )
        result = next((r for r in reversed(runs) if r["profile"] in DECIDING), None)
        here = next((r for r in reversed(runs) if r["profile"] not in DECIDING), None)
        recorded = metrics_by_name(result)
        measured = [ClaimMeasure(name, threshold, recorded.get(name)) for name, threshold in claim.measures.items()]
        controls = [recorded[name] for name in claim.controls if name in recorded]
        scored.append(ScoredClaim(claim, result, measured, controls, here))
    return scored


def metrics_by_name(result: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    return {m["name"]: m for m in result["metrics"]} if result else {}
