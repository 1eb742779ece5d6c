"""Sequential routers, trained on an `OutcomeTable`: the outcome of every trajectory is known, so none is sampled."""

from __future__ import annotations

import copy
import itertools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality
from omni_lab.evaluation.outcome_table import OutcomeTable
from omni_lab.lightning_modules.vqa import answer_loss
from omni_lab.routing.sequential import RouterState, SequentialLogits, SequentialRouter
from omni_lab.training.table_baselines import sample_penalties
from omni_lab.utils.progress import track_progress

TABLE_ESTIMATORS = ("expected", "fitted_q")
BATCH_SIZE = 64  # questions; each brings all of its states
SYNC = 50  # steps between copies of the network that values come from
EARLY_WEIGHT = 0.3  # of the early head's loss


class StateLattice:
    """All states of a router on the questions of a table: what ran, at which level, and what may run next.

    S states, K actions (0 stops). The history of a state is random: whether a lower level ran before a higher one.

    legal, following: [S, K], whether an action is possible, and the state after it.
    action_costs: [n, K], fractions of the dense cost, `step_cost` included; 0 for stopping.
    answer_prob, fusion_cost: [n, S, 2], of stopping with all paths open, and with none.
    """

    def __init__(self, router: SequentialRouter, table: OutcomeTable, *, step_cost: float) -> None:
        self.router, self.table, space = router, table, router.space
        self.media: list[Modality] = [m for m in space.modalities if m is not Modality.TEXT]
        self.states = [*itertools.product(*map(space.allowed_levels, self.media))]
        self.levels = torch.full((len(self.states), NUM_MODALITIES), int(ComputeLevel.SKIP))
        self.levels[:, Modality.TEXT.column] = int(ComputeLevel.FULL)
        self.levels[:, [m.column for m in self.media]] = torch.tensor([[int(x) for x in s] for s in self.states])
        self.glances = router.glance(table.glances, table.present)
        ends = torch.tensor([[table.plan_index(row), self._closed(row)] for row in self.levels])  # [S, 2]
        self.answer_prob = table.answer_prob[:, ends]
        self.fusion_cost = (table.fusion_flops[:, ends] / table.dense_flops[:, None, None]).float()
        encoded, (queries, keys) = self.levels > ComputeLevel.SKIP, space.path_columns
        self.decided = encoded[:, queries] & encoded[:, keys]  # [S, P]
        index = {state: i for i, state in enumerate(self.states)}
        shape = (len(self.states), 1 + len(router.actions))
        self.legal, self.following = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.long)
        self.legal[:, 0] = True
        for i, state in enumerate(self.states):
            for k, (modality, level) in enumerate(router.actions, start=1):
                place = self.media.index(modality)
                after = (*state[:place], level, *state[place + 1 :])
                self.legal[i, k] = state[place] < level
                self.following[i, k] = index[after]
        self.last_first = sorted(range(len(self.states)), key=lambda i: -int(self.levels[i].sum()))
        self.action_costs = torch.zeros(len(table), shape[1])
        nothing = table.encoder_flops[:, table.plan_index(self.levels[0])]
        for k, (modality, level) in enumerate(router.actions, start=1):
            alone = self.levels[0].clone()
            alone[modality.column] = int(level)
            flops = table.encoder_flops[:, table.plan_index(alone)] - nothing
            self.action_costs[:, k] = (flops / table.dense_flops).float() + step_cost

    def _closed(self, levels: Int[Tensor, " m"]) -> int:
        """The plan without paths; of the question alone, which has none, the other."""
        some = bool((levels[[m.column for m in self.media]] > ComputeLevel.SKIP).any())
        return self.table.plan_index(levels, paths=not some)

    def __len__(self) -> int:
        return len(self.states)

    def states_of(self, rows: Int[Tensor, " b"]) -> RouterState:
        """All states of some questions, [S * B]."""
        table, size = self.table, len(rows)
        state = RouterState.initial(
            table.question[rows], table.present[rows], table.question_mask[rows], self.glances[rows]
        ).repeat(len(self))
        for i, levels in enumerate(self.states):
            samples = torch.arange(i * size, (i + 1) * size)
            for modality, level in zip(self.media, levels, strict=True):
                lower = [x for x in self.router.space.allowed_levels(modality)[1:] if x < level]
                for each in [x for x in lower if torch.rand(()) < 0.5] + [level] * (level > ComputeLevel.SKIP):
                    found = table.summaries[rows, modality.column, each]
                    state.ran[samples, modality.column, each] = True
                    state.summaries[samples, modality.column] = found
        return state

    def possible(self, rows: Int[Tensor, " b"]) -> Bool[Tensor, "s b k"]:
        """Legal actions of questions that have the modality."""
        able = torch.ones(len(rows), self.legal.shape[1], dtype=torch.bool)
        for k, (modality, _) in enumerate(self.router.actions, start=1):
            able[:, k] = self.table.present[rows, modality.column]
        return self.legal[:, None] & able

    def stopping_values(self, logits: SequentialLogits, rows: Tensor, penalty: Tensor) -> Float[Tensor, "s b"]:
        """Of stopping in each state, with all paths open or none, as the path logits say."""
        path_logits = logits.path_logits.unflatten(0, (len(self), -1)) * self.decided[:, None, None]
        open_ = path_logits.sum((2, 3)).sigmoid()  # given that all are open or none
        reward = (self.answer_prob[rows] - penalty[:, None, None] * self.fusion_cost[rows]).transpose(0, 1)
        return open_ * reward[:, :, 0] + (1 - open_) * reward[:, :, 1]


