# %% [markdown]
# Routing: what to run for which question

**The question.** A question about sums needs neither eyes nor ears. Can a small controller learn, from the question alone, which
encoders and which cross-modal paths to run, and how much does that save?

*Hardware:* two CPU cores suffice. *Measured* (profile `quick`, two CPU cores): @@05_routing@@.
# %%
import itertools

import matplotlib.pyplot as plt
import numpy as np
import torch

from omni_lab.config import get_profile
from omni_lab.data import collate
from omni_lab.evaluation import bootstrap_interval, interleaved_seconds, ratio
from omni_lab.evaluation.flops import cost_model
from omni_lab.learning import get_recipe, load_or_train
from omni_lab.learning.controllers import encode_for_routing, get_controller, load_or_train_controller
from omni_lab.data.module import QuestionDataset
from omni_lab.learning.policies import Bench
from omni_lab.learning.routing import judge
from omni_lab.modalities import Modality
from omni_lab.results import start_run
from omni_lab.routing import Level
from omni_lab.viz import COLOURS, CONTROL, METHOD, use_style
# %% parameters
profile = "quick"  # smoke, quick or full
seed = 0  # of the controllers; the network that they route is always that of seed 0
output_dir = ""  # where results go; empty: reports/interactive/
family = "audio_image_count"  # which kind of question to try all routes on, see 01
number = 3  # which validation question of that family, counted from 0
retrain = False  # ignore existing checkpoints and train afresh
# %%
settings = get_profile(profile)
run = start_run("05_routing", profile=profile, seed=seed, output_dir=output_dir, family=family, number=number)
use_style()
network = load_or_train(get_recipe("emoji_routed", settings), retrain=retrain)
model, data = network.model, network.data
space = model.space
encode_for_routing(network, splits=("validation", "test"))
print("weights:", network.origin)
# %% [markdown]
## A bandit with many arms

Take one question. Each *route* says how much of every encoder runs (not at all, up to an early exit, in full) and which paths of
which layer are open. A route has a score $s$, the chance that the network gives the right answer under it, and a cost $c$, its share
of what everything would cost. Worth choosing are those with a high **reward**

$$R = s - \lambda c$$

This is a contextual bandit: the question is the context, the routes are the arms, and each try tells the reward of one arm. Here are
27 arms of one question: every combination of levels, all paths between what is encoded open.
# %%
media = (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)
questions = data.dataset("validation")
asked = [i for i, name in enumerate(questions.families) if name == family]
index = asked[number % len(asked)]
one, costs = collate([questions[index]]), cost_model(model)
arms = list(itertools.product(*(space.choices(m) for m in media)))
tried = []
for levels in arms:
    wished = torch.full((1, 4), int(Level.FULL))
    wished[0, [m.column for m in media]] = torch.tensor([int(level) for level in levels])
    opened = torch.ones(1, space.depth, len(space.paths), dtype=torch.bool)
    tried.append(judge(model, one, space.route(wished, opened, one.present), costs=costs))
print(f"{questions.texts[index]!r} needs {[str(m) for m in data.store.families[family].needs]}")
# %%
figure, axis = plt.subplots(figsize=(8, 4.2))
for levels, arm in zip(arms, tried, strict=True):
    needed = all(level > Level.SKIP for level, m in zip(levels, media, strict=True) if m in data.store.families[family].needs)
    axis.plot(float(arm.cost), float(arm.score), "o" if needed else "x", color=METHOD if needed else CONTROL)
axis.plot([], [], "o", color=METHOD, label="all that is needed is encoded")
axis.plot([], [], "x", color=CONTROL, label="something needed is skipped")
axis.set(xlabel="cost, share of everything", ylabel="score of the right answer", xlim=(0, 1.05), ylim=(-0.03, 1.05))
axis.legend()
axis.set_title(f"{len(arms)} routes of one question ({family})")
run.save_figure(figure, "arms");
# %% [markdown]
## A controller that learns by trying

The controller is two linear layers. It sees the mean of the question's tokens and which modalities are there, never the output of an
encoder that it might skip. It gives each decision a probability; a route is drawn, tried, and made likelier or less likely.
**REINFORCE** (Williams 1992): the gradient of the expected reward is

