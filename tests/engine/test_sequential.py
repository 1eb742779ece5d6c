"""An exported model looks, decides and answers as the model does under its sequential router."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.build import build_model
from omni_lab.compression.export import Exporter
from omni_lab.compression.parts import AssemblySpec, split_model
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.compression.sequential import split_sequential_router
from omni_lab.engine.runtime import ExportedOmniModel
from omni_lab.engine.sessions import Session
from omni_lab.model import OmniModel
from omni_lab.rollout import answer_sequentially
from omni_lab.routing.sequential import SequentialRouter
from tests.conftest import TINY_WORLD
from tests.engine.conftest import ANSWERS
from tests.routing.conftest import MakeBatch

TEXT, IMAGE, AUDIO, VIDEO = Modality
POLICY = PrecisionPolicy.uniform(Precision.FP32)


@pytest.fixture(scope="module")
def model() -> OmniModel:
    tiny = TINY_WORLD.model
    assert tiny.video is not None
    config = replace(
        tiny,
        vision=replace(tiny.vision, tiny_channels=(4, 4, 4)),
        audio=replace(tiny.audio, tiny_channels=(4, 4)),
        video=replace(tiny.video, tiny_channels=(4, 4, 4)),
        latent_bits=None,
    )
    torch.manual_seed(0)
    return build_model(config, vocab_size=50, answers=7).eval()


@pytest.fixture(scope="module")
def router(model: OmniModel, make_batch: MakeBatch) -> SequentialRouter:
    torch.manual_seed(2)
    made = SequentialRouter(model.space, dim=16, num_answers=7, penalty_conditioned=True)
    for head in (made.action_head, made.path_head, made.penalty_gain):
        torch.nn.init.normal_(head.weight, std=3.0)  # decisions that differ from sample to sample
    batch = make_batch(40)
    made.glance.fit(made.glance.raw(batch), batch.present)
    return made.eval()


@pytest.fixture(scope="module")
def folder(
    model: OmniModel, router: SequentialRouter, make_batch: MakeBatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    parts, out = split_model(model, make_batch(2)), tmp_path_factory.mktemp("exported") / "m"
    raw = {p.owner: p.example for p in parts if p.owner and p.name == f"encoder.{p.owner}"}
    parts += split_sequential_router(router, raw)
    spec = AssemblySpec.from_model(model)
    Exporter().write(out, parts, spec, policy=POLICY, source="abc", answers=ANSWERS, router=router)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_it_looks_and_answers_as_the_model_does(
    model: OmniModel, router: SequentialRouter, folder: Path, make_batch: MakeBatch, workers: int
) -> None:
    exported = ExportedOmniModel.from_folder(folder, background=False, workers=workers)
    actions = set()
    for seed in range(5):
        batch = make_batch(14, seed=seed, share=seed % 2 == 1, missing=0.25 * (seed > 1), lengths=True)
        output, trajectory = answer_sequentially(model, router, batch, penalty=0.3)
        found = exported.select_route(batch.inputs, penalty=0.3)
        assert (found.levels == trajectory.route.encoder_levels.numpy()).all()
        assert (found.paths == model.space.path_mask(trajectory.route).numpy()).all()
        assert {(m, level) for m, level, asked in found.tokens if not asked} <= {*router.actions}
        actions |= {(m, level) for m, level, _ in found.tokens}
        expected = output.head_outputs["answer"].numpy()
        assert np.allclose(exported.answer(batch.inputs, penalty=0.3), expected, atol=1e-3)
        dense = model(batch, heads=["answer"]).head_outputs["answer"].detach().numpy()
        assert np.allclose(exported.run(batch.inputs), dense, atol=1e-3)
    assert {*router.actions} <= actions, "every encoder ran at every level"
    exported.pool.close()


@pytest.mark.slow
def test_one_question_takes_a_call_for_each_step_and_one_to_answer(
    model: OmniModel,
    router: SequentialRouter,
    folder: Path,
    make_batch: MakeBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported = ExportedOmniModel.from_folder(folder, background=False)
    calls: list[int] = []
    run = Session.__call__

    def counted(self: Session, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append(1)
        return run(self, feed)

    monkeypatch.setattr(Session, "__call__", counted)
    batch, steps = make_batch(10, seed=3), set()
    for i in range(10):
        one = batch.select(torch.tensor([i]))
        trajectory = answer_sequentially(model, router, one, penalty=0.3)[1]
        calls.clear()
        exported.answer(one.inputs, penalty=0.3)
        assert len(calls) == int(trajectory.steps) + 1
        steps.add(len(calls))
    assert len(steps) > 1
    exported.pool.close()


@pytest.mark.slow
def test_what_it_is_conditioned_on_must_be_given(folder: Path, make_batch: MakeBatch) -> None:
    exported, batch = ExportedOmniModel.from_folder(folder), make_batch(1)
    with pytest.raises(ValueError, match="pass a budget, or a penalty"):
        exported.answer(batch.inputs)
    with pytest.raises(ValueError, match="was not measured: pass a penalty, not a budget"):
        exported.answer(batch.inputs, budget=0.5)
    blank = {m: replace(i, values=torch.zeros_like(i.values)) if m != TEXT else i for m, i in batch.inputs.items()}
    assert np.isfinite(exported.answer(blank, penalty=0.3)).all(), "black, silent and still"
    exported.pool.close()
