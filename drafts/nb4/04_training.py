# %% [markdown]
# Training: from random weights to answers, beside every control

**The question.** How well does the whole model answer questions about pictures it never saw, and how much of that is
really *looking*?

*Hardware:* two CPU cores suffice; a GPU is used, with mixed precision, if there is one. *Measured* (profile `quick`, two
CPU cores): @@04_training@@, nearly all of it the training itself. An interrupted run continues where it stopped.
# %%
import copy
import inspect

import numpy as np
import pandas as pd
import torch

from omni_lab.config import get_profile, project_root, with_changes
from omni_lab.data import collate
from omni_lab.evaluation import (
    bootstrap_interval,
    interleaved_seconds,
    majority_by_question,
    predict,
    ratio,
    shuffle_pictures,
)
from omni_lab.learning import MultitaskTraining, get_recipe, load_or_train
from omni_lab.learning.multitask import answer_loss
from omni_lab.modalities import Modality
from omni_lab.results import read_results, start_run
from omni_lab.viz import accuracy_bars, confusion, training_curves, use_style
# %% parameters
profile = "quick"  # smoke, quick or full
seed = 0  # of weights, batches and augmentation
output_dir = ""  # where results go; empty: reports/interactive/
learning_rate = 0.0  # peak learning rate; 0 takes the profile's
epochs = 0  # passes over the training pictures; 0 takes the profile's
accumulate = 0  # micro-batches per update; 0 takes the profile's
precision = ""  # 32-true, bf16-mixed or 16-mixed; empty takes the profile's
retrain = False  # train afresh even if this very training has been done here before
# %%
settings = get_profile(profile)
asked = {"learning_rate": learning_rate, "epochs": epochs, "accumulate": accumulate, "precision": precision}
changes = {name: value for name, value in asked.items() if value}
settings = with_changes(settings, training=with_changes(settings.training, **changes))
run = start_run("04_training", profile=profile, seed=seed, output_dir=output_dir, **asked)
use_style()
recipe = get_recipe("easy_vqa", settings, seed=seed)
print(settings.training)
# %% [markdown]
## What is minimised

The head gives a score $s_a$ to every answer; the truth gives each answer a soft accuracy $t_a$ (for easy-VQA, 1 for one
answer and 0 for the rest). The loss is the cross-entropy between the two:

$$L = -\sum_a \frac{t_a}{\sum_b t_b} \log \frac{e^{s_a}}{\sum_b e^{s_b}}$$

AdamW minimises it; the learning rate rises linearly, then falls along a cosine; gradients are clipped to norm 1. The
LightningModule around the model is thin:
# %%
print(inspect.getsource(MultitaskTraining.training_step))
print(inspect.getsource(answer_loss))
# %% [markdown]
## Accumulation: a large batch in small pieces

If a batch does not fit into memory, its gradient can be summed over $k$ micro-batches before one update. For equally
large pieces, the mean of the means is the mean of all:

$$\nabla \frac{1}{N}\sum_{i=1}^{N} L_i = \frac{1}{k}\sum_{j=1}^{k} \nabla \frac{k}{N}\sum_{i \in \text{piece } j} L_i$$

So $k$ micro-batches must give the *same update* as one batch. We check that on the real model: gradients, clipping and
one step of AdamW, both ways, in float32. (Pieces must be equally large. Where an epoch does not divide evenly, its last
update is made from fewer or smaller pieces, each of which still counts one $k$-th.)
# %%
data = recipe.data_module()
train_set = data.dataset("train")
indices = next(iter(data.train_dataloader().batch_sampler))
indices = indices[: len(indices) // 4 * 4]
pieces = [collate([train_set[i] for i in part]) for part in np.array_split(indices, 4)]


# %%
def one_update(batches):
    network = recipe.new_model(data).eval()  # no dropout: it would differ between the two
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.training.learning_rate)
    for batch in batches:
        loss = answer_loss(network(batch).heads["answer"], batch.targets["answer_scores"])
        (loss / len(batches)).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), settings.training.clip_norm)
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    optimizer.step()
    return gradient, torch.cat([p.detach().flatten() for p in network.parameters()])


(gradient_one, weights_one), (gradient_many, weights_many) = (
    one_update([collate([train_set[i] for i in indices])]),
    one_update(pieces),
)
gradient_gap = (gradient_one - gradient_many).abs().max().item()
run.record("training/accumulation_gradient_difference", gradient_gap, higher_is_better=False)
update_gap = (weights_one - weights_many).abs().max().item()
run.record("training/accumulation_update_difference", update_gap, higher_is_better=False)
print(f"four micro-batches against one: gradients differ by {gradient_gap:.1e}")
print(f"after the update, weights differ by {update_gap:.1e}")
assert gradient_gap < 1e-5
# %% [markdown]
The gradients agree to rounding. The updated weights can differ by a little more: Adam divides by the gradient's own size, so
where a gradient is nearly zero, its rounding error decides the sign of a step of size `learning_rate`.

