# %% [markdown]
# Ablation: is it the routing, and is it the learning?

**The question.** A controller saves compute. Would a fixed plan do as well? A coin with the same odds? Its own decisions, dealt to the
wrong questions? A controller is worth something only beside these, at equal cost.

*Hardware:* two CPU cores suffice. *Measured* (profile `quick`, two CPU cores): @@06_ablation_routing@@.
# %%
import itertools
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from omni_lab.config import get_profile
from omni_lab.data import OmniDataModule, collate
from omni_lab.evaluation import bootstrap_interval, hypervolume, paired_difference, predict
from omni_lab.evaluation.flops import count_flops
from omni_lab.fusion import FusionPlan, Stage, association
from omni_lab.learning import get_recipe, load_or_train
from omni_lab.learning.controllers import encode_for_routing, get_controller, load_or_train_controller, new_training
from omni_lab.learning.policies import Bench
from omni_lab.modalities import Modality
from omni_lab.results import start_run
from omni_lab.viz import COLOURS, CONTROL, METHOD, use_style
# %% parameters
profile = "quick"  # smoke, quick or full
seed = 0  # of the controllers, and of all that is drawn
output_dir = ""  # where results go; empty: reports/interactive/
searched = 1500  # validation questions that static plans are searched on
fusion_seeds = 1  # trainings of each of the three networks that fuse early, mid or late
retrain = False  # ignore existing checkpoints and train afresh
# %%
from omni_lab.routing.controls import (
    Plan,
    at_cost,
    best_within,
    cheapest_right,
    matched_random,
    random_routes,
    shuffled,
    static_front,
    subsets,
)

settings = get_profile(profile)
run = start_run("06_ablation_routing", profile=profile, seed=seed, output_dir=output_dir, searched=searched)
use_style()
network = load_or_train(get_recipe("emoji_routed", settings), retrain=retrain)
model, data, penalties = network.model, network.data, settings.world.penalties
encode_for_routing(network, splits=("validation", "test"))
bench = Bench(model, data.dataset("test"))
space, present = bench.space, bench.present
print("weights:", network.origin)
# %% [markdown]
## Ways to decide

Learned from rewards: the **controller**, by group-relative REINFORCE or **self-critical** (the baseline is the likeliest route; Rennie
et al. 2017). Learned by backpropagation through the network: **Gumbel** gates, hard going forward and soft going back (Jang et al.
2017); a **choice** among fixed plans by a straight-through softmax (the idea of DynMM; Xue and Marculescu 2023), here the subsets of the
modalities; and **soft** gates, which weigh paths, skip nothing and save nothing. All see the same and have layers of the same size.
# %%
learned, outcomes = {}, {"dense": bench.run(space.dense(present), name="dense")}
for kind in ("group", "self_critical", "gumbel", "choice"):
    for penalty in penalties:
        recipe = get_controller(f"{kind}_{penalty}", settings, seed=seed)
        controller = load_or_train_controller(recipe, network, retrain=retrain).controller
        decide = new_training(recipe, network, controller).route
        learned[kind, penalty] = bench.routes(decide, name=f"{kind} {penalty}")
        outcomes[kind, penalty] = bench.run(learned[kind, penalty], controller=controller.flops, name=f"{kind} {penalty}")
# %% [markdown]
## Ways to decide without looking at the question

**Static**: one plan for all questions, the best that a search on validation finds for each cost; it closes, again and again, what costs
least accuracy. **Unimodal**: the question and one modality. **Random**: every encoder and path by the same coin. **Matched**: each
decision by a coin of its own, as often as the controller takes it. **Shuffled**: the controller's own routes, dealt to other questions
that have the same modalities. The **oracle** knows the answer: of the subsets of the modalities, the cheapest that gets it right.
# %%
questions = np.random.default_rng(seed).permutation(len(data.dataset("validation")))[:searched]
trial = Bench(model, data.dataset("validation"), questions=questions.tolist())


def judge_plan(plan):
    outcome = trial.run(plan.route(space, trial.present), name=None)
    return outcome.accuracy, outcome.cost


