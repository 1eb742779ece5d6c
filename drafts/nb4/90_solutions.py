# %% [markdown]
# Solutions to the exercises

**The question.** What do the exercises of `00` to `04` show when one works them out?

Try them yourself first. Where an exercise asks for a long training, the way is given and the training is left to you.

*Hardware:* two CPU cores suffice. *Measured* (profile `quick`, two CPU cores): @@90_solutions@@.
# %%
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path as FilePath

import numpy as np
import torch

from omni_lab.config import get_profile
from omni_lab.data import Question, collate, ensure_store
from omni_lab.data.sources import Medium, split_by_scene
from omni_lab.encoders import VisionEncoder, adaptive
from omni_lab.evaluation import interleaved_seconds, predict, ratio
from omni_lab.routing import Path
from omni_lab.learning import get_recipe, load_or_train
from omni_lab.modalities import Modality
from omni_lab.results import start_run
from omni_lab.viz import use_style
# %% parameters
profile = "quick"  # smoke, quick or full
seed = 0  # of the model that is loaded or trained
output_dir = ""  # where results go; empty: reports/interactive/
retrain = False  # ignore existing checkpoints and train afresh
# %%
settings = get_profile(profile)
run = start_run("90_solutions", profile=profile, seed=seed, output_dir=output_dir)
use_style()
recipe = get_recipe("easy_vqa", settings, seed=seed)
trained = load_or_train(recipe, retrain=retrain)
model, data, store = trained.model, trained.data, trained.data.store
validation = data.dataset("validation")
rows = [int(r) for r in np.unique(validation.picture_rows)]

# %% [markdown]
## 00, exercise 1: another family
# %%
world = load_or_train(get_recipe("emoji_world", settings, seed=seed), retrain=retrain)
scenes, things = world.data.dataset("validation"), world.data.store.answers


@torch.inference_mode()
def in_the_world(samples, change=lambda batch: batch):
    """The likeliest answer to each sample, and its probability."""
    probabilities = world.model(change(collate(samples))).heads["answer"].softmax(dim=1)
    return [(things[p.argmax()], round(p.max().item(), 2)) for p in probabilities]


side = [scenes[i] for i, name in enumerate(scenes.families) if name == "audio_video_side"][:3]
print("truth:   ", [things[s.targets["answer_scores"].argmax()] for s in side])
print("all:     ", in_the_world(side))
for lost in Modality:
    print(f"no {lost:6}", in_the_world(side, lambda b, m=lost: b.without(m)))
# %% [markdown]
This family does not need the picture: a model that has learned it keeps its answers without one, and only without that one.

## 00, exercise 2 and 3: other words, and a clip that is not needed
# %%
counting = next(i for i, name in enumerate(scenes.families) if name == "audio_image_count")
row = int(scenes.picture_rows[counting])
usual, odd = (scenes.ask(text, row) for text in (scenes.texts[counting], "count the first named thing"))
print(f"{scenes.texts[counting]!r}: {in_the_world([usual])}, in other words: {in_the_world([odd])}")
print("without the clip:", in_the_world([usual], lambda b: b.without(Modality.VIDEO)))
# %% [markdown]
The model has seen a few dozen sentence patterns. Other words for the same question are noise to it; nothing in a softmax says "I
do not understand". The clip should not matter, and if the probability moves a little, that is the price of training on both.

## 00, exercise 4: sounds swapped
# %%
by_scene = {int(scenes.scenes[i]): i for i, name in enumerate(scenes.families) if name == "audio_name"}
pair = list(by_scene.values())[:2]  # of two different scenes
samples = [scenes[i] for i in pair]
swap = torch.tensor([1, 0])
print("truth:  ", [things[s.targets["answer_scores"].argmax()] for s in samples])
print("own:    ", in_the_world(samples))
print("swapped:", in_the_world(samples, lambda b: b.with_rows(Modality.AUDIO, swap)))
# %% [markdown]
With swapped sounds it answers about the sound it was given.

