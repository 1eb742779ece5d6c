"""Outcome tables and the policies on them agree with the network itself, and baselines learn what there is to learn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from omni_lab.batch import ComputeLevel, Modality
from omni_lab.data.collate import collate
from omni_lab.evaluation import contenders
from omni_lab.evaluation.contenders import PolicySet
from omni_lab.evaluation.outcome_table import OutcomeTable, build_outcome_table, level_combinations
from omni_lab.evaluation.policies import PolicyEvaluator
from omni_lab.routing.cascade import Action
from omni_lab.routing.sequential import SequentialRouter, encoder_actions
from omni_lab.training.content_study import cascade_from_json, cascade_to_json
from omni_lab.training.recipes import Recipe, TrainedModel
from omni_lab.training.sequential_recipes import prepare_for_routing
from omni_lab.training.table_baselines import ONE_SHOT, plan_factors, sample_penalties, train_one_shot
from omni_lab.training.table_routers import TABLE_ESTIMATORS, StateLattice, train_on_table

IMAGE, AUDIO = Modality.IMAGE, Modality.AUDIO


@pytest.fixture
def network(world_recipe: Recipe) -> TrainedModel:
    model = replace(
        world_recipe.model,
        modalities=(Modality.TEXT, IMAGE, AUDIO),
        vision=replace(world_recipe.model.vision, tiny_channels=(4, 4, 4)),
        audio=replace(world_recipe.model.audio, tiny_channels=(4, 4, 4)),
        latent_bits=8,
    )
    recipe = replace(world_recipe, name="levels", model=model)
    data = recipe.data_module()
    torch.manual_seed(1)
    built = TrainedModel(recipe.build_model(data).eval(), data, {}, "new")
    prepare_for_routing(built, "test")
    return built


@pytest.fixture
def evaluator(network: TrainedModel) -> PolicyEvaluator:
    return PolicyEvaluator(network.model, network.data.dataset("test"))


@pytest.fixture
def table(network: TrainedModel, evaluator: PolicyEvaluator) -> OutcomeTable:
    return build_outcome_table(network.model, network.data.dataset("test"), questions=evaluator.order, name=None)


def test_every_combination_of_levels_is_a_plan(network: TrainedModel) -> None:
    plans = level_combinations(network.model.space)
    assert len(plans) == 9 + 8, "with all paths; without, where there is a medium"
    assert len({(tuple(p.encoder_levels.tolist()), bool(p.path_mask.all())) for p in plans}) == len(plans)


def test_the_table_holds_what_the_network_does(
    table: OutcomeTable, evaluator: PolicyEvaluator, network: TrainedModel
) -> None:
    batch = collate([network.data.dataset("test")[int(i)] for i in evaluator.order])
    for index in range(len(table.plans)):
        route = table.plans[index].route(evaluator.space, evaluator.present)
        with torch.no_grad():
            logits = network.model(batch, heads=["answer"], route=route).head_outputs["answer"]
        assert torch.allclose(table.logits[:, index], logits, atol=1e-5)
        assert torch.equal(
            table.correct[:, index], table.scores.gather(1, logits.argmax(1, keepdim=True))[:, 0].double()
        )
        expected, choice = evaluator.evaluate(route), torch.full((len(table),), index)
        assert table.outcome(choice, extra_flops=5.0).flops == pytest.approx(expected.flops + 5)
        assert table.outcome(choice).cross_modal_flops == pytest.approx(expected.cross_modal_flops)
    assert table.plan_index(table.plans[3].encoder_levels) == 3
    with pytest.raises(ValueError, match=r"levels must be those of a plan: got \[3, 2, 0, 0\]"):
        table.plan_index(torch.tensor([3, 2, 0, 0]))
    some = table.select(np.array([2, 0]))
    assert len(some) == 2 and torch.equal(some.logits, table.logits[[2, 0]]) and some.scenes[0] == table.scenes[2]


def test_what_the_table_knows_is_not_run_again(
    table: OutcomeTable, evaluator: PolicyEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = table.plans[4].route(evaluator.space, evaluator.present)
    expected = evaluator.evaluate(route).correct
    fresh = PolicyEvaluator(evaluator.model, evaluator.dataset)
    fresh.remember(route, table.correct[:, 4].numpy())
    monkeypatch.setattr(type(fresh.model), "forward", None)
    assert np.array_equal(fresh.evaluate(route).correct, expected)


def test_summaries_are_mean_tokens(table: OutcomeTable, evaluator: PolicyEvaluator, network: TrainedModel) -> None:
    batch = collate([network.data.dataset("test")[int(i)] for i in evaluator.order[:4]])
    for level in (ComputeLevel.TINY, ComputeLevel.FULL):
        inputs = batch.inputs[IMAGE]
        tokens = network.model.encode_entries(level, IMAGE, inputs, inputs.entry_index)
        assert torch.allclose(table.summaries[:4, IMAGE.column, level], tokens.mean_pool(), atol=1e-6)


def outcome_of(policies: PolicySet, index: int) -> tuple[float, float]:
    return float(policies.correct[index].mean()), float(policies.flops[index].mean())


def test_static_family_and_random_policies(table: OutcomeTable) -> None:
    dense = table.outcome(torch.full((len(table),), contenders.dense_plan(table)))
    assert dense.flops == pytest.approx(table.dense_flops.numpy()) and dense.cost == pytest.approx(1)
    free, cheap = contenders.family_choices(table, [0.0, 1000.0])
    assert {*free} == {*table.families}
    for family in free:
        rows = torch.from_numpy(np.flatnonzero(table.families == family))
        means = table.answer_prob[rows].mean(0)
        assert means[free[family]] == means.max()
        assert torch.equal(table.cost[rows, cheap[family]], table.cost[rows].amin(1))
    mixed = [table.outcome(contenders.mix_at_random(table, p)).cost for p in (0.0, 0.5, 1.0)]
    assert mixed[0] < mixed[1] < mixed[2] == pytest.approx(1)
    best = table.outcome(contenders.oracle_policy(table))
    assert best.accuracy == float((table.correct > 0).any(1).double().mean())


def test_the_cheapest_that_keeps_enough_is_chosen() -> None:
    rng = np.random.default_rng(0)
    dense = (rng.random(2000) < 0.8).astype(float)
    worse = np.where(rng.random(2000) < 0.05, 0, dense)
    correct, flops = np.stack([dense, dense, worse]), np.array([[3.0], [2], [1]]) * np.ones(2000)
    policies, scenes = PolicySet(correct, flops, flops), np.arange(2000) // 4
    assert contenders.cheapest_policy(0.99, policies, dense, scenes) == 1
    assert contenders.cheapest_policy(0.9, policies, dense, scenes) == 2
    kept = contenders.kept_at_least(correct, dense, scenes)
    assert kept[0] == kept[1] == 1 and kept[2] < worse.mean() / dense.mean() < 1
    assert contenders.cheapest_policy(1.5, policies, dense, scenes) == 0, "that which keeps most"


ACTIONS: list[Action] = [(m, level) for m in (IMAGE, AUDIO) for level in (ComputeLevel.TINY, ComputeLevel.FULL)]


def test_cascades_run_as_their_stages_say(table: OutcomeTable, network: TrainedModel) -> None:
    router = SequentialRouter(network.model.space, dim=table.question.shape[1], num_answers=table.scores.shape[1])
    found = contenders.confidence_cascades(table, ACTIONS, [0.001, 0.1, 10.0], fraction=0.9, early=router)
    outcomes = [contenders.cascade_outcome(table, fitted, router) for fitted in found]
    assert len(found) == len({*found}) > 1
    points = sorted((outcome.cost, outcome.accuracy) for outcome in outcomes)
    assert (np.diff([accuracy for _, accuracy in points[:-1]]) >= -1e-9).all() or len(points) < 3, "a front"
    assert all(len(fitted.cascade.thresholds) == len(fitted.cascade.order) - 1 for fitted in found)
    assert all(cascade_from_json(json.loads(json.dumps(cascade_to_json(fitted)))) == fitted for fitted in found)
    stages = contenders.cascade_stages(table, ((IMAGE, ComputeLevel.TINY), (IMAGE, ComputeLevel.FULL)))
    both = stages.encoder_cost[:, 1] * table.dense_flops.numpy()
    alone = [table.plan_index(torch.tensor([3, level, 0, 0])) for level in (0, 1, 3)]
    nothing, tiny, full = (table.encoder_flops[:, i].numpy() for i in alone)
    assert both == pytest.approx(full + tiny - nothing), "what ran before is charged"


def test_shuffled_questions_stay_in_their_family(table: OutcomeTable) -> None:
    order = contenders.shuffle_within(table.families, seed=3)
    assert sorted(order) == [*range(len(table))] and (table.families[order] == table.families).all()
    assert (order != np.arange(len(table))).any()


@pytest.fixture
def toy(table: OutcomeTable) -> Iterator[OutcomeTable]:
    """Where the glance at the image says whether the cheapest plan is right; the dense one always is."""
    rng = np.random.default_rng(1)
    rows = rng.integers(len(table), size=400)
    toy, legible = table.select(rows), torch.from_numpy(rng.random(400) < 0.5)
    answers = torch.zeros(400, toy.scores.shape[1])
    answers[:, 1] = 1
    logits = torch.zeros_like(toy.logits)
    logits[:, :, 0] = 4.0
    tiny = toy.plan_index(torch.tensor([3, 1, 0, 0]))
    for plan, right in ((contenders.dense_plan(toy), torch.ones(400, dtype=torch.bool)), (tiny, legible)):
        logits[right, plan, 0], logits[right, plan, 1] = 0.0, 4.0
    glances = torch.zeros_like(toy.glances)
    glances[:, IMAGE.column, 0] = legible.float()
    everywhere = torch.tensor([True, True, True, False]).expand(400, -1)
    mask = torch.tensor([True, False, False, False]).expand(400, -1)
    same = {"question": toy.question[:1].expand(400, -1), "present": everywhere, "question_mask": mask}
    yield replace(toy, logits=logits, scores=answers, glances=glances, **same)


@pytest.mark.parametrize("estimator", ONE_SHOT)
def test_one_shot_routers_read_the_glance(toy: OutcomeTable, estimator: str) -> None:
    trained = train_one_shot(toy, estimator, steps=1000)
    choice = trained.choose(toy, 0.5)
    outcome, legible = toy.outcome(choice), toy.glances[:, IMAGE.column, 0] > 0
    assert outcome.accuracy > 0.9
    cost = toy.cost[torch.arange(len(toy)), choice]
    if estimator in ("expected", "supervised"):  # by backpropagation through a gate, so few steps teach dense alone
        assert cost[legible].mean() < 0.7 * cost[~legible].mean()
    if estimator == "supervised":
        again = train_one_shot(toy, estimator, steps=1000).choose(toy, 0.5)
        assert torch.equal(choice, again)


def test_another_estimator_is_an_error(toy: OutcomeTable) -> None:
    with pytest.raises(ValueError, match=r"estimator must be one of .*: got 'chance'"):
        train_one_shot(toy, "chance")


def test_plans_are_products_of_decisions(table: OutcomeTable) -> None:
    factors = torch.stack(plan_factors(table))
    assert len(factors.T.unique(dim=0)) == len(table.plans) and factors.amax(1).tolist() == [2, 2, 1]


@pytest.mark.parametrize("estimator", TABLE_ESTIMATORS)
def test_a_sequential_router_looks_only_where_it_pays(toy: OutcomeTable, network: TrainedModel, estimator: str) -> None:
    router = SequentialRouter(
        network.model.space,
        dim=toy.question.shape[1],
        num_answers=toy.scores.shape[1],
        hidden_dim=16,
        penalty_conditioned=True,
    )
    train_on_table(router, toy, estimator, step_cost=0.0, steps=1000, learning_rate=2e-3, entropy_coef=0.1)
    state = contenders.initial_state_of(router.glance, toy)

    def look(samples: torch.Tensor, modality: Modality, level: ComputeLevel) -> torch.Tensor:
        return toy.summaries[samples, modality.column, level]

    with torch.no_grad():
        trajectory, _ = router.run(state, look, penalty=torch.full((len(toy),), 0.5))
    legible = toy.glances[:, IMAGE.column, 0] > 0
    levels = trajectory.route.encoder_levels
    full = (levels[:, [IMAGE.column, AUDIO.column]] == ComputeLevel.FULL).all(1)
    assert full[~legible].float().mean() > 0.9 and full[legible].float().mean() < 0.1
    assert (levels[legible, IMAGE.column] == ComputeLevel.TINY).float().mean() > 0.9


def test_penalties_cover_their_range() -> None:
    torch.manual_seed(0)
    sampled = sample_penalties(1000)
    assert sampled.min() > 0.0019 and sampled.max() < 3.3 and 0.05 < sampled.median() < 0.15


def test_sequential_policies_are_those_that_run_for_real(
    network: TrainedModel, evaluator: PolicyEvaluator, table: OutcomeTable
) -> None:
    router = SequentialRouter(
        network.model.space,
        dim=network.model.fusion.layers[0].cross["text_from_image"].attention.dim,
        num_answers=len(network.data.store.answers),
        penalty_conditioned=True,
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(router.action_head.weight, std=30.0)  # decisions that differ
    found, routes = contenders.sequential_outcomes(router, evaluator, table, [0.1, 1.0], glances=7.0)
    for index, penalty in enumerate((0.1, 1.0)):
        outcome, trajectory = evaluator.evaluate_sequential(router, glances=7.0, penalty=penalty)
        assert torch.equal(trajectory.route.signature(), routes[index].signature())
        assert found[index].correct.tolist() == outcome.correct.tolist()
        assert found[index].flops == pytest.approx(outcome.flops)
        assert found[index].cross_modal_flops == pytest.approx(outcome.cross_modal_flops)
    assert len(trajectory.steps.unique()) > 1 and encoder_actions(network.model.space) == router.actions


def test_the_lattice_holds_every_state_and_what_it_costs(table: OutcomeTable, network: TrainedModel) -> None:
    router = SequentialRouter(network.model.space, dim=table.question.shape[1], num_answers=table.scores.shape[1])
    lattice, rows = StateLattice(router, table, step_cost=0.01), torch.arange(5)
    assert len(lattice) == 9 and lattice.legal[:, 0].all() and lattice.legal[-1].sum() == 1, "nothing above full"
    state = lattice.states_of(rows)
    assert torch.equal(state.levels.unflatten(0, (9, 5))[:, 0], lattice.levels)
    legal = router.legal_actions(state).unflatten(0, (9, 5))
    assert torch.equal(legal, lattice.possible(rows)), "as the router says"
    for s in range(9):
        for k, (modality, level) in enumerate(router.actions, start=1):
            if lattice.legal[s, k]:
                expected = lattice.levels[s].clone()
                expected[modality.column] = level
                assert torch.equal(lattice.levels[lattice.following[s, k]], expected)
    tiny = 1 + router.actions.index((IMAGE, ComputeLevel.TINY))
    plans = [table.plan_index(torch.tensor([3, level, 0, 0])) for level in (0, 1)]
    flops = table.encoder_flops[:, plans[1]] - table.encoder_flops[:, plans[0]]
    assert lattice.action_costs[:, tiny].numpy() == pytest.approx((flops / table.dense_flops).numpy() + 0.01)
    logits = router(state)
    closed = logits._replace(path_logits=torch.full_like(logits.path_logits, -30.0))
    penalty, last = torch.full((5,), 0.5), torch.tensor([3, 3, 3, 0])
    plan = table.plan_index(last, paths=False)
    cost = table.fusion_flops[:5, plan] / table.dense_flops[:5]
    expected = table.answer_prob[:5, plan] - 0.5 * cost
    assert torch.allclose(lattice.stopping_values(closed, rows, penalty)[-1].double(), expected.double(), atol=1e-5)


def test_another_table_estimator_is_an_error(toy: OutcomeTable, network: TrainedModel) -> None:
    router = SequentialRouter(network.model.space, dim=toy.question.shape[1], num_answers=toy.scores.shape[1])
    with pytest.raises(ValueError, match=r"estimator must be one of .*: got 'chance'"):
        train_on_table(router, toy, "chance", step_cost=0.0, steps=1, learning_rate=1e-3)