def train_on_table(
    router: SequentialRouter,
    table: OutcomeTable,
    estimator: str,
    *,
    step_cost: float,
    steps: int,
    learning_rate: float,
    entropy_coef: float = 0.0,
    seed: int = 0,
) -> SequentialRouter:
    """Trains a penalty-conditioned router for all penalties at a time, and its early head. Estimators:

    "expected": the gradient of the expected reward over all trajectories: REINFORCE for an infinite group, without its
    variance. The entropy bonus falls to zero; it is in proportion to the penalty, as differences in reward are.
    "fitted_q": fitted Q iteration (Ernst et al. 2005): the action logits become values, of which the greedy trajectory
    takes the largest; those of the next state are of the network some steps before.
    step_cost: of one decision, as a fraction of the dense cost. Raises ValueError for another estimator.
    """
    if estimator not in TABLE_ESTIMATORS:
        raise ValueError(f"estimator must be one of {TABLE_ESTIMATORS}: got {estimator!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router.glance.fit(table.glances, table.present)
        lattice, before = StateLattice(router, table, step_cost=step_cost), copy.deepcopy(router)
        optimizer = torch.optim.Adam(router.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in track_progress(range(steps), estimator, total=steps, unit="step"):
            rows, penalty = torch.randint(len(table), (BATCH_SIZE,)), sample_penalties(BATCH_SIZE)
            state, conditions = lattice.states_of(rows), penalty.repeat(len(lattice))
            logits = router(state, conditions)
            if estimator == "expected":
                loss = -_expected_reward(lattice, logits, rows, penalty, entropy_coef * (1 - step / steps))
            else:
                if step % SYNC == 0:
                    before.load_state_dict(router.state_dict())
                with torch.no_grad():
                    known = before(state, conditions)
                loss = _bellman_error(lattice, logits, known, rows, penalty)
            loss = loss + EARLY_WEIGHT * answer_loss(logits.answer_logits, table.scores[rows].repeat(len(lattice), 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return router.eval()


def _expected_reward(
    lattice: StateLattice, logits: SequentialLogits, rows: Tensor, penalty: Tensor, entropy_coef: float
) -> Float[Tensor, ""]:
    """Of all trajectories from the first state, with the entropy of its decisions."""
    log_probs = logits.action_logits.unflatten(0, (len(lattice), -1)).log_softmax(2)  # [S, B, K]
    probs, stop = log_probs.exp(), lattice.stopping_values(logits, rows, penalty)
    costs = penalty[:, None] * lattice.action_costs[rows]
    rewards: dict[int, Tensor] = {}
    entropies: dict[int, Tensor] = {}
    for s in lattice.last_first:
        reward, entropy = probs[s, :, 0] * stop[s], -(probs[s] * log_probs[s]).sum(1)
        for k in lattice.legal[s].nonzero().flatten().tolist()[1:]:
            after = int(lattice.following[s, k])
            reward = reward + probs[s, :, k] * (rewards[after] - costs[:, k])
            entropy = entropy + probs[s, :, k] * entropies[after]
        rewards[s], entropies[s] = reward, entropy
    bonus = entropy_coef * (penalty / 0.3).clamp(max=1) * entropies[0]
    return (rewards[0] + bonus).mean()


def _bellman_error(
    lattice: StateLattice, logits: SequentialLogits, known: SequentialLogits, rows: Tensor, penalty: Tensor
) -> Float[Tensor, ""]:
    """Mean square of the values minus what one step and the known values of the next state give; and, for the paths,
    minus the reward of stopping."""
    values, possible = logits.action_logits.unflatten(0, (len(lattice), -1)), lattice.possible(rows)
    best = known.action_logits.unflatten(0, (len(lattice), -1)).amax(2)  # [S, B]
    stop = lattice.stopping_values(logits, rows, penalty)
    targets = best[lattice.following].transpose(1, 2) - penalty[:, None] * lattice.action_costs[rows]  # [S, B, K]
    targets = torch.cat([stop.detach()[:, :, None], targets[:, :, 1:]], dim=2)
    return (values - targets)[possible].square().mean() - stop.mean()