## 01, exercise 1: validation cut by question
# %%
everything = [q for split in ("train", "validation") for q in recipe.source.questions()[split]]
held_out = np.random.default_rng(seed).random(len(everything)) < 0.1
in_train = {q.scene for q, out in zip(everything, held_out, strict=True) if not out}
in_validation = {q.scene for q, out in zip(everything, held_out, strict=True) if out}
overlap = len(in_validation & in_train) / len(in_validation)
run.record("solutions/overlap_when_cut_by_question", overlap, higher_is_better=False)
print(f"{overlap:.1%} of the validation pictures would be training pictures too")
by_picture = split_by_scene(everything, fraction=0.1, seed=seed)
print("cut by picture:", len({q.scene for q in by_picture[0]} & {q.scene for q in by_picture[1]}), "shared")
# %% [markdown]
## 01, exercise 2: guessing from the family alone
# %%
train = data.dataset("train")
best = {}
for family in set(train.families):
    truths = [int(t) for f, t in zip(train.families, train.scores.argmax(dim=1), strict=True) if f == family]
    best[family] = Counter(truths).most_common(1)[0][0]
guesses = np.array([best[f] for f in validation.families])
right = (guesses == validation.scores.argmax(dim=1).numpy()).mean()
run.record("solutions/family_majority_accuracy", right, control=True)
print(f"one answer per family: {right:.3f}")
# %% [markdown]
Lower than one answer per *question string*: "yes" and "no" are balanced over all yes/no questions, but not within one
wording. The wording leaks the answer.

## 01, exercise 3: padding to 64 tokens
# %%
lengths = np.array([len(store.tokenizer.encode(t).ids) for t in sorted(set(train.texts))])
for name, longest in (("the longest", lengths.max()), ("64 tokens", 64)):
    print(f"padded to {name}: {1 - lengths.mean() / longest:.0%} padding")
# %% [markdown]
## 01, exercise 4: a source of one's own
# %%
class TwoPictures:
    """The smallest source: everything that `VqaSource` asks for."""

    name, shapes = "two_pictures", {Modality.IMAGE: (3, 64, 64)}

    def fingerprint(self):
        return {"made": "by hand"}

    def answers(self):
        return ["no", "yes"]

    def questions(self):
        asked = [("dark", 0, "yes"), ("bright", 0, "no"), ("dark", 1, "no"), ("bright", 1, "yes")]
        made = [Question(f"is it {word}?{key}", f"is it {word}?", "yes/no", key, {a: 1.0}) for word, key, a in asked]
        return {"train": made[:2], "validation": made[2:], "test": []}

    def families(self):
        return {}

    def corpus(self):
        return []

    def media(self, modality):
        yield Medium(0, np.zeros((3, 64, 64), dtype=np.uint8))
        yield Medium(1, np.full((3, 64, 64), 255, dtype=np.uint8))


# %%
with tempfile.TemporaryDirectory() as folder:
    print(ensure_store(TwoPictures(), FilePath(folder)).manifest["rows"])
# %% [markdown]
## 01, exercise 5: an unbalanced question

If only "is the speaker a woman?" were asked, the text would not be needed: whoever hears the sound answers without it. The blind model
*without text* would reach the dense accuracy. The one without sound would still be at one half, as women and men speak
equally often.

## 02, exercise 1: the order of words
# %%
encoder = model.encoders["text"]
ids = torch.tensor([store.tokenizer.encode("is there not a red shape?").ids])
shuffled = torch.cat([ids[:, :1], ids[:, 1:].flip(1)], dim=1)
mask = torch.ones_like(ids, dtype=torch.bool)
with torch.inference_mode():
    moved = (encoder(ids, mask).pooled() - encoder(shuffled, mask).pooled()).norm().item()
    told = [encoder.position.clone(), encoder.order.clone()]  # before the transformer, and after it
    encoder.position.zero_()
    encoder.order.zero_()
    without = (encoder(ids, mask).pooled() - encoder(shuffled, mask).pooled()).norm().item()
    encoder.position.copy_(told[0])
    encoder.order.copy_(told[1])
