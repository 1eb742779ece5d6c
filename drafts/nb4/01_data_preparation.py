# %% [markdown]
# Data preparation: from files and worlds to batches

**The question.** How do pictures, sounds, clips and questions become batches, fast, safely, and without computing
anything twice? And how well can one answer *without looking* or *without listening*?

*Hardware:* two CPU cores suffice. *Measured* (profile `quick`, two CPU cores): @@01_data_preparation@@.
# %%
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from IPython.display import Audio, display
# %%
from omni_lab.config import get_profile
from omni_lab.data import EasyVqa, EmojiWorld, OmniDataModule, Spoken, Store, StoreError, TalkingFace
from omni_lab.data import collate, ensure_store
from omni_lab.data.module import QuestionDataset
from omni_lab.data.pictures import read_picture
from omni_lab.data.sampling import OmniBatchSampler
from omni_lab.data.sentences import hsk_sentences
from omni_lab.data.speech import HELD_OUT, Voice, speak
from omni_lab.data.speech_sets import human_recordings
from omni_lab.data.vqa_v2 import normalise, soft_scores
# %%
from omni_lab.evaluation import blind_table, bootstrap_interval, interleaved_seconds
from omni_lab.evaluation import majority_by_question, predict_blind, ratio
from omni_lab.learning import get_recipe, load_or_train
from omni_lab.learning.multitask import answer_loss
from omni_lab.modalities import Modality
from omni_lab.results import start_run
from omni_lab.viz import CONTROL, METHOD, blind_chart, phonemes_and_mouth
from omni_lab.viz import show_pictures, show_scene, strip, use_style
# %% parameters
profile = "quick"  # smoke, quick or full
seed = 0  # of the batches drawn, and of the model that is loaded or trained
output_dir = ""  # where results go; empty: reports/interactive/
reads = 500  # pictures read per round when reading speed is measured
batched_questions = 400  # questions per round when batching is measured
retrain = False  # ignore existing checkpoints and train afresh
# %%
settings = get_profile(profile)
run = start_run("01_data_preparation", profile=profile, seed=seed, output_dir=output_dir, reads=reads, questions=batched_questions)
use_style()
# %% [markdown]
## A source and its store

A *source* is an adapter that reads a set in its official format. `EasyVqa` reads the files inside the installed
package; `VqaV2` reads the official VQA v2 files, if you have them (see `data/README.md`).

A *store* is built from a source once: Arrow tables that are mapped into memory, so reading a picture needs no decoding and
worker processes share the pages. It is built under a temporary name and renamed when complete. Here we build one in a
scratch folder; the other notebooks share `data/stores/`.
# %%
source = EasyVqa()
scratch_folder = tempfile.TemporaryDirectory()  # goes when the kernel does
scratch = Path(scratch_folder.name)
store = ensure_store(source, scratch)

print("rows:", store.manifest["rows"])
print("answers:", ", ".join(store.answers))
print(f"size: {store.bytes / 1e6:.1f} MB in {len(store.manifest['files'])} files")
run.record("data/store_mb", store.bytes / 1e6, unit="MB", higher_is_better=False)
# %% [markdown]
## Splits that share no picture

The official test split is used for the final measurement only. Validation is cut from train **by picture**: were it cut
by question, the model would be validated on pictures it has trained on, and would look better than it is.
# %%
pictures_of = {s: set(store.questions(s).column("image").to_pylist()) for s in ("train", "validation", "test")}
for split, rows in pictures_of.items():
    print(f"{split:11} {len(rows):5,} pictures {store.questions(split).num_rows:7,} questions")
assert not pictures_of["train"] & pictures_of["validation"]
assert not (pictures_of["train"] | pictures_of["validation"]) & pictures_of["test"]
# %%
data = OmniDataModule(source, settings.data, root=scratch, seed=seed)
train, validation = data.dataset("train"), data.dataset("validation")
chosen = [int(np.flatnonzero(train.picture_rows == row)[-1]) for row in np.unique(train.picture_rows)[:8]]
captions = [f"{train.texts[i]}\n{store.answers[train.scores[i].argmax()]}" for i in chosen]
run.save_figure(show_pictures([store.picture(train.picture_rows[i]) for i in chosen], captions), "pictures");
# %% [markdown]
## What is asked, and what is answered

