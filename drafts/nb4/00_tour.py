# %% [markdown]
# A tour: one question, from pixels, sounds and words to an answer

**The question.** How does a model that reads, looks, listens and watches answer "how many are there of the thing named
first?"

We follow one question through the whole of `omni_lab`: a scene, a batch, four encoders, cross-modal attention, a head.
Each step is one line; the notebooks after this one open each step up.

*Hardware:* two CPU cores suffice. *Measured* (profile `quick`, two CPU cores, published models): @@00_tour@@. Whichever notebook
needs EmojiWorld first also builds its store, in two to three minutes.
# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Audio, display

from omni_lab.config import get_profile
from omni_lab.data import collate
from omni_lab.evaluation import bootstrap_interval, predict
from omni_lab.routing import Path
from omni_lab.learning import get_recipe, load_or_train
from omni_lab.modalities import Modality
from omni_lab.results import start_run
from omni_lab.viz import METHOD, architecture, attention_over_picture, lines, show_scene, use_style
# %% parameters
profile = "quick"  # smoke, quick or full
seed = 0  # of the model that is loaded or trained
output_dir = ""  # where results go; empty: reports/interactive/
family = "audio_image_count"  # which kind of question to follow, see 01
number = 3  # which validation question of that family, counted from 0
retrain = False  # ignore existing checkpoints and train afresh
# %%
settings = get_profile(profile)
run = start_run("00_tour", profile=profile, seed=seed, output_dir=output_dir, family=family, number=number)
use_style()
# %% [markdown]
## A scene: picture, clip, sound

EmojiWorld is made of Twemoji artwork and synthetic speech, so all is known of it: what stands where, what moves, who
says what when. Every scene has all three media, whether a question needs them or not. We look at the *validation*
split: scenes the model never trained on.

`load_or_train` returns a trained model: one trained on this machine before, else the small one published with the
project, else it trains one now.

The training goes in five steps. First the encoders learn to find the same thing in any of the four (`02_encoders`). Those of
pictures, clips and sounds then stay as they are, so each input is encoded only once. Next, written questions that need no ears are
asked in quiet: each comes with what it needs alone, and a batch holds questions of one kind of need. Then all questions, in quiet still.
The attention paths of spoken questions begin as copies of those of written ones, which works because the tokens of both are aligned.
Fourth, the questions that match a sound with a clip are asked by themselves. They are the hardest to learn, as nothing less than the
whole match gives a hint: "does the named thing appear?" and "is it missing?" have opposite answers. Last, questions are asked amid
everything else: at first half of them still in quiet, then fewer. When we trained with everything around from the start, most kinds of
question had not begun to be learned when the trials ended; without the fourth step, two kinds stayed near chance on validation.
# %%
trained = load_or_train(get_recipe("emoji_world", settings, seed=seed), retrain=retrain)
model, data, store = trained.model, trained.data, trained.data.store
print("weights:", trained.origin)

validation = data.dataset("validation")
asked = [i for i, name in enumerate(validation.families) if name == family]
index = asked[number % len(asked)]
question, truth = validation.texts[index], store.answers[validation.scores[index].argmax()]
rows = {m: int(r[index]) for m, r in validation.media_rows.items()}
picture, clip, sound = (store.medium(m, rows[m]) for m in (Modality.IMAGE, Modality.VIDEO, Modality.AUDIO))
facts = {m: store.facts(m, row) for m, row in rows.items()}
figure = show_scene(picture, facts[Modality.IMAGE], clip, sound, facts[Modality.AUDIO]["words"])
run.save_figure(figure, "scene")
display(Audio(sound, rate=16_000))
print(f"question: {question}   answer: {truth}")
# %% [markdown]
## What the question needs

The world knows which modalities the answer needs, and which of them must be brought together. Here the text says
*which* of the two named things is meant, the sound names it, and the picture holds it. The clip is a distraction. A
model that learns which paths to open can be judged by this.
# %%
known = store.families[family]
print("needs:", ", ".join(known.needs))
print("together:", ", ".join(f"{a} with {b}" for a, b in known.interactions))
print(f"chance level of whoever lacks one of them: {known.chance:.2f}")
# %% [markdown]
## A batch: what is there, and what is not

A sample may carry any subset of the four modalities. A batch says which are `present`; what is missing is a mask, never a
tensor of zeros that could be mistaken for silence or for a black picture.

Questions about the same scene share its media: the batch holds each once, and `rows` says who uses it.
# %%
another = validation.ask("is the sound noisy?", rows[Modality.IMAGE])
batch = collate([validation.ask(question, rows[Modality.IMAGE]), another])

for modality, given in batch.inputs.items():
    print(f"{modality:6} values {list(given.values.shape)}  rows {given.rows.tolist()}")
print("present (text, image, audio, video):", batch.present.tolist())
assert len(batch.inputs[Modality.IMAGE].values) == 1, "one picture, although two questions ask about it"
# %% [markdown]
## Four encoders, one space

Each encoder turns its modality into `Tokens`: vectors of one common width, 256, with a mask, and with times where the
modality has a clock. A picture becomes one token per cell of a grid, a clip a few per frame, a sound one per 0.12
seconds, a text one per word piece. From here on they are all the same kind of thing. `02_encoders` looks inside.
# %%
with torch.inference_mode():
    encoded = model.encode(batch)