print(f"reversed, the pooled question moves by {moved:.2f}; without positions by {without:.1e}")
assert without < 1e-3
# %% [markdown]
## 02, exercise 2 and 3: fewer pictures, and a probe on the text
# %%
def accuracy_of_ridge(x, y, new_x, new_y):
    """Fits one-hot y on x with an offset, as in 02, and scores on new data."""
    x, new_x = (torch.cat([a.double(), torch.ones(len(a), 1)], dim=1) for a in (x, new_x))
    gram = x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1]).double()
    w = torch.linalg.solve(gram, x.T @ torch.nn.functional.one_hot(y).double())
    return ((new_x @ w).argmax(dim=1) == new_y).double().mean().item()


@torch.inference_mode()
def pictures_and_labels(dataset, family, most):
    chosen = [i for i, f in enumerate(dataset.families) if f == family]
    first = list({int(dataset.picture_rows[i]): i for i in chosen}.values())[:most]
    pixels = torch.stack([torch.from_numpy(store.picture(int(dataset.picture_rows[i])).copy()) for i in first])
    seen = torch.ones(len(pixels), 1, dtype=torch.bool)
    return model.encoders["image"](pixels, seen).pooled(), dataset.scores[first].argmax(dim=1)


for family in ("shape", "colour"):
    known = pictures_and_labels(data.dataset("train"), family, 1200)
    new = pictures_and_labels(validation, family, 400)
    many, few = (accuracy_of_ridge(*(a[:n] for a in known), *new) for n in (1200, 100))
    print(f"{family:7} {many:.3f} from up to 1,200 pictures, {few:.3f} from 100")
# %% [markdown]
There are eight colours and three shapes, so a hundred pictures hold about a dozen examples of a colour, but some thirty of a
shape. Whether colour then suffers more also depends on how well the encoder separates each; the numbers above say.
# %%
texts = dict(zip(data.dataset("train").texts, data.dataset("train").families, strict=True))
kinds = sorted(set(texts.values()))
with torch.inference_mode():
    batch = collate([replace(validation.ask(t, rows[0]), keys={}) for t in texts])
    given = batch.inputs[Modality.TEXT]
    pooled = model.encoders["text"](given.values, given.mask).pooled()
labels = torch.tensor([kinds.index(k) for k in texts.values()])
odd = torch.arange(len(labels)) % 2 == 1
right = accuracy_of_ridge(pooled[odd], labels[odd], pooled[~odd], labels[~odd])
print(f"family from the pooled question: {right:.3f}")
# %% [markdown]
Half of the wordings train the probe, the other half test it.

## 02, exercise 4: larger patches
# %%
swin = settings.model.vision.overrides
coarse = replace(settings.model.vision, overrides={**swin, "patch_size": 8, "window_size": 4})
fine = replace(settings.model.vision, overrides={**swin, "patch_size": 4})
pictures = torch.stack([torch.from_numpy(store.picture(r).copy()) for r in rows[:16]])
seen = torch.ones(len(pictures), 1, dtype=torch.bool)
encoders = {name: VisionEncoder(c, out_dim=256).eval() for name, c in (("4 px", fine), ("8 px", coarse))}
with torch.inference_mode():
    for name, vision in encoders.items():
        print(f"patches of {name}: {vision(pictures, seen).values.shape[1]} cells")
    timed = {name: (lambda v=vision: v(pictures, seen)) for name, vision in encoders.items()}
    dearer = ratio(interleaved_seconds(timed, rounds=settings.timing_rounds), "4 px", "8 px")
run.record("solutions/fine_patches_time", dearer.median, (dearer.low, dearer.high), "x", higher_is_better=False)
print(f"4 px patches take {dearer.median:.1f} times as long")
# %% [markdown]
## 02, exercise 5: merging, or bits?
# %%
with torch.inference_mode():
    encoded = world.model.encode(collate([scenes[i] for i in range(min(200, len(scenes)))]))