static = static_front(space, judge_plan)
print(f"{len(static)} plans, from {static[0].cost:.2f} to {static[-1].cost:.2f} of the dense cost")
# %%
rng = torch.Generator().manual_seed(seed)


def coin(share):
    return random_routes(space, present, share, generator=torch.Generator().manual_seed(seed))


for penalty in penalties:
    route, cost = learned["group", penalty], bench.cost(learned["group", penalty])
    outcomes["matched", penalty] = bench.run(matched_random(space, route, present, generator=rng), name="matched")
    outcomes["shuffled", penalty] = bench.run(shuffled(route, present, generator=rng), name="shuffled")
    outcomes["random", penalty] = bench.run(at_cost(coin, bench.cost, cost), name="random")
    plan = best_within(static, cost).plan
    outcomes["static", penalty] = bench.run(plan.route(space, present), name="static")
for modality in (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO):
    only = Plan.unimodal(space, modality).route(space, present)
    outcomes["unimodal", modality] = bench.run(only, name=f"only {modality}")
tried = [plan.route(space, present) for plan in subsets(space)]
ran = [bench.run(route, name="subset") for route in tried]
right, spent = (np.stack([getattr(o, name) for o in ran]) for name in ("correct", "total"))
best = cheapest_right(torch.tensor(right > 0.5), torch.tensor(spent)).numpy()
each = np.arange(len(bench))
oracle = (float(spent[best, each].sum() / bench.dense.total.sum()), float(right[best, each].mean()))
# %% [markdown]
## The picture

Up and to the left is better. A policy is described by its *front*, the points that no other of its own beats in both, and a front by its
**hypervolume**: the area that it dominates, down to a fixed point, here the dense cost and the accuracy of the question alone.
# %%
styles = {
    "group": ("o-", METHOD),
    "self_critical": ("^-", COLOURS[Modality.VIDEO]),
    "gumbel": ("v-", COLOURS[Modality.IMAGE]),
    "choice": ("s-", COLOURS[Modality.AUDIO]),
    "static": ("D--", "black"),
    "random": ("x:", CONTROL),
    "matched": ("+:", CONTROL),
    "shuffled": ("1:", CONTROL),
}
figure, axis = plt.subplots(figsize=(9, 5))
points = {}
for kind, (marker, colour) in styles.items():
    points[kind] = [(o.cost, o.accuracy) for key, o in outcomes.items() if key[0] == kind]
    axis.plot(*np.array(sorted(points[kind])).T, marker, color=colour, label=kind.replace("_", "-"))
axis.plot(1, outcomes["dense"].accuracy, "*", ms=14, color="black", label="dense")
axis.plot(*oracle, "P", ms=10, color="#999933", label="oracle")
axis.set(xlabel="FLOPs, share of everything", ylabel="accuracy, test split", xlim=(0, 1.05))
axis.legend(fontsize=9, ncols=2)
run.save_figure(figure, "pareto");
# %% [markdown]
**By how much, and how sure?** At each penalty the controls cost what the controller costs, and answer the same questions: the
differences are paired, and scenes are resampled.
# %%
print(f"{'penalty':>8} {'cost':>6} {'accuracy':>9}   controller minus ...")
for penalty in penalties:
    mine = outcomes["group", penalty]
    print(f"{penalty:8} {mine.cost:6.3f} {mine.accuracy:9.3f}", end="  ")
    for control in ("static", "random", "matched", "shuffled"):
        gap = mine.correct - outcomes[control, penalty].correct
        low, high = bootstrap_interval(gap, bench.scenes, resamples=settings.bootstrap, seed=seed)
        print(f" {control} {gap.mean():+.3f} ({low:+.3f} to {high:+.3f})", end="")
    print()
floor = min((o.cost, o.accuracy) for o in ran)[1]
volumes = {kind: hypervolume(found, (1.0, floor)) for kind, found in points.items()}
for kind, volume in volumes.items():
    run.record(f"routing/hypervolume_{kind}", volume, control=kind != "group")
# %% [markdown]
**Is it the question that decides?** Shuffled routes are the controller's own, at its own cost, for other questions. If accuracy did not
fall, the controller would have found one good plan and nothing else.

