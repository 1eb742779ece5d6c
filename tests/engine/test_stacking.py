"""A batch of single questions is decided and answered as each alone would be, and costs what the cost model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from omni_lab.batch import OmniBatch
from omni_lab.compression.export import Exporter, route_signatures
from omni_lab.compression.parts import AssemblySpec, ModelPart
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.engine.flops import count_tokens, dense_route, route_flops
from omni_lab.engine.inputs import Media, as_arrays
from omni_lab.engine.runtime import ExportedOmniModel
from omni_lab.engine.stacking import Sample, select_decision, stack_decisions, stack_samples
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from tests.engine.conftest import ANSWERS
from tests.routing.conftest import MakeBatch


def singles(batch: OmniBatch) -> list[Sample]:
    """Each question alone, without padding."""
    samples = []
    for i in range(len(batch)):
        inputs = {}
        for m, given in batch.inputs.items():
            entry = int(given.entry_index[i])
            if entry >= 0:
                length = int(given.mask[entry].sum())
                values, mask = given.values[entry : entry + 1].numpy(), given.mask[entry : entry + 1, :length].numpy()
                values = values if m == "image" else values[:, :length]
                inputs[m.value] = Media(values, mask, np.zeros(1, np.int64))
        samples.append(inputs)
    return samples


@pytest.mark.slow
def test_what_was_decided_alone_can_be_answered_together(written: dict[str, Path], make_batch: MakeBatch) -> None:
    exported = ExportedOmniModel.from_folder(written["fp32"], background=False)
    batch = make_batch(9, seed=3, missing=0.4, lengths=True)
    alone = singles(batch)
    decisions = [exported.select_route(stack_samples([one]), penalty=0.4) for one in alone]
    apart = np.concatenate([exported.run(stack_samples([one]), d) for one, d in zip(alone, decisions, strict=True)])
    stacked = stack_samples(alone)
    together = exported.select_route(stacked, penalty=0.4)
    assert np.array_equal(together.levels, np.concatenate([d.levels for d in decisions]))
    logits = exported.run(stacked, together)
    assert np.allclose(logits, apart, atol=1e-4)

    order = np.random.default_rng(0).permutation(len(alone)).tolist()
    chosen = [alone[i] for i in order]
    parts = [
        select_decision(together, as_arrays(stacked, exported.library.model["samples_per_token"]), i) for i in order
    ]
    again = stack_samples(chosen)
    assert np.allclose(exported.run(again, stack_decisions(parts, again)), logits[order], atol=1e-4)


@pytest.mark.slow
def test_an_exported_route_costs_what_the_cost_model_says(
    exporter: Exporter, parts: list[ModelPart], routed: OmniModel, router: Router, make_batch: MakeBatch, tmp_path: Path
) -> None:
    costs = build_cost_model(routed, router_flops=router.flops)
    spec, policy = AssemblySpec.from_model(routed, router), PrecisionPolicy.uniform(Precision.FP32)
    options = {"policy": policy, "source": "abc", "answers": ANSWERS, "router": router}
    exporter.write(tmp_path / "m", parts, spec, costs=costs, **options)  # type: ignore[arg-type]
    exported = ExportedOmniModel.from_folder(tmp_path / "m", ahead=False)
    model = exported.library.model
    batch = make_batch(12, seed=1, missing=0.3, lengths=True)
    arrays = as_arrays(batch.inputs, model["samples_per_token"])  # type: ignore[arg-type]
    route = routed.space.sample(batch.present, generator=torch.Generator().manual_seed(0))
    expected = costs(routed.space, route, costs.count_tokens(batch)).total
    dense = costs(routed.space, routed.space.dense(batch.present), costs.count_tokens(batch)).total
    for i, signature in enumerate(route_signatures(route, routed.space)):
        tokens = count_tokens(model, arrays, i)
        assert route_flops(model, signature, tokens) == pytest.approx(float(expected[i]))
        assert route_flops(model, dense_route(model, tokens), tokens) == pytest.approx(float(dense[i]))