sizes = {
    "as it is": {m: t.mask.sum() * (t.values.shape[2] + 3) for m, t in encoded.items()},
    "merged": {m: adaptive(t, alike=0.95, error=0.0)[1].sum() for m, t in encoded.items()},
    "fewer bits": {m: adaptive(t, alike=1.01, error=0.016)[1].sum() for m, t in encoded.items()},
}
for name, parts in sizes.items():
    print(f"{name:11}", {m.value: f"{float(size) / 1000:,.0f} kB" for m, size in parts.items()})
# %% [markdown]
Which saves more depends on the modality: a clip has many cells of plain background, a text has none.

## 03, exercise 1: without the division
# %%
torch.manual_seed(seed)
query, keys = torch.randn(1000, 256), torch.randn(64, 256)
for name, scale in (("divided by 16", 16.0), ("not divided", 1.0)):
    largest = (query @ keys.T / scale).softmax(dim=1).max(dim=1).values
    print(f"{name:14} the largest of 64 weights is {largest.mean():.2f} on average")
# %% [markdown]
Without the division the softmax is nearly one-hot from the start, and a softmax that is one-hot passes hardly any gradient.

## 03, exercise 2: heads and questions
# %%
path = Path(Modality.TEXT, Modality.IMAGE)
with torch.inference_mode():
    maps = {}
    for question in ("what shape is in the image?", "what color is the shape?"):
        output = model(collate([validation.ask(question, r) for r in rows[:100]]), need_weights=True)
        maps[question] = output.fusion.attention[-1][path].mean(dim=2)  # [pictures, heads, cells]
shape_maps, colour_maps = maps.values()
distance = (shape_maps - colour_maps).abs().sum(dim=-1).mean(dim=0) / 2  # total variation, per head
for head, value in enumerate(distance.tolist()):
    print(f"head {head}: {value:.3f} of the attention moves between the two questions")
# %% [markdown]
## 03, exercise 3: the picture removed

A picture whose tokens are all masked is a picture that is not there; `without` does the same for the whole batch. It takes
away more than the path: the head cannot read the picture's tokens either.
# %%
loader = data.val_dataloader()
with_picture = predict(model, loader, validation)
without_picture = predict(model, loader, validation, change=lambda b: b.without(Modality.IMAGE))
for family in ("yes/no", "shape", "colour"):
    pair = with_picture.only(family).accuracy, without_picture.only(family).accuracy
    print(f"{family:7} with the picture {pair[0]:.3f}, without {pair[1]:.3f}")
run.record("solutions/accuracy_without_picture", without_picture.accuracy, control=True)
# %% [markdown]
## 03, exercise 4: how far from uniform?
# %%
batch = collate([validation.ask("what shape is in the image?", r) for r in rows[:100]])
with torch.inference_mode():
    for name, network in (("before training", recipe.new_model(data).eval()), ("trained", model)):
        weights = network(batch, need_weights=True).fusion.attention[-1][path]
        off = (weights - 1 / weights.shape[-1]).abs().sum(dim=-1).mean().item() / 2
        print(f"{name:15} total variation from uniform {off:.3f}")
# %% [markdown]
0 is uniform, 1 is everything on one cell.

## The exercises that train

- 04, 1: from the last multiple of `checkpoint_every`. The weights are the same to the last bit: each step's randomness depends on
  (seed, epoch, batch) alone, and the loader continues at the same batch. `tests/learning/test_learning.py` checks it.
- 04, 2: `omni-lab run 04 -p learning_rate=0.0003`; results appear beside the default run, in a folder of their own.
- 04, 3 and 4: `with_changes(settings, data=with_changes(settings.data, balance_families=False))`, and likewise for `model`, then
  `load_or_train(get_recipe("easy_vqa", changed))`. Each configuration trains in a folder of its own.