Three of four questions are yes/no questions, and half of those are answered "yes". That matters twice: a constant "no"
already looks better than chance, and a batch drawn at random holds few questions about shapes. The training sampler
therefore draws rare families more often (`balance_families`); a batch below shows how far that goes.
# %%
families = Counter(train.families)
truths = Counter(store.answers[i] for i in train.scores.argmax(dim=1).tolist())
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), width_ratios=[1, 2.4])
sns.barplot(x=list(families), y=list(families.values()), ax=left, color=METHOD)
left.set(title="question families", xlabel="", ylabel="training questions")
order = [a for a, _ in truths.most_common()]
sns.barplot(x=order, y=[truths[a] for a in order], ax=right, color=METHOD)
right.set(title="answers", xlabel="", ylabel="training questions")
right.tick_params(axis="x", rotation=40)
run.save_figure(figure, "distribution");
# %% [markdown]
## How far one gets without looking

The first control of every number that follows: for each question string, give the answer that was most often right in
training. "is there not a red shape?" is mostly "yes", since most shapes are not red. No picture is looked at.
# %%
blind = majority_by_question(train, validation)
interval = bootstrap_interval(blind.score, blind.scene, resamples=settings.bootstrap, seed=seed)
run.record("data/blind_accuracy", blind.accuracy, interval=interval, control=True)
print(f"without looking: {blind.accuracy:.3f} ({interval[0]:.3f} to {interval[1]:.3f})")
for family in sorted(families):
    print(f"  {family:7} {blind.only(family).accuracy:.3f}")
# %% [markdown]
## Reading fast

Decoding a PNG costs more than looking up its pixels in a mapped file. We measure both in turn, in the same process, and
report the ratio: absolute times would only describe this machine.
# %%
rng = np.random.default_rng(seed)
numbers = rng.integers(0, 4000, size=reads)
row_of = {key: row for row, key in enumerate(store.keys(Modality.IMAGE))}
folder = source.folder / "train" / "images"


def from_png() -> int:
    return sum(int(read_picture(folder / f"{n}.png", size=64, exact=True)[0, 0, 0]) for n in numbers)


def from_store() -> int:
    return sum(int(store.picture(row_of[int(n)])[0, 0, 0]) for n in numbers)


assert from_png() == from_store(), "the same pixels either way"
seconds = interleaved_seconds({"png": from_png, "store": from_store}, rounds=settings.timing_rounds)
faster = ratio(seconds, "png", "store")
run.record("data/read_speedup", faster.median, interval=(faster.low, faster.high), unit="x")
print(f"the store is {faster.median:.0f} times as fast ({faster.low:.0f} to {faster.high:.0f})")
# %% [markdown]
## Batches: padding, masks, and what is shared

A batch takes whole pictures with several questions each. Texts are padded to the longest and masked; a picture that
many questions share, and a question string that many pictures share, is held once. With $U$ distinct texts:

$$\text{padding} = 1 - \frac{\sum_u \text{length}_u}{U \cdot \max_u \text{length}_u}$$
# %%
batch = next(iter(data.train_dataloader()))
text, image = batch.inputs[Modality.TEXT], batch.inputs[Modality.IMAGE]
padding = 1 - text.mask.float().mean().item()
shares = {family: f"{n / len(batch):.0%}" for family, n in Counter(batch.families).items()}
print("families in this batch:", shares)
print(f"{len(batch)} questions, {len(text.values)} distinct, about {len(image.values)} pictures")
print(f"text {list(text.values.shape)}, {padding:.0%} padding; pictures {list(image.values.shape)}")
run.record("data/questions_per_encoded_picture", len(batch) / len(image.values), unit="questions")
run.record("data/padding_share", padding, higher_is_better=False)

