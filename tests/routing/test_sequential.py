from __future__ import annotations

import pytest
import torch

from omni_lab.batch import ComputeLevel, Modality
from omni_lab.routing.policy_gradient import centred_advantages
from omni_lab.routing.route import CrossModalPath, RouteSpace
from omni_lab.routing.sequential import RouterState, SequentialRouter, check_actions, choose

TEXT, IMAGE, AUDIO, VIDEO = Modality
LEVELS = (ComputeLevel.SKIP, ComputeLevel.TINY, ComputeLevel.FULL)
SPACE = RouteSpace(
    (TEXT, IMAGE, AUDIO),
    (CrossModalPath(TEXT, IMAGE), CrossModalPath(TEXT, AUDIO)),
    depth=1,
    encoder_levels={IMAGE: LEVELS, AUDIO: LEVELS},
)
DIM = 8


def make_router(**options: bool) -> SequentialRouter:
    torch.manual_seed(0)
    return SequentialRouter(SPACE, dim=DIM, num_answers=5, **options)


def make_state(size: int = 6, *, without: Modality | None = None) -> RouterState:
    present = torch.tensor([[True, True, True, False]]).repeat(size, 1)
    if without is not None:
        present[:, without.column] = False
    rng = torch.Generator().manual_seed(1)
    question = torch.randn(size, DIM, generator=rng)
    return RouterState.initial(question, present, SPACE.question_mask(present), torch.zeros(size, 4, 8))


def found(samples: torch.Tensor, modality: Modality, level: ComputeLevel) -> torch.Tensor:
    return torch.ones(len(samples), DIM) * (modality.column + int(level))


def prefer(router: SequentialRouter, *order: int) -> SequentialRouter:
    """Actions in this order, while they are legal."""
    with torch.no_grad():
        router.action_head.bias.fill_(-50.0)
        for rank, k in enumerate(order):
            router.action_head.bias[k] = 50.0 - rank
    return router


def test_legal_actions_only_climb() -> None:
    router, state = make_router(), make_state(2)
    assert router.actions == [(IMAGE, LEVELS[1]), (IMAGE, LEVELS[2]), (AUDIO, LEVELS[1]), (AUDIO, LEVELS[2])]
    assert router.legal_actions(state).all()
    after = state.after(torch.tensor([0]), IMAGE, ComputeLevel.FULL, torch.ones(1, DIM))
    assert router.legal_actions(after).tolist() == [[True, False, False, True, True], [True] * 5]
    assert not state.ran[0, IMAGE.column].any(), "the state before is untouched"
    tiny = state.after(torch.tensor([1]), AUDIO, ComputeLevel.TINY, torch.ones(1, DIM))
    assert router.legal_actions(tiny)[1].tolist() == [True, True, True, False, True]
    assert router.legal_actions(make_state(1, without=IMAGE)).tolist() == [[True, False, False, True, True]]


def test_a_spoken_question_is_no_action() -> None:
    state = make_state(1, without=TEXT)
    assert state.levels[0].tolist() == [0, 0, int(ComputeLevel.FULL), 0]
    assert make_router().legal_actions(state).tolist() == [[True, True, True, False, False]]


def test_what_is_preferred_runs_and_nothing_else() -> None:
    router, calls = prefer(make_router(), 1, 4, 0), []

    def look(samples: torch.Tensor, modality: Modality, level: ComputeLevel) -> torch.Tensor:
        calls.append((len(samples), modality, level))
        return found(samples, modality, level)

    trajectory, state = router.run(make_state(), look)
    assert calls == [(6, IMAGE, ComputeLevel.TINY), (6, AUDIO, ComputeLevel.FULL)]
    assert trajectory.steps.tolist() == [3] * 6
    assert trajectory.route.encoder_levels.tolist() == [[3, 1, 3, 0]] * 6
    assert trajectory.ran[0].nonzero().tolist() == [[0, 3], [1, 1], [2, 3]]
    assert trajectory.route.interaction_mask[0, 0, TEXT.column].tolist() == [True, True, True, False]
    assert torch.equal(state.summaries[:, IMAGE.column], found(torch.arange(6), IMAGE, ComputeLevel.TINY))
    assert trajectory.log_prob.abs().max() < 1, "greedy decisions are likely ones"