## Where should two modalities meet?

Routing closes paths. Before that comes the choice where paths should be at all. **Early**: what belongs together moment by moment is
joined below the upper layers. **Mid**: cross-modal attention. **Late**: only in the head. A `FusionPlan` says it for every pair, and is
worked out from the *association* of two modalities on the training split: how well one tells the other, linearly (the first canonical
correlation of the raw signals, found on one half of the samples and measured on the other).
# %%
faces, worlds = get_recipe("talking_face_early", settings).data_module(), get_recipe("emoji_world", settings).data_module()
lips, scenes = (d.dataset("train") for d in (faces, worlds))
measured = {("lips", "speech"): association([lips[i] for i in range(min(400, len(lips)))], (Modality.AUDIO, Modality.VIDEO))}
step = max(1, len(scenes) // 800)
some = [scenes[i] for i in range(0, len(scenes), step)]
for pair in itertools.combinations(Modality, 2):
    measured[tuple(str(m) for m in pair)] = association(some, pair)
for (first, second), value in sorted(measured.items(), key=lambda item: -item[1]):
    print(f"{first:>6} and {second:7} {value:6.2f}")
plan = FusionPlan.from_association({(Modality.AUDIO, Modality.VIDEO): measured["lips", "speech"]})
print(plan)
# %% [markdown]
Lips and speech, in a noise as loud as the voice. The three networks have the same encoders and see the same clips; they differ in
where sound and clip meet. Their costs are measured, not assumed.
# %%
noisy = replace(faces.source, snr=(0.0, 0.0), seed=1, name="talking_face_0db")
test = OmniDataModule(noisy, faces.config, root=faces.root, modalities=faces.modalities)
groups = test.dataset("test").scenes
two = collate([test.dataset("test")[i] for i in range(2)])
right, price = {}, {}
for stage in Stage:
    right[stage] = []
    for one in range(seed, seed + fusion_seeds):
        network = load_or_train(get_recipe(f"talking_face_{stage}", settings, seed=one), retrain=retrain)
        right[stage].append(predict(network.model, test.loader("test"), test.dataset("test")).score)
    price[stage] = count_flops(partial(network.model, two, heads=["answer"])) / 2
    right[stage] = np.stack(right[stage])
    low, high = bootstrap_interval(right[stage].mean(0), groups, resamples=settings.bootstrap, seed=seed)
    mean, flops = right[stage].mean(), price[stage] / 1e6
    print(f"{stage:5} accuracy {mean:.3f} ({low:.3f} to {high:.3f}), {flops:.1f} MFLOPs a clip")
# %%
for other in (Stage.MID, Stage.LATE):
    gain = paired_difference(right[Stage.EARLY], right[other], groups, resamples=settings.bootstrap, seed=seed)
    share = price[Stage.EARLY] / price[other]
    interval = f"({gain.low:+.3f} to {gain.high:+.3f})"
    print(f"early - {other}: {gain.mean:+.3f} {interval}, {share:.2f} of its cost")
    if other is Stage.LATE:
        run.record("fusion/early_gain", gain.mean, interval=(gain.low, gain.high))
for stage in Stage:
    run.record(f"fusion/{stage}_accuracy", right[stage].mean())
    run.record(f"fusion/{stage}_mflops", price[stage] / 1e6, higher_is_better=False)
# %% [markdown]
## Summary

- At equal cost, what a learned controller is worth is its distance to the *shuffled* and the *static* routes: the first tells whether it
  looks at the question, the second whether one needs to.
- The oracle says how much could be saved at most with whole modalities; the rest is for a better controller to find.
- Where lips and speech should meet is measured: association first, then accuracy at 0 dB, beside what each way costs.

## Exercises

1. Shuffle routes only within a family. How much of the loss comes back, and what does that say about what the controller knows?
2. Give the static search twice the questions (`searched`). Does it find better plans?
3. Make a plan by hand: `FusionPlan({(Modality.AUDIO, Modality.VIDEO): Stage.LATE})`. What does `config` change?

Solutions are in `90_solutions`.