figure, axis = plt.subplots(figsize=(9, 3.6))
axis.imshow(text.mask.numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
axis.grid(False)
axis.set(title="text mask: dark is a token, white is padding", xlabel="position (tokens)", ylabel="distinct question")
run.save_figure(figure, "mask");
# %% [markdown]
## What can break, breaks loudly

A store that was cut short, altered, or built from something else is never read as if nothing had happened. `Store.open`
names the file; `ensure_store` says why it rebuilds.
# %%
damaged = scratch / "damaged"
shutil.copytree(store.path, damaged / source.name, dirs_exist_ok=True)
victim = damaged / source.name / "image.arrow"
with victim.open("r+b") as file:
    file.truncate(victim.stat().st_size // 2)
try:
    Store.open(damaged / source.name)
except StoreError as error:
    print("refused:", str(error).replace(str(scratch), "..."))

repaired = ensure_store(source, damaged)
assert repaired.manifest == store.manifest, "the same source gives the same bytes"
print("rebuilt, checksums as before")
# %% [markdown]
## Soft answers: the VQA v2 way

In VQA v2 ten people answer each question. An answer scores

$$\text{accuracy}(a) = \min\left(\frac{\text{number of people who said } a}{3},\ 1\right)$$

after both sides are normalised the way the official evaluation does it. (The official script averages this over all ways
of leaving one person out: the gray line.) easy-VQA is the case of one true answer. Both
sets therefore reach the model as the same thing: a score in $[0, 1]$ for every answer.
# %%
people = ["2", "two", "Two!", "two", "3", "a couple", "2", "two", "2", "3"]
print({a: normalise(a) for a in dict.fromkeys(people)})
scores = soft_scores(people)
print(scores)
assert scores["2"] == 1.0 and abs(scores["3"] - 2 / 3) < 1e-9

figure, axis = plt.subplots(figsize=(6, 3.2))
axis.plot(range(11), [min(n / 3, 1) for n in range(11)], marker="o", color=METHOD, label="min(n / 3, 1)")
left_out = [soft_scores(["x"] * n + [str(i) for i in range(10 - n)], leave_one_out=True).get("x", 0) for n in range(11)]
axis.plot(range(11), left_out, marker="s", color=CONTROL, label="averaged over leaving one person out")
axis.set(xlabel="people of ten who gave the answer", ylabel="soft accuracy", title="what an answer scores")
axis.legend()
run.save_figure(figure, "soft_accuracy");
# %% [markdown]
## EmojiWorld: four modalities, and known needs

Real pictures leave us guessing what an answer depends on. In a world of our own we know. EmojiWorld draws scenes from Twemoji
artwork: a **picture** of one to four things, a two-second **clip** in which two things act, and a **sound** in which things
are named over noise, by eSpeak NG. All three are always there, needed or not. Captions come in English, German and Chinese
from a small grammar; boxes, movements and the time of every word are known.

A scene depends on the seed and its number alone, so the store is the same, bit for bit, whenever it is
built. We build a small one here to see how fast that goes; the store that all notebooks share is built once.
# %%
world_settings = settings.world
share = {split: max(4, count // 20) for split, count in world_settings.scenes.items()}
small = EmojiWorld(things=world_settings.things, scenes=share)
start = time.perf_counter()
small_store = ensure_store(small, scratch / "small")
seconds = time.perf_counter() - start
run.record("worlds/scenes_per_second", sum(share.values()) / seconds, unit="1/s")
again = ensure_store(EmojiWorld(things=world_settings.things, scenes=share), scratch / "again")
assert again.manifest["files"] == small_store.manifest["files"], "bit for bit the same"

emoji = get_recipe("emoji_world", settings, seed=seed)
world_data = emoji.data_module()
world_store = world_data.store  # built now, if it was not before
start = time.perf_counter()
Store.open(world_store.path, emoji.source)
run.record("worlds/open_seconds", time.perf_counter() - start, unit="s", higher_is_better=False)
run.record("worlds/store_mb", world_store.bytes / 1e6, unit="MB", higher_is_better=False)
print("rows:", world_store.manifest["rows"], f"{world_store.bytes / 1e6:,.0f} MB")
# %%
scenes = world_data.dataset("validation")
wanted = (i for i, name in enumerate(scenes.families) if name == "image_video_missing")
chosen = next(wanted, 0)
rows = {m: int(r[chosen]) for m, r in scenes.media_rows.items()}
facts = {m: world_store.facts(m, row) for m, row in rows.items()}
media = {m: world_store.medium(m, row) for m, row in rows.items()}
words = facts[Modality.AUDIO]["words"]
seen = (media[Modality.IMAGE], facts[Modality.IMAGE], media[Modality.VIDEO])
run.save_figure(show_scene(*seen, media[Modality.AUDIO], words), "scene")
print("\n".join(facts[Modality.IMAGE]["captions"].values()))
print({name: facts[Modality.AUDIO][name] for name in ("voice", "group", "snr_db")})
display(Audio(media[Modality.AUDIO], rate=16_000))
# %% [markdown]
The same scene can be asked many things. Each question belongs to a *family*, and a family knows what it **needs**: which
modalities, and which of them must meet. A spoken question has no text: its sound is the question.
# %%
asked = [i for i in range(len(scenes)) if scenes.scenes[i] == scenes.scenes[chosen]]
for i in asked:
    family = world_store.families[scenes.families[i]]
    needs = ", ".join(m.value for m in family.needs)
    answer = world_store.answers[scenes.scores[i].argmax()]
    print(f"{scenes.families[i]:22} {scenes.texts[i] or '(spoken)':48} {answer:12} needs {needs}")
# %%
first = {name: i for i, name in reversed(list(enumerate(scenes.families)))}
clips = [(name, first[name]) for name in ("video_way", "video_what", "audio_video_side") if name in first]
figure, axes = plt.subplots(len(clips), 1, figsize=(11, 1.9 * len(clips)), squeeze=False)
for axis, (name, i) in zip(axes.flat, clips, strict=True):
    axis.imshow(strip(world_store.medium(Modality.VIDEO, int(scenes.media_rows[Modality.VIDEO][i]))))
    answer = world_store.answers[scenes.scores[i].argmax()]
    axis.set_title(f"{name}: {scenes.texts[i]}  {answer}", fontsize=10)
    axis.set(xticks=[], yticks=[])
run.save_figure(figure, "clips");
# %% [markdown]
## TalkingFace: lips and speech

Some modalities belong together so closely that they should meet early. TalkingFace draws a face whose mouth follows the
phonemes: closed for *b*, *p*, *m*, wide open for *a*, round for *w*. In half of the pairs the lips follow the sound; in the
rest they come too early or too late, or say something else. Neither stream alone tells which.
# %%
utterance = speak("a banana left of a blue butterfly", "en", Voice("f1", rate=150))
run.save_figure(phonemes_and_mouth(utterance), "talking_face")
display(Audio(utterance.samples, rate=16_000))
faces = TalkingFace(clips={"train": 40, "validation": 8, "test": 8})
pairs = list(faces.pairs("train"))
print(Counter(pair.kind for pair in pairs))
# %% [markdown]
Speech comes in three languages, and mixed. The voices in the last line speak in test splits only.
# %%
texts = [("de", "ein Frosch über einem Schlüssel"), ("zh", "一只青蛙和一把钥匙"), ("zh", "我喜欢 pizza")]
for language, text in texts:
    said = speak(text, language)
    print(f"{said.seconds:.1f} s, {len(said.words)} words, {len(said.phonemes)} phonemes: {text}")
    display(Audio(said.samples, rate=16_000))
print("held out:", ", ".join(HELD_OUT))
# %% [markdown]
## Real sets behind the same interface

`Spoken` turns any set of written questions into spoken ones. `hsk_sentences` gives Chinese sentences with their English
translations. A handful of *human* recordings is kept for tests outside the distribution, never for training: eight
sentences, all by men, from the test data of pocketsphinx. `data/README.md` names the licences.
# %%
spoken = Spoken(EasyVqa(), takes=1)
print("easy-VQA, spoken:", {split: len(questions) for split, questions in spoken.questions().items()})
sentences = hsk_sentences()
print("sentences:", {split: len(pairs) for split, pairs in sentences.items()})
print("  ", sentences["train"][0].chinese, "=", sentences["train"][0].english)
recordings = human_recordings()
for clip in recordings[:3]:
    print(f"{clip.id}: {clip.transcript!r}, a {clip.speaker}, {len(clip.sound()) / 16_000:.1f} s")
display(Audio(recordings[0].sound(), rate=16_000))
# %% [markdown]
## Can the blind answer?

A world whose answers can be guessed teaches nothing about routing. So within every family, whoever lacks one needed
modality should do no better than **chance**: the best that one can do who knows the rules but not that modality. Where
two things are named and the text says which is meant, chance without the text is one half.

We test it with a network that was trained for it: in a tenth of its training batches one modality was missing, so it has
learned to guess. For each family we take the *best* of the blind, over the modalities it needs; taking the best of several favours
the blind a little. 95 % intervals resample scenes.

Where the network stays far *below* chance it does not even narrow the answers down to those that are possible. A better guesser
would. So the tests of the library go further: a guesser that is handed every fact of the modalities that are left, and counts which
answers went with them, does not get past chance either (`tests/data/test_world_balance.py`).
# %%
trained = load_or_train(emoji, retrain=retrain)
print("weights:", trained.origin)
test = trained.data.dataset("test")
predictions = predict_blind(trained.model, trained.data.loader("test"), test)
table = blind_table(predictions, world_store.families, resamples=settings.bootstrap, seed=seed)
print(f"{'family':27} {'n':>5} {'chance':>7} {'dense':>7} {'blind':>7}  without")
for row in table:
    numbers = f"{row.chance:7.3f} {row.dense:7.3f} {row.blind:7.3f}"
    print(f"{row.family:27} {row.questions:5} {numbers}  {row.lost}")
# %%
run.save_figure(blind_chart(table), "blind")
everything = predictions[None]
interval = bootstrap_interval(everything.score, everything.scene, resamples=settings.bootstrap, seed=seed)
run.record("worlds/dense_accuracy", everything.accuracy, interval=interval)
for row in table:
    run.record(f"worlds/dense_{row.family}", row.dense, interval=row.dense_interval)
    run.record(f"worlds/blind_{row.family}", row.blind, interval=row.blind_interval, control=True)
gaps = np.array([row.blind - row.chance for row in table])
run.record("worlds/blind_gap", gaps.max(), unit="share", higher_is_better=False)
run.record("worlds/blind_gap_mean", gaps.mean(), unit="share", higher_is_better=False)
within = sum(gap <= 0.02 for gap in gaps)
clear = sum(row.blind_interval[0] > row.chance + 0.02 for row in table)
seeing = sum(row.dense_interval[0] > row.chance for row in table)
print(f"{within} of {len(table)} families: the best blind model is at most two points above chance")
print(f"{clear} families: it is above by more than two points, even at the lower end of its interval")
print(f"{seeing} families: with everything, the model beats chance at the lower end of its interval")
# %% [markdown]
## Outside of the distribution: human voices

All speech so far came from one synthesiser. Does the model tell a human man's voice from a woman's? Eight recordings, all by
men, each asked both ways. As no woman speaks, a model that always says "man" would look perfect: read this as a smoke test
of transfer, not as an accuracy.
# %%
def ask_about_sound(text, samples):
    asked = test.ask(text, int(test.picture_rows[0]))
    heard = {**asked.inputs, Modality.AUDIO: torch.from_numpy(samples)}
    return replace(asked, inputs=heard, keys={})


texts = {"is the speaker a man?": "yes", "is the speaker a woman?": "no"}
batch = collate([ask_about_sound(text, clip.sound()[:32_000]) for clip in recordings for text in texts])
with torch.inference_mode():
    said = [world_store.answers[a] for a in trained.model(batch).heads["answer"].argmax(dim=1)]
right = [answer == truth for answer, truth in zip(said, [*texts.values()] * len(recordings), strict=True)]
run.record("worlds/human_voice_accuracy", np.mean(right))
both = Counter(zip(said[::2], said[1::2], strict=True))
print(f"{sum(right)} of {len(right)} right; to (a man?, a woman?): {dict(both)}")
# %% [markdown]
## Batches of one kind

If each sample carries only what it needs, a plain random batch mixes texts, pictures and clips, and is as large as the
costliest sample allows. `OmniBatchSampler` puts samples of one combination of modalities together, sorts them into buckets
of like cost, and lets the budget decide the size: many texts, fewer pictures, few clips. Questions about one scene stay
together, as they share its media.

Padding is measured where there is a length: word pieces and sound tokens.
# %%
lean = QuestionDataset(world_store, "train", only_needed=True, max_scenes=max(20, batched_questions // 6))
weights = np.array([world_settings.data.costs[m] for m in Modality])
pieces = np.maximum(lean.lengths(), 1)
samples = [len(world_store.medium(Modality.AUDIO, r)) for r in lean.media_rows[Modality.AUDIO]]
sounds = np.array(samples) / 16_000 / 0.12  # in tokens
ones = np.ones(len(lean))
relative = np.stack([pieces / 10, ones, sounds / 12, ones], axis=1)  # of a typical input
costs = (lean.present * relative * weights).sum(axis=1)
budget = world_settings.data.budget / 2
# %%
plain_size = max(1, int(budget / costs.max()))
order = np.random.default_rng(seed).permutation(len(lean))[:batched_questions]
plain = [order[i : i + plain_size].tolist() for i in range(0, len(order), plain_size)]
picked = np.sort(order)
options = {"budget": budget, "costs": costs[picked], "shuffle": True, "seed": seed}
kinds = lean.combinations()[picked]
grouped = OmniBatchSampler(picked, combinations=kinds, **options)
shared = OmniBatchSampler(lean.scenes[picked], combinations=kinds, **options)
ways = {"plain": plain, "grouped": [picked[b].tolist() for b in grouped], "shared": [picked[b].tolist() for b in shared]}
# %%
def padded_share(batches):
    """Of all positions in text and sound inputs, how many are padding?"""
    real = total = 0
    for batch in batches:
        for column, lengths in ((0, pieces), (2, sounds)):
            held = lengths[[i for i in batch if lean.present[i, column]]]
            real, total = real + held.sum(), total + (held.max() * len(held) if len(held) else 0)
    return 1 - real / total


network = emoji.new_model(world_data)
ready = {name: [collate([lean[i] for i in batch]) for batch in batches] for name, batches in ways.items()}


def learn_from(batches):
    for batch in batches:
        answer_loss(network(batch).heads["answer"], batch.targets["answer_scores"]).backward()
        network.zero_grad()


timed = {name: lambda b=batches: learn_from(b) for name, batches in ready.items()}
seconds = interleaved_seconds(timed, rounds=max(2, settings.timing_rounds // 3))
# %%
for name, batches in ways.items():
    sizes = sorted(map(len, batches))
    print(f"{name:8} {len(batches):4} batches of {sizes[0]} to {sizes[-1]} questions", end=", ")
    print(f"{padded_share(batches):.1%} padding")
run.record("batching/padding_plain", padded_share(plain), higher_is_better=False, control=True)
run.record("batching/padding_saved", 1 - padded_share(ways["grouped"]) / padded_share(plain))
for name, record in (("grouped", "throughput_gain"), ("shared", "throughput_gain_shared")):
    gain = ratio(seconds, "plain", name)
    run.record(f"batching/{record}", gain.median, interval=(gain.low, gain.high), unit="x")
    print(f"{name}: {gain.median:.2f} times as fast as plain ({gain.low:.2f} to {gain.high:.2f})")
# %% [markdown]
## Summary

- One store per set, built atomically, verified by checksum, mapped into memory; worlds are rebuilt bit for bit.
- Splits are cut by scene. In easy-VQA a blind guesser looks good; EmojiWorld is balanced so that it does not.
- A batch holds each distinct input once, and samples of one kind; the budget sets its size.

## Exercises

1. Cut validation by *question* instead. How many validation pictures does the training split then share?
2. What accuracy does the blind guesser of easy-VQA reach if it may use the question's family only? Why is that lower?
3. Pad every text to 64 tokens instead of the longest in the batch. What share of the text is padding then?
4. Write a source of your own with two pictures and four questions, and build its store.
5. Unbalance EmojiWorld: let `ask_sound` ask "is the speaker a woman?" only. Which blind model notices?

Solutions are in `90_solutions`.