def test_a_tiny_look_then_a_full_one_is_remembered() -> None:
    trajectory, state = prefer(make_router(), 1, 2, 0).run(make_state(2), found)
    assert trajectory.route.encoder_levels[0].tolist() == [3, 3, 0, 0]
    assert trajectory.ran[0, IMAGE.column].tolist() == [False, True, False, True], "both are paid for"
    assert torch.equal(state.summaries[0, IMAGE.column], found(torch.arange(1), IMAGE, ComputeLevel.FULL)[0])


def test_stopping_at_once_is_the_one_shot_router() -> None:
    trajectory, _ = prefer(make_router(), 0).run(make_state(3), found)
    assert trajectory.steps.tolist() == [1] * 3
    assert not trajectory.route.encoder_levels[:, 1:].any() and not SPACE.path_mask(trajectory.route).any()


@pytest.mark.parametrize("seed", range(5))
def test_sampled_trajectories_are_legal_and_their_probability_is_that_of_the_policy(seed: int) -> None:
    """The frequency of each set of levels, among many samples, is the mean of exp(log_prob) over those that have it."""
    router = make_router()
    torch.nn.init.normal_(router.action_head.weight, std=0.5, generator=torch.Generator().manual_seed(seed))
    state = make_state(1).repeat(4000)
    rng = torch.Generator().manual_seed(seed)
    trajectory, _ = router.run(state, found, greedy=False, generator=rng)
    SPACE.check(trajectory.route, state.present, ["x"] * 4000)
    assert trajectory.steps.max() <= 5
    assert torch.equal(trajectory.route.encoder_levels, (trajectory.ran * torch.arange(4)).amax(2))
    at_once = trajectory.steps == 1
    expected = trajectory.log_prob[at_once].exp().mean().item()
    assert at_once.float().mean().item() == pytest.approx(expected, abs=0.03)


def test_the_policy_gradient_reaches_the_policy_and_not_the_early_head() -> None:
    router = make_router()
    trajectory, state = router.run(make_state(), found, greedy=False)
    trajectory.log_prob.sum().backward()
    early = [*router.early_proj.parameters(), *router.early_head.parameters()]
    assert all(p.grad is None for p in early)
    assert router.action_head.weight.grad is not None and router.action_head.weight.grad.abs().sum() > 0
    router.zero_grad()
    router.early_answer(state).sum().backward()
    assert {id(p) for p in router.parameters() if p.grad is not None} <= {id(p) for p in early}
    assert router.early_head.weight.grad is not None


def test_the_early_head_sees_what_ran_only() -> None:
    router, state = make_router(), make_state(1)
    before = router.early_answer(state)
    after = state.after(torch.tensor([0]), IMAGE, ComputeLevel.TINY, torch.arange(8.0)[None])
    assert not torch.allclose(before, router.early_answer(after))


def test_a_penalty_is_read_if_the_router_takes_one() -> None:
    conditioned, state = make_router(penalty_conditioned=True), make_state(2)
    torch.nn.init.normal_(conditioned.action_head.weight)
    torch.nn.init.normal_(conditioned.penalty_gain.weight)
    low, high = (conditioned(state, torch.full((2,), p)).action_logits for p in (0.02, 2.0))
    assert not torch.allclose(low, high)
    with pytest.raises(ValueError, match="conditioned on a penalty: pass one"):
        conditioned(state)
    with pytest.raises(ValueError, match="trained with one penalty"):
        make_router()(state, torch.ones(2))


def test_a_router_of_another_action_space_is_refused() -> None:
    other = RouteSpace(SPACE.modalities, SPACE.paths, 1, {IMAGE: LEVELS})
    with pytest.raises(ValueError, match=r"image tiny.*audio tiny.*cannot route a model with .*'audio full'\]"):
        check_actions(make_router().actions, other)
    check_actions(make_router().actions, SPACE)


def test_centred_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.2]])
    assert torch.allclose(centred_advantages(rewards), torch.tensor([[0.5, -0.1], [-0.5, 0.1]]))
    with pytest.raises(ValueError, match="at least two routes: got 1"):
        centred_advantages(rewards[:1])


def test_choosing() -> None:
    logits = torch.tensor([[0.0, 2.0, -1e9]]).repeat(3000, 1)
    greedy, log_prob, entropy = choose(logits, True)
    assert (greedy == 1).all() and log_prob[0].exp() == pytest.approx(logits[0].softmax(0)[1].item())
    sampled, _, _ = choose(logits, False, torch.Generator().manual_seed(0))
    assert (sampled == 1).float().mean().item() == pytest.approx(logits[0].softmax(0)[1].item(), abs=0.03)
    assert not (sampled == 2).any() and entropy[0] > 0
