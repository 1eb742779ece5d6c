from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from omni_lab.experiments.claims import Claim, Verdict, load_claims, score_claims
from omni_lab.experiments.jobs import list_notebooks
from omni_lab.experiments.results import read_results
from omni_lab.utils.env import project_root


def result(**changes: Any) -> dict[str, Any]:
    metrics = changes.pop("metrics", {})
    entries = [
        {"name": name, "value": value, "interval": interval, "unit": "", "higher_is_better": True, "control": False}
        for name, (value, interval) in metrics.items()
    ]
    known = {"notebook": "nn", "device": "cpu, 2 cores", "folder": Path("seed0"), "started": "2026-01-01"}
    return known | {"parameters": {}, "profile": "standard", "metrics": entries} | changes


def verdict(bar: str, value: float, interval: tuple[float, float] | None) -> Verdict:
    claim = Claim("area", "claim", {"room/what": bar}, notebook="nn")
    return score_claims([claim], [result(metrics={"room/what": (value, interval)})])[0].verdict


@pytest.mark.parametrize(
    ("bar", "value", "interval", "held"),
    [
        (">= 0.5", 0.5, None, True),
        ("> 0.5", 0.5, None, False),
        (">= 0.5", 0.6, (0.49, 0.7), False),  # the worse end counts
        (">= 0.5", 0.6, (0.5, 0.7), True),
        ("<= 0.5", 0.4, (0.3, 0.51), False),
        ("<= 0.5", 0.4, (0.3, 0.5), True),
        ("< 0", -0.1, (-0.2, 0.0), False),
        ("< 0", -0.1, (-0.2, -0.01), True),
    ],
)
def test_the_worse_end_of_the_interval_must_reach_the_bar(
    bar: str, value: float, interval: tuple[float, float] | None, held: bool
) -> None:
    assert verdict(bar, value, interval) is (Verdict.HELD if held else Verdict.NOT_HELD)


def test_every_measure_must_hold_and_one_that_is_missing_leaves_it_open() -> None:
    claim = Claim("area", "claim", {"room/one": ">= 1", "room/two": ">= 1"}, notebook="nn")

    def of(**values: float) -> Verdict:
        return score_claims([claim], [result(metrics={f"room/{n}": (v, None) for n, v in values.items()})])[0].verdict

    assert of(one=1, two=1) is Verdict.HELD
    assert of(one=1, two=0) is Verdict.NOT_HELD
    assert of(one=1) is Verdict.NOT_MEASURED
    assert of(one=0) is Verdict.NOT_HELD, "what is missing cannot mend it"
    assert score_claims([claim], [])[0].verdict is Verdict.NOT_MEASURED
    without = Claim("area", "claim", reason="there is no such machine")
    assert score_claims([without], [result()])[0].verdict is Verdict.NOT_MEASURED


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_a_short_run_decides_nothing(profile: str) -> None:
    claim = Claim("area", "claim", {"room/what": ">= 1"}, notebook="nn")
    short = result(metrics={"room/what": (5.0, None)}, profile=profile, started="2026-01-09")
    (alone,) = score_claims([claim], [short])
    assert alone.verdict is Verdict.NOT_MEASURED and alone.result is None and alone.here == short
    (both,) = score_claims([claim], [short, result(metrics={"room/what": (0.0, None)})])
    assert both.verdict is Verdict.NOT_HELD and both.here == short, "however well it went, and however late"


def test_runs_of_the_profile_come_first() -> None:
    claim = Claim("area", "claim", {"room/what": ">= 1"}, notebook="nn")
    standard = result(metrics={"room/what": (0.0, None)})
    full = result(metrics={"room/what": (5.0, None)}, profile="full", started="2026-01-09")
    assert score_claims([claim], [standard, full])[0].result == standard
    assert score_claims([claim], [standard, full], profile="full")[0].result == full
    assert score_claims([claim], [full])[0].verdict is Verdict.HELD


def test_only_the_run_that_is_meant_counts_and_the_latest_of_them() -> None:
    plain = Claim("area", "claim", {"room/what": ">= 1"}, notebook="nn", controls=["room/control", "room/none"])
    other = Claim("area", "claim", {"room/what": ">= 1"}, notebook="nn", parameters={"size": 3})
    gpu = Claim("area", "claim", {"room/what": ">= 1"}, notebook="nn", device="gpu")
    runs = [
        result(metrics={"room/what": (2.0, None), "room/control": (0.0, None)}, started="2026-01-02"),
        result(metrics={"room/what": (0.0, None)}, started="2026-01-01"),
        result(metrics={"room/what": (5.0, None)}, folder=Path("seed0-size=3"), parameters={"size": 3}),
        result(metrics={"room/what": (9.0, None)}, notebook="another"),
    ]
    values = [s.measured[0].metric and s.measured[0].metric["value"] for s in score_claims([plain, other, gpu], runs)]
    assert values == [2.0, 5.0, None]
    assert [m["name"] for m in score_claims([plain], runs)[0].controls] == ["room/control"]
    on_gpu = result(metrics={"room/what": (7.0, None)}, device="NVIDIA H200")
    assert score_claims([gpu], [*runs, on_gpu])[0].verdict is Verdict.HELD


def test_the_ledger_is_sound() -> None:
    claims, notebooks = load_claims(), {notebook.name for notebook in list_notebooks()}
    assert len({c.claim for c in claims}) == len(claims)
    assert {c.notebook for c in claims} <= notebooks | {""}
    assert all((c.notebook and c.measures) or c.reason for c in claims), "what nothing measures says why"
    assert any(c.reported for c in claims) and any(c.device for c in claims)
    known = {m["name"] for r in read_results(project_root() / "reports/published/standard") for m in r["metrics"]}
    named = {name for c in claims if c.notebook in notebooks and not c.device for name in (*c.measures, *c.controls)}
    assert named <= known, "a name that was mistyped would pass for one that is not measured yet"


def test_no_bar_holds_by_construction() -> None:
    """Shares, errors and counts of FLOPs are not negative: a bar of nothing says nothing."""
    never_negative = re.compile(r"accuracy|map|bleu4|cer|wer|ssim|psnr|padding|diff|unused|f1|recall|share")
    for claim in load_claims():
        for name, bar in claim.measures.items():
            assert bar not in ("> 0", ">= 0") or not never_negative.search(name.rpartition("/")[2]), name
            assert "minus_dense" not in name and "minus_soft" not in name, "every front holds the dense point"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{area: a}", "entry 1 is not a claim"),
        ("{area: a, claim: b, measures: {}}", "has neither measures nor a reason"),
        ("{area: a, claim: b}", "has neither measures nor a reason"),
        ("{area: a, claim: b, measures: {room/what: 0.5}}", "entry 1 is not a claim"),
        ("{area: a, claim: b, measures: {room/what: about 5}}", "must look like '>= 0.65': got 'about 5'"),
        ("{area: a, claim: b, measures: {room/what: '> 1'}, sauce: c}", "unexpected keyword argument 'sauce'"),
        ("a word", "entry 1 is not a claim"),
    ],
)
def test_a_broken_ledger_is_named(tmp_path: Path, entry: str, message: str) -> None:
    file = tmp_path / "claims.yaml"
    file.write_text(f"- {entry}\n")
    with pytest.raises(ValueError, match=rf"claims\.yaml.*{message}"):
        load_claims(file)