for modality, tokens in encoded.items():
    clock = "no clock" if tokens.times is None else f"{tokens.times.min():.2f} to {tokens.times.max():.2f} s"
    print(f"{modality:6} tokens {list(tokens.values.shape)}, used by {len(tokens)} samples, {clock}")
    assert tokens.values.shape[-1] == settings.world.model.dim
# %% [markdown]
## Fusion and the answer

In a fusion layer a modality *listens* to another: its tokens ask (queries), the tokens of the other answer (keys and
values). Here the text listens to all others, and the sound to pictures and clips. `03_cross_modal_attention` derives this
step. The answer head pools what came out, and scores every answer it knows. Softmax turns scores into probabilities:

$$p_a = \frac{e^{s_a}}{\sum_b e^{s_b}}$$

Taking a modality away shows what the answer rests on.
# %%
with torch.inference_mode():
    output = model(batch, need_weights=True)
    probability = {"everything": output.heads["answer"].softmax(dim=1)[0]}
    for lost in Modality:
        probability[f"no {lost}"] = model(batch.without(lost)).heads["answer"].softmax(dim=1)[0]
best = probability["everything"].topk(5).indices.tolist()
print("answer:", store.answers[best[0]], " truth:", truth)

figure, axis = plt.subplots(figsize=(10, 3.4))
for shift, (name, values) in enumerate(probability.items()):
    places = np.arange(len(best)) + 0.16 * (shift - 2)
    colour = METHOD if shift == 0 else None
    axis.bar(places, values[best], width=0.15, label=name, color=colour, alpha=1.0 if shift == 0 else 0.55)
axis.set_xticks(range(len(best)), [store.answers[a] for a in best])
axis.set(ylabel="probability", ylim=(0, 1.15), title=question)
axis.legend(ncols=5, loc="upper center", fontsize=9)
run.save_figure(figure, "answer");
# %% [markdown]
## Where did it look, and when did it listen?

The attention weights come from the very forward that gave the answer, here from the last layer, averaged over heads. In the
picture, bright cells are those that a word listened to most. (`[CLS]` is a mark that opens every text.) For the sound, a
line per word over the seconds; the shaded spans are where the world knows that something is said.
A warning that later notebooks make precise: a map shows where information *could* flow, not that the answer depends on it.
# %%
attention = output.fusion.attention[-1]
words = [piece.replace("Ġ", "") for piece in store.tokenizer.encode(question).tokens]
looks = attention[Path(Modality.TEXT, Modality.IMAGE)][0].mean(dim=0)[: len(words)]  # [words, cells]
grid = model.encoders["image"].grid
run.save_figure(attention_over_picture(picture, looks.numpy(), grid, words), "attention");
# %%
listens = attention[Path(Modality.TEXT, Modality.AUDIO)][0].mean(dim=0)[: len(words)]  # [words, moments]
moments = encoded[Modality.AUDIO].times[0]
telling = ("[CLS]", "thing", "named", "first", "last")
shown = {word: listens[i].tolist() for i, word in enumerate(words) if word in telling}
figure = lines(moments.tolist(), shown, xlabel="seconds", ylabel="attention weight", title="text listens to the sound")
for label, start, end in facts[Modality.AUDIO]["words"]:
    figure.axes[0].axvspan(start, end, alpha=0.12, color="gray", lw=0)
    figure.axes[0].text((start + end) / 2, figure.axes[0].get_ylim()[1], label, ha="center", va="top")
run.save_figure(figure, "listening");
# %% [markdown]
## The whole of it on one page

The same run as a drawing. The shapes are those of the tensors above.
# %%
run.save_figure(architecture(model, batch, output), "architecture");
# %% [markdown]
## How good is it?

One answered question proves nothing. Here is the accuracy over all validation questions, with a 95 % interval that
resamples scenes (questions about one scene stand or fall together). What the model reaches *without* one of the modalities
it needs, on the test split, stands in `01_data_preparation`: a number without its control means little.
# %%
answers = predict(model, data.val_dataloader(), validation)
interval = bootstrap_interval(answers.score, answers.scene, resamples=settings.bootstrap, seed=seed)
run.record("tour/validation_accuracy", answers.accuracy, interval=interval)
parameters = sum(p.numel() for p in model.parameters())
run.record("tour/parameters", parameters, unit="parameters", higher_is_better=False)
print(f"validation accuracy {answers.accuracy:.3f} ({interval[0]:.3f} to {interval[1]:.3f})")
print(f"{parameters:,} parameters")
# %% [markdown]
## Summary

- A scene has a picture, a clip and a sound; each question needs some of them, and the world knows which.
- A batch holds every distinct input once; `present` says who has what.
- Encoders bring all modalities to tokens of width 256; fusion lets one listen to another; heads read the result.

## Exercises

1. Follow another family: `family = "audio_video_side"`. Which modality can now be taken away without harm?
2. Ask the scene a question in words that the world never uses ("count the first named thing"). What happens?
3. Remove the clip, which this question does not need. Does the answer's probability change? Should it?
4. Make a batch of two questions about two scenes and swap their sounds with `batch.with_rows`. Which answers change?

Solutions are in `90_solutions`.