## Precision: what mixed precision is for

Automatic mixed precision (AMP) computes matrix products in 16 bits and keeps weights in 32. On a GPU that is faster and
saves memory. On a CPU it depends on the processor: with bfloat16 instructions it can be faster, without them it is several
times slower. The profile says `auto`: `bf16-mixed` on a GPU, and on a CPU `32-true`, which every CPU does well and which
is what the exactness of resuming is tested in. `16-mixed` (float16 with loss scaling) can be selected.
We measure bfloat16 on whatever this is, for one forward and backward, in turn. Below 1 it is faster.
# %%
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
timed = recipe.new_model(data).to(device).train()
batch = collate([train_set[i] for i in indices]).to(device)


def step(network, given, autocast):
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        loss = answer_loss(network(given).heads["answer"].float(), given.targets["answer_scores"])
    network.zero_grad()
    loss.backward()
    return loss.item()


exact, mixed = step(timed, batch, False), step(timed, batch, True)
both = {"bf16": lambda: step(timed, batch, True), "fp32": lambda: step(timed, batch, False)}
slower = ratio(interleaved_seconds(both, rounds=max(2, settings.timing_rounds // 3)), "bf16", "fp32")
run.record("training/bf16_over_fp32_time", slower.median, (slower.low, slower.high), "x", higher_is_better=False)
print(f"on {device}: bf16 takes {slower.median:.2f} times as long as fp32")
print(f"losses: {mixed:.4f} in bf16, {exact:.4f} in fp32")
assert abs(mixed - exact) < 0.05 * exact
# %% [markdown]
## What sharing saves

In a batch, several questions are about the same picture. Encoding the picture once, rather than once per question, changes
no result, only how often the encoder runs. The ratio of the times of one forward and backward is the gain.
# %%
shared = batch
separate = collate([train_set[i] for i in indices], share=[Modality.TEXT]).to(device)
pictures = {name: len(b.inputs[Modality.IMAGE].values) for name, b in (("shared", shared), ("separate", separate))}
timed.eval()
with torch.inference_mode():
    same = (timed(shared).heads["answer"] - timed(separate).heads["answer"]).abs().max().item()
assert same < 1e-4, "sharing must not change an answer"
timed.train()
both = {"separate": lambda: step(timed, separate, False), "shared": lambda: step(timed, shared, False)}
gain = ratio(interleaved_seconds(both, rounds=max(2, settings.timing_rounds // 2)), "separate", "shared")
run.record("training/sharing_gain", gain.median, (gain.low, gain.high), "x")
print(f"{len(batch)} questions: {pictures['separate']} pictures encoded, or {pictures['shared']}")
print(f"sharing makes a step {gain.median:.2f} times as fast; scores differ by at most {same:.1e}")
# %% [markdown]
## Training

This cell trains. What mattered, as seen in single development runs on the validation split:

- **Initialisation.** timm's Swin starts with very small weights, meant for wide networks. At width 32, with stochastic depth,
  shapes stayed near chance for several epochs; Xavier initialisation without stochastic depth learned them in two.
- **Balanced families.** Three of four questions are yes/no. With rare families drawn more often, there are enough questions
  about shape to get the picture encoder off its plateau earlier.
- **More questions per picture.** A picture is encoded once, and its keys and values are projected once, however many
  questions listen to it. Six questions instead of four lifted yes/no most: they need colour, shape and "not" together.
- **The strongest, not the mean.** The answer head sums a picture up by the maximum of each channel over its cells. With the mean,
  three seeds ended between 0.93 and 0.99 on validation, one of them still rising; with the maximum, one of these went from 0.93
  to 0.998 in as many epochs.
- **Only words listen.** The picture need not hear the question, so `quick` has a single path, which is cheaper.
# %%
trained = load_or_train(recipe, retrain=retrain, use_published=False)
model, data, facts = trained.model.to(device), trained.data, trained.facts
print("weights:", trained.origin)
# %%
run.record("training/samples_per_second", facts["samples_per_second"], unit="questions/s")
run.record("training/pictures_per_second", facts["pictures_per_second"], unit="pictures/s")
run.record("training/peak_memory_mb", facts["peak_memory_mb"], unit="MB", higher_is_better=False)
run.record("training/minutes", facts["seconds"] / 60, unit="min", higher_is_better=False)
print(f"on {facts['device']} in {facts['precision']}: {facts['samples_per_second']:.0f} questions/s")
print(f"peak memory while training: {facts['peak_memory_mb']:.0f} MB (without a GPU, of the process)")
validation = data.dataset("validation")
blind = majority_by_question(data.dataset("train"), validation)
curves = training_curves(facts["history"], floor=blind.accuracy, floor_label="most frequent answer per question")
run.save_figure(curves, "curves");
# %% [markdown]
The dashed line is the control that never looks. As long as the curve stays near it, the model has learned the questions,
not the pictures. Macro F1 is the mean over all answers of each answer's F1, the harmonic mean of precision and recall;
rare answers count as much as "yes" and "no".

## The controls

A number without its control means little. Ours, on the same test questions:

- **most frequent answer** per question string, counted in training;
- **text only**: the same model without a picture encoder, trained the same way;
- **pictures shuffled**: the trained model, but every question gets another question's picture. If it never looked, it would
  lose nothing.
# %%
text_only = load_or_train(get_recipe("easy_vqa_text", settings, seed=seed), retrain=retrain, use_published=False)
text_only.model.to(device)
print("text-only weights:", text_only.origin)
# %% [markdown]
## The test, once

Everything above was decided on training and validation. Now the test split is opened.
# %%
test = data.dataset("test")
loader = data.test_dataloader()
systems = {
    "test": ("this model", predict(model, loader, test), False),
    "majority": ("most frequent answer", majority_by_question(data.dataset("train"), test), True),
    "text_only": ("text only", predict(text_only.model, text_only.data.test_dataloader(), test), True),
    "shuffled": ("pictures shuffled", predict(model, loader, test, change=shuffle_pictures), True),
}
# %%
families = {"yes/no": "yes_no", "shape": "shape", "colour": "colour"}
bars, table = [], []
for key, (label, result, control) in systems.items():
    interval = bootstrap_interval(result.score, result.scene, resamples=settings.bootstrap, seed=seed)
    run.record(f"easy_vqa/{key}_accuracy", result.accuracy, interval=interval, control=control)
    bars.append((label, result.accuracy, interval, control))
    row = {"": label, "all": result.accuracy, "macro F1": result.macro_f1(len(data.store.answers))}
    for family, name in families.items():
        part = result.only(family)
        row[family] = part.accuracy
        bounds = bootstrap_interval(part.score, part.scene, resamples=settings.bootstrap, seed=seed)
        run.record(f"easy_vqa/{key}_accuracy_{name}", part.accuracy, interval=bounds, control=control)
    table.append(row)
run.record("easy_vqa/test_macro_f1", table[0]["macro F1"])
lost = systems["shuffled"][1].score - systems["majority"][1].score
interval = bootstrap_interval(lost, test.scenes, resamples=settings.bootstrap, seed=seed)
run.record("easy_vqa/shuffled_minus_majority", lost.mean(), interval=interval, control=True)
pd.DataFrame(table).set_index("").style.format("{:.3f}")
# %%
run.save_figure(accuracy_bars(bars, title="easy-VQA, official test split"), "test");
# %% [markdown]
Error bars are 95 % intervals over test pictures, for this one trained model. They do not say how much another seed would
differ; the published runs below do. Two things to read off:

- The text-only model has learned what counting finds, and no more. The pictures are needed for the rest.
- With *shuffled* pictures the trained model falls below the blind ones, through its yes/no answers. It does look: it
  answers about the wrong picture. The difference is recorded, pair by pair, with its interval.

Where every answer was right, the bootstrap interval is "1 to 1". That means no error was seen, not that none is possible: after
$n$ pictures without an error, rates up to about $3/n$ remain plausible.

## Which answers are mistaken for which
# %%
result = systems["test"][1]
run.save_figure(confusion(result.truth, result.answer, data.store.answers), "confusion");
# %% [markdown]
## More than one seed

One training says little about the next. The grid `notebooks/grids/easy_vqa_seeds.yaml` trains three seeds; its recorded
results are published with the project. This table is read from those files, not from this run.
# %%
published = read_results(project_root() / "reports" / "published", profile=profile, notebook="04_training")
if published:
    values = pd.DataFrame({r["seed"]: {m["name"]: m["value"] for m in r["metrics"]} for r in published})
    values = values[values.index.str.startswith("easy_vqa/")]
    summary = pd.DataFrame({"mean": values.mean(axis=1), "lowest": values.min(axis=1), "highest": values.max(axis=1)})
    devices = sorted({r["device"] for r in published})
    print(f"published: seeds {sorted(values.columns)}, profile {profile}, on {', '.join(devices)}")
    display(summary.style.format("{:.3f}"))
else:
    print(f"no published runs under profile {profile}")
# %% [markdown]
## Summary

- Test accuracy stands beside three controls that cannot look; the gap between them is what looking is worth.
- Micro-batches give the same gradient as one batch; sharing pictures gives the same answers in less time.
- Whether bfloat16 pays depends on the processor; the ratio above says it for this one.

## Exercises

1. Choose a seed that was not trained yet, on a CPU. Stop this notebook in the middle of training and run it again. From which
   update does it continue? Are the final weights the same as without the stop?
2. Run `omni-lab run 04 -p learning_rate=0.0003`. Where do the validation curves differ from the default? (Compare, and
   choose, by validation: the test split is for the final number only.)
3. Train without balanced families (`balance_families=False` in `DataConfig`). When does shape leave the plateau?
4. Make the picture listen to the question too (`FusionConfig(paths=None)`). What does it cost per second, what does it gain?

Solutions are in `90_solutions`.
