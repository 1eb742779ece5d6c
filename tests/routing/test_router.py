from __future__ import annotations

import itertools
import math

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.model import OmniModel
from omni_lab.routing.policy_gradient import CostPenalty, group_advantages, policy_loss, self_critical_advantages
from omni_lab.routing.route import ComputeLevel, CrossModalPath, RouteSpace
from omni_lab.routing.router import Router, RouterLogits, penalty_knots
from tests.routing.conftest import MakeBatch

TEXT, IMAGE, AUDIO, VIDEO = Modality
SMALL = RouteSpace(
    (TEXT, IMAGE), (CrossModalPath(TEXT, IMAGE), CrossModalPath(IMAGE, TEXT)), 1, {IMAGE: tuple(ComputeLevel)}
)
BOTH = torch.tensor([[True, True, False, False]])


def logits_of(levels: list[float], paths: list[float]) -> RouterLogits:
    """Logits for the levels of the image, and for the two paths."""
    table = torch.zeros(1, 4, 4)
    table[0, IMAGE.column] = torch.tensor(levels)
    return RouterLogits(table, torch.tensor(paths)[None, None])


def test_all_routes_add_up_to_one() -> None:
    """Every combination of decisions, with the probability that the router gives it."""
    router = Router(SMALL, dim=4)
    logits = logits_of([0.3, -0.2, 0.4, 1.0], [0.5, -1.0])
    totals: dict[tuple[int, ...], float] = {}
    for level in ComputeLevel:
        for bits in itertools.product([False, True], repeat=2):
            levels = torch.tensor([[3, int(level), 0, 0]])
            out = router.evaluate_actions(logits, levels, torch.tensor(bits)[None, None], BOTH)
            key = tuple(out.route.signature()[0].tolist())
            chance = math.exp(out.log_prob.item())
            assert totals.setdefault(key, chance) == pytest.approx(chance), "a route has one probability"
    assert len(totals) == 1 + 3 * 4, "without the image no path is a decision"
    assert sum(totals.values()) == pytest.approx(1.0)


def test_samples_are_as_likely_as_they_say() -> None:
    router = Router(SMALL, dim=4)
    single = logits_of([0.3, -0.2, 0.4, 1.0], [0.5, -1.0])
    many = RouterLogits(single.level_logits.expand(20_000, -1, -1), single.path_logits.expand(20_000, -1, -1))
    present = BOTH.expand(20_000, -1)
    out = router.sample(many, present, generator=torch.Generator().manual_seed(0))
    keys, index, counts = out.route.signature().unique(dim=0, return_inverse=True, return_counts=True)
    for i in range(len(keys)):
        expected = out.log_prob[index == i][0].exp().item()
        assert counts[i].item() / 20_000 == pytest.approx(expected, abs=0.012)


def test_the_likeliest_is_chosen_greedily() -> None:
    router = Router(SMALL, dim=4)
    route = router.greedy(logits_of([0.0, 0.5, 2.0, 1.0], [0.1, -0.1]), BOTH)
    assert route.encoder_levels[0].tolist() == [
        ComputeLevel.FULL,
        ComputeLevel.EARLY_EXIT,
        ComputeLevel.SKIP,
        ComputeLevel.SKIP,
    ]
    assert SMALL.path_mask(route)[0, 0].tolist() == [True, False]


