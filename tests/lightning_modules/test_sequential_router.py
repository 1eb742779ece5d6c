"""A sequential router learns to look at what is cheap first, and at what is dear only where the first is spoilt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import ComputeLevel, Modality, ModalityInput, OmniBatch, Tokens
from omni_lab.config.schema import RouterConfig
from omni_lab.fusion.cross_modal import FusionOutput
from omni_lab.lightning_modules.sequential_router import LitSequentialRouter, summaries_by_level
from omni_lab.model import OmniModel, OmniOutput
from omni_lab.routing.cost import CostModel
from omni_lab.routing.route import CrossModalPath, Route, RouteSpace
from omni_lab.routing.sequential import SequentialRouter

TEXT, IMAGE, AUDIO, VIDEO = Modality
LEVELS = (ComputeLevel.SKIP, ComputeLevel.TINY, ComputeLevel.FULL)
SPACE = RouteSpace(
    (TEXT, IMAGE, AUDIO), (CrossModalPath(TEXT, IMAGE), CrossModalPath(TEXT, AUDIO)), 1, {IMAGE: LEVELS, AUDIO: LEVELS}
)


class FourSigns(OmniModel):
    """A frozen network whose tokens show the answer, one of four, in the channel of its number; zeros show nothing."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.space = SPACE

    def encode_questions(self, batch: OmniBatch) -> dict[Modality, Tokens]:
        i = batch.inputs[TEXT]
        return {TEXT: Tokens(i.values, i.mask, entry_index=i.entry_index)}

    def forward(self, batch: OmniBatch, *, heads: list[str], route: Route) -> OmniOutput:  # type: ignore[override]
        logits = torch.zeros(len(batch), 4)
        for modality in (IMAGE, AUDIO):
            inputs = batch.inputs[modality]
            for level in LEVELS[1:]:
                values = inputs.values if level is ComputeLevel.FULL else inputs.lower_values[level]
                runs = (route.encoder_levels[:, modality.column] == level).float()[:, None]
                logits = logits + 8 * runs * values.mean(1)[inputs.entry_index][:, :4]
        return OmniOutput({"answer": logits}, {}, FusionOutput({}, ()))


def make_batch(size: int, seed: int) -> OmniBatch:
    """The tiny look at the image shows the answer in half of the samples, and the full one no more. Sound always does,
    in full."""
    rng = torch.Generator().manual_seed(seed)
    answers = torch.randint(4, (size,), generator=rng)
    shown = torch.nn.functional.one_hot(answers, 8).float()
    legible = (torch.rand(size, generator=rng) < 0.5).float()[:, None]
    rows = torch.arange(size)

    def tokens(full: Tensor, tiny: Tensor) -> ModalityInput:
        lower = {ComputeLevel.TINY: tiny[:, None]}
        return ModalityInput(full[:, None], torch.ones(size, 1).bool(), rows, lower)

    text = ModalityInput(torch.ones(size, 1, 8), torch.ones(size, 1).bool(), rows)
    inputs = {
        TEXT: text,
        IMAGE: tokens(shown * legible, shown * legible),
        AUDIO: tokens(shown, torch.zeros_like(shown)),
    }
    scores = torch.nn.functional.one_hot(answers, 4).float()
    targets = {"answer_scores": scores, "glances": torch.zeros(size, 4, 8)}
    return OmniBatch(inputs, ["answer"] * size, ["sign"] * size, [str(i) for i in range(size)], targets)


def make_module(**changes: Any) -> LitSequentialRouter:
    torch.manual_seed(0)
    coefs = torch.zeros(4, 4, 3)
    coefs[IMAGE.column, ComputeLevel.TINY, 0], coefs[IMAGE.column, ComputeLevel.FULL, 0] = 1e5, 4e6
    coefs[AUDIO.column, ComputeLevel.TINY, 0], coefs[AUDIO.column, ComputeLevel.FULL, 0] = 1e5, 6e6
    costs = CostModel(coefs, 8, 8, 4, False, {}, 1)
    settings = {"estimator": "sequential", "penalty": 0.5, "entropy_coef": 0.1, "learning_rate": 5e-3} | changes
    router = SequentialRouter(SPACE, dim=8, num_answers=4, hidden_dim=32)
    return LitSequentialRouter(FourSigns(), router, RouterConfig(**settings), costs=costs, glance_flops=0.0)


def train(module: LitSequentialRouter, steps: int) -> None:
    optimizer: Any = module.configure_optimizers()
    module.steps, module.log_dict, logged = steps, lambda *_, **__: None, []  # type: ignore[method-assign]
    for step in range(steps):
        type(module).global_step = property(lambda self, step=step: step)  # type: ignore[assignment,misc]
        loss = module.training_step(make_batch(32, step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logged.append(loss.item())
    assert all(torch.isfinite(torch.tensor(logged)))


def test_it_looks_at_the_cheap_one_and_listens_where_that_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LitSequentialRouter, "global_step", 0, raising=False)
    module = make_module()
    train(module, 250)
    batch = make_batch(200, 10_000)
    state, summaries = module.start(batch)
    with torch.no_grad():
        trajectory, _ = module.router.run(state, lambda s, m, level: summaries[s, m.column, level])
    levels = trajectory.route.encoder_levels
    legible = batch.inputs[IMAGE].values[:, 0].sum(1) > 0
    assert (levels[:, IMAGE.column] == ComputeLevel.TINY).float().mean() > 0.95
    assert (levels[legible, AUDIO.column] == ComputeLevel.FULL).float().mean() < 0.05
    assert (levels[~legible, AUDIO.column] == ComputeLevel.FULL).float().mean() > 0.95
    outcome = module.outcome(batch, trajectory)
    assert outcome.correct.mean() > 0.97 and outcome.cost.mean() < 0.4


def test_trajectories_of_one_batch_in_groups_cost_what_each_costs() -> None:
    module, batch = make_module(), make_batch(5, 0)
    state, summaries = module.start(batch)
    sample = torch.arange(5).repeat(3)
    look = lambda s, m, level: summaries[sample[s], m.column, level]  # noqa: E731
    trajectory, _ = module.router.run(state.repeat(3), look, greedy=False, generator=torch.Generator().manual_seed(0))
    outcome = module.outcome(batch, trajectory)
    tokens = module.costs.count_tokens(batch)
    dense = module.costs(SPACE, SPACE.dense(batch.present), tokens).total
    for i in range(15):
        ran = [(m, level) for m in (IMAGE, AUDIO) for level in LEVELS[1:] if trajectory.ran[i, m.column, level]]
        encoders = sum(float(module.costs.encoder_coefs[m.column, level, 0]) for m, level in ran)
        route = trajectory.route.select(torch.tensor([i]))
        rest = module.costs(SPACE, route, tokens[:1])
        expected = (
            encoders + (rest.total - rest.encoders).item() + trajectory.steps[i].item() * module.router.step_flops
        )
        assert outcome.cost[i].item() == pytest.approx(expected / dense[0].item(), rel=1e-4)


def test_summaries_are_means_of_tokens() -> None:
    batch = make_batch(4, 0)
    table = summaries_by_level(batch, SPACE, 8)
    assert torch.equal(table[:, AUDIO.column, ComputeLevel.FULL], batch.inputs[AUDIO].values[:, 0])
    assert not table[:, AUDIO.column, ComputeLevel.EARLY_EXIT].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "group"}, r"estimator must be one of \('sequential',\): got 'group'"),
        ({"penalty_conditioned": True}, "penalty_conditioned is True: the router's must be the same"),
    ],
)
def test_configurations_of_other_routers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(**changes)