$$\nabla \mathbb{E}[R] = \mathbb{E}\big[(R - b)\, \nabla \log \pi(\text{route} \mid \text{question})\big]$$

for any baseline $b$ that does not depend on the route. We draw eight routes for each question, and the baseline is their mean: a route
is judged against the others *of its question* (group-relative; Shao et al. 2024). $\lambda$ grows from nothing over the first half, so
that the controller first learns what is needed and then what is too dear. Weights are kept from the best validation reward.
# %%
names = [f"group_{p}" for p in settings.world.penalties]
learned = {name: load_or_train_controller(get_controller(name, settings, seed=seed), network, retrain=retrain) for name in names}
middle = names[len(names) // 2]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
shown = {"accuracy": "accuracy", "validation cost": "cost, share of everything", "routes": "distinct routes"}
for axis, (column, label) in zip(axes, shown.items(), strict=True):
    for name, shade in zip(names, plt.cm.viridis(np.linspace(0, 0.85, len(names))), strict=True):
        history = [row for row in learned[name].facts["history"] if column in row]
        values = [float(row[column]) for row in history]
        axis.plot([row["epoch"] for row in history], values, "o-", ms=3, color=shade, label=name.removeprefix("group_"))
    axis.set(xlabel="epoch", ylabel=label, ylim=(0, None))
axes[0].legend(title="penalty", fontsize=9)
run.save_figure(figure, "training");
# %% [markdown]
## What is saved, and what is kept

All routes are carried out on the test split; a FLOP that is called saved was not executed (the cost model agrees with a counter within
one percent, tested for every single path and for random routes).
# %%
bench = Bench(model, data.dataset("test"))
everything = space.dense(bench.present)
dense = bench.run(everything, name="dense")
outcomes = {}
for name in names:
    controller = learned[name].controller
    route = bench.routes(lambda batch, c=controller: model.decide(c, batch)[0].route, name=name)
    outcomes[name] = (route, bench.run(route, controller=controller.flops, name=name))
print(f"{'':12}{'accuracy':>10}{'kept':>8}{'FLOPs':>8}{'paths':>8}{'routes':>8}")
print(f"{'dense':12}{dense.accuracy:10.3f}{1:8.3f}{1:8.3f}{1:8.3f}{everything.distinct:8d}")
for name, (route, outcome) in outcomes.items():
    print(f"{name:12}{outcome.accuracy:10.3f}{outcome.accuracy / dense.accuracy:8.3f}", end="")
    print(f"{outcome.cost:8.3f}{outcome.cross_modal_cost:8.3f}{route.distinct:8d}")
# %%
good = [n for n in names if outcomes[n][1].accuracy >= 0.98 * dense.accuracy]
chosen = min(good or names, key=lambda n: outcomes[n][1].cost)
route, outcome = outcomes[chosen]
kept = outcome.accuracy / dense.accuracy
difference = bootstrap_interval(outcome.correct - dense.correct, bench.scenes, resamples=settings.bootstrap, seed=seed)
run.record("routing/accuracy_kept", kept, interval=tuple(1 + d / dense.accuracy for d in difference))
run.record("routing/cross_modal_flops_saved", 1 - outcome.cross_modal_cost)
run.record("routing/total_flops_saved", 1 - outcome.cost)
run.record("routing/dense_accuracy", dense.accuracy, control=True)
run.record("routing/needs_f1", outcome.needs.f1)
run.record("routing/distinct_routes", route.distinct)
needs = outcome.needs
print(f"{chosen}: {kept:.3f} of the dense accuracy")
print(f"of the modalities that it encodes, {needs.precision:.2f} are needed;")
print(f"of those that are needed it encodes {needs.recall:.2f}")
# %% [markdown]
## What it learned

Nobody told the controller what a question needs. The world knows it, and here both stand side by side: how often each encoder and each
path runs, by kind of question. A frame marks what is needed.
# %%
columns = [f"{m}" for m in media] + [f"{layer + 1}: {p.query} from {p.key}" for layer in range(space.depth) for p in space.paths]
kinds = bench.families
order = [f for f in data.store.families if (kinds == f).any()]
runs = torch.cat([(route.encoders[:, [m.column for m in media]] > 0).float(), space.opened(route).flatten(1).float()], dim=1).numpy()
rates = np.stack([runs[kinds == f].mean(0) for f in order])
# %%
figure, axis = plt.subplots(figsize=(10, 0.3 * len(order) + 1.8))
shades = axis.imshow(rates, cmap="Blues", vmin=0, vmax=1, aspect="auto")
for row, f in enumerate(order):
    for column, m in enumerate(media):
        if m in data.store.families[f].needs:
            axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=1.5))
axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=9)
axis.set_yticks(range(len(order)), order, fontsize=9)
axis.axvline(2.5, color="black", lw=0.8)
axis.grid(False)
figure.colorbar(shades, ax=axis, label="share of the questions")
axis.set_title(f"what runs ({chosen})")
run.save_figure(figure, "by_family");
# %% [markdown]
## One controller with a knob

A penalty has to be chosen before training. A controller can instead be told a **budget**, the share of the dense cost that a question
may take, drawn anew for every question while it learns. At inference it is a knob.
# %%
knob = load_or_train_controller(get_controller("conditioned", settings, seed=seed), network, retrain=retrain).controller
budgets = (0.1, 0.2, 0.3, 0.5, 0.8)
turned = []
for budget in budgets:
    wished = bench.routes(lambda batch, b=budget: model.decide(knob, batch, budget=b)[0].route)
    turned.append(bench.run(wished, controller=knob.flops, name=f"budget {budget}"))
    print(f"budget {budget:.1f}: cost {turned[-1].cost:.3f}, accuracy {turned[-1].accuracy:.3f}")
figure, axis = plt.subplots(figsize=(8, 4.2))
axis.plot([t.cost for t in turned], [t.accuracy for t in turned], "o-", color=METHOD, label="one controller, five budgets")
axis.plot([o.cost for _, o in outcomes.values()], [o.accuracy for _, o in outcomes.values()], "D", color=COLOURS[Modality.IMAGE], label="five controllers, a penalty each")
axis.plot(1, dense.accuracy, "s", color=CONTROL, label="everything runs")
axis.set(xlabel="FLOPs, share of everything", ylabel="accuracy", xlim=(0, 1.05))
axis.legend()
run.save_figure(figure, "knob");
# %% [markdown]
## Does the clock agree?

FLOPs are a promise; time is what one gets. The same 64 questions, from raw media to answers, several times in turn: the dense model
computed plainly (no masks, no gathering), and the controller with everything that follows from its decisions.
# %%
def seconds_of(size):
    drawn = np.random.default_rng(seed).choice(len(plain), size=size, replace=False)
    batch = collate([plain[int(i)] for i in drawn])

    def routed():
        decided, question = model.decide(learned[chosen].controller, batch)
        model(batch, heads=["answer"], route=decided.route, known=question)

    functions = {"dense": lambda: model(batch, heads=["answer"]), "routed": routed}
    with torch.inference_mode():
        seconds = interleaved_seconds(functions, rounds=settings.timing_rounds)
        return ratio(seconds, "routed", "dense"), decided_cost(batch)


def decided_cost(batch):
    charged = cost_model(model, controller=learned[chosen].controller.flops)
    decided = model.decide(learned[chosen].controller, batch)[0].route
    return float(judge(model, batch, decided, costs=charged).cost.mean())


plain = QuestionDataset(data.store, "test")  # raw media, not latents
for size in (64, 1):
    time, cost = seconds_of(size)
    share = (1 - time.median) / (1 - cost)
    run.record(f"routing/wall_time_saved_b{size}", 1 - time.median, interval=(1 - time.high, 1 - time.low))
    run.record(f"routing/wall_time_of_flops_saved_b{size}", share)
    saved = f"{1 - cost:.2f} of FLOPs saved, {1 - time.median:.2f} of time"
    print(f"batch {size}: {saved}: {share:.2f} of it")
# %% [markdown]
## Summary

- A question tells what it needs. A controller of two layers, rewarded for right answers and charged for what runs, finds that out.
- What it saves, and what that costs in accuracy, stands in the table; whether the saving is due to *knowing the question* is what
  the controls of `06_ablation_routing` decide.

## Exercises

1. Try another kind of question in the first figure. How many of its arms are right?
2. Set `anneal` to nearly nothing. What happens to the number of distinct routes, and why?
3. Which families does the controller treat alike although their needs differ? Look at their questions.

Solutions are in `90_solutions`.