def test_the_question_is_always_encoded_in_full(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(40, missing=0.5)
    present, space = batch.present, routed.space
    route = space.sample(present, generator=torch.Generator().manual_seed(0))
    question_mask = space.question_mask(present)
    assert (question_mask.sum(1) == 1).all() and (question_mask <= present).all()
    assert (route.encoder_levels[question_mask] == ComputeLevel.FULL).all()
    assert (question_mask[present[:, TEXT.column], TEXT.column]).all(), "a text, where there is one"
    spoken = ~present[:, TEXT.column] & present[:, AUDIO.column]
    assert spoken.any() and question_mask[spoken, AUDIO.column].all()
    space.check(route, present, batch.ids)


def test_a_sample_with_one_modality_has_one_route(routed: OmniModel) -> None:
    alone = torch.tensor([[False, True, False, False]])
    routes = [routed.space.sample(alone, generator=torch.Generator().manual_seed(s)) for s in range(20)]
    assert len({tuple(r.signature()[0].tolist()) for r in routes}) == 1
    assert not routed.space.path_mask(routes[0]).any()
    router = Router(routed.space, dim=16)
    decided = router.sample(router({IMAGE: torch.randn(1, 16)}, alone), alone)
    assert decided.log_prob.item() == decided.entropy.item() == 0.0


def test_a_penalty_belongs_to_a_conditioned_router(routed: OmniModel) -> None:
    question, present, penalty = {TEXT: torch.randn(2, 16)}, torch.ones(2, 4, dtype=torch.bool), torch.rand(2)
    plain, conditioned = Router(routed.space, dim=16), Router(routed.space, dim=16, penalty_conditioned=True)
    with pytest.raises(ValueError, match="trained with one penalty"):
        plain(question, present, penalty)
    with pytest.raises(ValueError, match="trained with one penalty: it takes neither .* a budget"):
        plain.penalty_for_budget(0.5)
    with pytest.raises(ValueError, match="conditioned on a penalty: pass one"):
        conditioned(question, present)
    with pytest.raises(ValueError, match="not measured yet: train it"):
        conditioned.penalty_for_budget(0.5)


def test_a_budget_finds_its_penalty(routed: OmniModel) -> None:
    router = Router(routed.space, dim=16, penalty_conditioned=True)
    router.costs.copy_(torch.tensor([0.9, 0.8, 0.82, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]))
    knots = penalty_knots()
    assert knots[[0, -1]].tolist() == pytest.approx([0.0125, 3.2])
    assert router.penalty_for_budget(0.5) == pytest.approx(knots[4].item(), rel=1e-4)
    assert router.penalty_for_budget(0.1) == pytest.approx(3.2, rel=1e-4)
    between = router.penalty_for_budget(0.35)
    assert between == pytest.approx((knots[5] * knots[6]).sqrt().item(), rel=1e-4), "half-way, on a logarithmic scale"
    assert router.penalty_for_budget(1.0) == pytest.approx(0.0125, rel=1e-4), "it never spends that much"
    for unmet in (0.05, math.nan):
        with pytest.raises(ValueError, match=f"no penalty meets a budget of {unmet} .*: the least is 0.100"):
            router.penalty_for_budget(unmet)


def test_a_conditioned_router_reads_its_penalty(routed: OmniModel) -> None:
    """A knot has weights of its own; between two they are interpolated; beyond the ends nothing changes."""
    router = Router(routed.space, dim=16, penalty_conditioned=True)
    torch.nn.init.normal_(router.logit_head.weight)
    question, present = {TEXT: torch.randn(1, 16)}, torch.ones(1, 4, dtype=torch.bool)

    def hidden(penalty: torch.Tensor) -> torch.Tensor:
        inputs = []
        hook = router.penalty_gain.register_forward_hook(lambda _, args, output: inputs.append(args[0]))
        router(question, present, penalty[None])
        hook.remove()
        return inputs[0][0]

    knots = penalty_knots()
    assert torch.allclose(hidden(knots[3]), torch.eye(9)[3], atol=1e-5)
    assert torch.allclose(hidden((knots[3] * knots[4]).sqrt()), (torch.eye(9)[3] + torch.eye(9)[4]) / 2, atol=1e-5)
    assert torch.equal(hidden(torch.tensor(100.0)), torch.eye(9)[8])


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.5], [0.0, 0.5], [0.5, 0.5]])
    expected = (rewards[:, 0] - 0.5) / (0.5 + 1e-3)
    found = group_advantages(rewards)
    assert torch.allclose(found[:, 0], expected) and torch.equal(found[:, 1], torch.zeros(3))
    with pytest.raises(ValueError, match="at least two routes: got 1"):
        group_advantages(rewards[:1])
    found = self_critical_advantages(rewards, torch.tensor([0.25, 0.5]))
    assert found[0].tolist() == pytest.approx([0.75 / 0.501, 0.0])


def test_the_gradient_is_that_of_the_expected_reward() -> None:
    """Two paths whose rewards are known. The mean gradient of many samples against the exact one."""
    router = Router(SMALL, dim=4)
    value = torch.tensor([0.2, -0.7])  # of each path that runs

    def expected(logits: torch.Tensor) -> torch.Tensor:
        return (logits.sigmoid() * value).sum()

    logits = torch.tensor([0.4, -0.3], requires_grad=True)
    (exact,) = torch.autograd.grad(expected(logits), logits)
    table = torch.zeros(4000, 4, 4)
    table[:, IMAGE.column] = torch.tensor([-50.0, -50.0, -50.0, 50.0])
    present = BOTH.expand(4000, -1)
    rng = torch.Generator().manual_seed(0)
    sampled = [router.sample(RouterLogits(table, logits.expand(4000, 1, 2)), present, generator=rng) for _ in range(8)]
    rewards = torch.stack([(SMALL.path_mask(t.route)[:, 0].float() * value).sum(1) for t in sampled])
    advantages = (rewards - rewards.mean(0)) * 8 / 7  # a baseline that holds the sample itself shrinks the gradient
    log_prob = torch.stack([t.log_prob for t in sampled])
    loss = policy_loss(log_prob, advantages, torch.zeros_like(rewards), entropy_coef=0.0)
    (found,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(-found, exact, atol=0.006)


def test_a_penalty_finds_the_budget() -> None:
    """The cost falls as the penalty rises."""
    penalty = CostPenalty(weight=0.0, anneal=1, budget=0.3, dual_lr=0.2)
    for step in range(400):
        penalty.observe(math.exp(-penalty.at(step)))
    assert math.exp(-penalty.weight) == pytest.approx(0.3, abs=0.01)
    growing = CostPenalty(weight=0.5, anneal=10)
    assert [growing.at(u) for u in (0, 4, 9, 99)] == pytest.approx([0.05, 0.25, 0.5, 0.5])
    with pytest.raises(ValueError, match="above 0 and at most 1: got 1.5"):
        CostPenalty(weight=0.1, anneal=1, budget=1.5)
