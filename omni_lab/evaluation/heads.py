"""What the heads of a model say of the examples of a task, beside those who may not look."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from omni_lab.data.samples import Sample, collate
from omni_lab.data.tokenizer import Codec
from omni_lab.data.worlds.ambiguous import ambiguous_words
from omni_lab.data.worlds.tasks import HeadBatch, HeadTasks, captions
from omni_lab.encoders.audio import LogMel
from omni_lab.evaluation.found import average_precision
from omni_lab.evaluation.restored import restoration
from omni_lab.evaluation.written import bleu, error_rate
from omni_lab.heads import Decoding, GriffinLim, Objects
from omni_lab.modalities import Modality, OmniBatch
from omni_lab.model import OmniModel

Change = Callable[[OmniBatch], OmniBatch]


class Texts(NamedTuple):
    """written, and all that would be right, of examples of some kinds; in lower case."""

    written: list[str]
    references: list[list[str]]
    kinds: list[str]

    def of(self, *kinds: str) -> Texts:
        """The examples of these kinds."""
        kept = [i for i, kind in enumerate(self.kinds) if kind in kinds]
        return Texts(*([column[i] for i in kept] for column in self))  # type: ignore[arg-type]

    @property
    def right(self) -> list[bool]:
        """Whether each is exactly one of its references."""
        return [text in known for text, known in zip(self.written, self.references, strict=True)]


class Sense(NamedTuple):
    """Which of two things a word was taken for (None: neither), and which it meant, as they are called in the language
    that is translated into. word: its number among `ambiguous_words`."""

    said: str | None
    meant: str
    word: int


def senses(texts: Texts) -> list[Sense]:
    """Of translations of sentences in which a word means two things. Raises ValueError where none of them is meant."""
    found = []
    for text, (known, *_), kind in zip(*texts, strict=True):
        source, target = kind.split(",")[0].split("-")
        meanings = []
        for number, word in enumerate(ambiguous_words()):
            names = [sense.names[target].lower() for sense in word.senses] if word.language == source else []
            meant = _longest(names, known, target)
            if meant is not None:
                meanings.append(Sense(_longest(names, text, target), meant, number))
        if not meanings:
            raise ValueError(f"no word of {known!r} is one of two: {kind}")
        found.append(max(meanings, key=lambda sense: len(sense.meant)))
    return found


def _longest(names: Sequence[str], text: str, language: str) -> str | None:
    """Of the names that stand in the text, as words of their own where the language has spaces ("pen" is in no
    "penguin")."""
    edge = "" if language == "zh" else r"\b"
    return max((name for name in names if re.search(edge + re.escape(name) + edge, text)), key=len, default=None)


def unseen(batch: OmniBatch) -> OmniBatch:
    """The same samples, but their pictures are not there."""
    rows = batch.inputs[Modality.IMAGE].rows
    return batch.with_rows(Modality.IMAGE, torch.full_like(rows, -1))


class Pictures(NamedTuple):
    """Restored pictures and whole ones [B, 3, H, W] in [0, 1]; damaged ones as they were given; what of them was kept,
    [B, H, W], for holes."""

    restored: Float[Tensor, "b 3 h w"]
    whole: Float[Tensor, "b 3 h w"]
    damaged: UInt8[Tensor, "b 3 h w"]
    kept: Bool[Tensor, "b h w"] | None


class Finds(NamedTuple):
    """What was found in each picture, and what is there: see `BoxesHead`."""

    found: list[Objects]
    labels: Int[Tensor, "b n"]
    boxes: Float[Tensor, "b n 4"]


class Speech(NamedTuple):
    """Sounds [S] at 16 kHz of each text: by the head, and by the voice that it learned from."""

    texts: list[str]
    voices: list[str]
    ours: list[Tensor]
    reference: list[Tensor]


def examples(tasks: HeadTasks, task: str, count: int | None = None, **wanted: Any) -> Iterator[HeadBatch]:
    """The first examples of a task (all of them), in batches. wanted: see `HeadTasks.batch`."""
    if count is not None and count < 0:
        raise ValueError(f"count must be 0 or more: got {count}")
    end = tasks.examples[task] if count is None else min(count, tasks.examples[task])
    for start in range(0, end, tasks.sizes[task]):
        yield tasks.batch(task, range(start, min(start + tasks.sizes[task], end)), **wanted)


@torch.inference_mode()
def write(
    model: OmniModel,
    codec: Codec,
    batches: Iterable[HeadBatch],
    *,
    decoding: Decoding | None = None,
    change: Change = lambda batch: batch,
) -> Texts:
    """What the text head writes. change: what is done to each batch before the model sees it."""
    found = Texts([], [], [])
    for given in batches:
        told = {"prompt": given.targets["prompt"], "decoding": decoding or Decoding()}
        ids = model(change(given.batch), heads={"text": told}).heads["text"].ids
        found.written.extend(codec.texts(ids))
        found.references.extend([_as_read(text) for text in known] for known in given.references)
        found.kinds.extend(given.kinds)
    return found


def _as_read(text: str) -> str:
    """As a codec writes it: in lower case, and "，" as ","."""
    return unicodedata.normalize("NFKC", text).lower()


@torch.inference_mode()
def find(model: OmniModel, batches: Iterable[HeadBatch]) -> Finds:
    """What the boxes head finds."""
    head: Any = model.heads["boxes"]
    found: list[Objects] = []
    labels, boxes = [], []
    for given in batches:
        found += head.objects(model(given.batch, heads={"boxes": {}}).heads["boxes"])
        labels.append(given.targets["labels"])
        boxes.append(given.targets["boxes"])
    return Finds(found, torch.cat(labels), torch.cat(boxes))


@torch.inference_mode()
def restore(model: OmniModel, batches: Iterable[HeadBatch], *, change: Change = lambda batch: batch) -> Pictures:
    """What the pixels head makes of damaged pictures, all damaged alike."""
    parts = []
    for given in batches:
        told = {"picture": given.targets["damaged"], "kept": given.targets.get("kept")}
        restored = model(change(given.batch), heads={"pixels": told}).heads["pixels"]
        parts.append((restored, given.targets["picture"] / 255, told["picture"], told["kept"]))
    restored, whole, damaged, kept = zip(*parts, strict=True)
    return Pictures(
        torch.cat(restored), torch.cat(whole), torch.cat(damaged), None if kept[0] is None else torch.cat(kept)
    )


def best_guesses(tasks: HeadTasks, count: int | None = None) -> Float[Tensor, "n 3 h w"]:
    """What no filling of holes can be expected to outdo in squared error, if it is not told what is missing: of the
    first `count` examples of `restore` (default: all) the mean over all things that could stand there, each as much as
    `HeadTasks.supposed` says. In [0, 1]. It knows the background, the place and the turn of the thing, and how often
    things come again, but not which sets of things belong to which split."""
    guesses = []
    for k in range(tasks.examples["restore"] if count is None else count):
        pictures, chances = tasks.supposed(k)
        guesses.append(torch.tensordot(chances, pictures.float() / 255, 1))
    return torch.stack(guesses)


@torch.inference_mode()
def answer(
    model: OmniModel, batches: Iterable[HeadBatch], *, change: Change = lambda batch: batch
) -> Bool[Tensor, " n"]:
    """[n], whether the answer head is right."""
    hits = []
    for given in batches:
        logits = model(change(given.batch), heads=["answer"]).heads["answer"]
        hits.append(logits.argmax(1) == given.targets["answer_scores"].argmax(1))
    return torch.cat(hits)


@torch.inference_mode()
def pronounce(model: OmniModel, tasks: HeadTasks, batches: Iterable[HeadBatch], *, vocoder: GriffinLim) -> Speech:
    """What the speech head says of examples of these tasks, with durations of its own."""
    said = Speech([], [], [], [])
    for given in batches:
        told = {name: given.targets[name] for name in ("ids", "voice")}
        spoken = model(given.batch, heads={"speech": told}).heads["speech"]
        for mel, frames in zip(spoken.mel, spoken.frames.tolist(), strict=True):
            said.ours.append(vocoder(mel[None, :frames])[0])
        for k in (int(name.rpartition("-")[2]) for name in given.batch.ids):
            said.texts.append(tasks.spoken.lines[k].text)
            said.reference.append(torch.from_numpy(tasks.spoken.sound(k)))
        said.voices.extend(given.kinds)
    return said


@torch.inference_mode()
def nearest_captions(model: OmniModel, tasks: HeadTasks, count: int, asked: Iterable[HeadBatch]) -> list[str]:
    """For each picture a caption, in the language that is asked for, of that one among the first `count` pictures of
    these tasks, all whole, which the model's own eyes find most alike: the largest cosine of their cells side by side.
    """
    looks, gallery, step = [], [], tasks.sizes["describe"]
    for start in range(0, count, step):
        known = [tasks.pictured(k) for k in range(start, min(start + step, count))]
        gallery += [placed for placed, _ in known]
        looks.append(_looks(model, collate([Sample("", "", "", {Modality.IMAGE: shown}) for _, shown in known])))
    seen, found = torch.cat(looks), []
    for given in asked:
        nearest = (_looks(model, given.batch) @ seen.T).argmax(1).tolist()
        for i, kind in zip(nearest, given.kinds, strict=True):
            found.append(_as_read(captions(gallery[i], kind.split(",")[0])[0]))
    return found


def _looks(model: OmniModel, batch: OmniBatch) -> Float[Tensor, "b f"]:
    tokens = cast(Any, model.encode(batch)[Modality.IMAGE]).expanded()
    return torch.nn.functional.normalize(tokens.values.flatten(1), dim=1) * tokens.mask.any(1)[:, None]


class Score(NamedTuple):
    """How well a model does at a task, in one number. what: it is."""

    value: float
    what: str
    higher_is_better: bool = True


def task_score(model: OmniModel, tasks: HeadTasks, task: str, done: Any = None) -> Score:
    """One number for each task, to compare models by, over all examples of `tasks`. done: what `write`, `find`,
    `answer`, or `restore` (of holes, untold) gave for all of them, if that is known already."""
    if done is None:
        batches = examples(tasks, task, damage="hole", hint="untold") if task == "restore" else examples(tasks, task)
        ways: dict[str, Callable[..., Any]] = {
            "find": find,
            "answer": answer,
            "restore": restore,
            "speak": spectrogram_distance,
        }
        done = ways[task](model, batches) if task in ways else write(model, tasks.codec, batches)
    if task == "find":
        return Score(average_precision(*done, resamples=1).map50.value, "mAP at an overlap of 0.5")
    if task == "answer":
        return Score(float(done.double().mean()), "accuracy of chosen answers")
    if task == "restore":
        psnr = restoration(done.restored, done.whole).psnr
        return Score(float(psnr.mean()), "PSNR of pictures with a hole (dB)")
    if task == "speak":
        return Score(done, "distance of log mel spectrograms", False)
    if task == "transcribe":
        heard = done.of(*(kind for kind in done.kinds if "hsk" not in kind))
        known = [references[0] for references in heard.references]
        rate = error_rate(heard.written, known, unit="character", resamples=1)
        return Score(rate.value, "character error rate", False)
    scores = []
    for kind in dict.fromkeys(kind for kind in done.kinds if "hsk" not in kind and "begun" not in kind):
        some = done.of(kind)
        scores.append(bleu(some.written, some.references, kind.split(",")[0][-2:], resamples=1).value)
    return Score(sum(scores) / len(scores), "BLEU-4, mean over kinds of texts")


@torch.inference_mode()
def spectrogram_distance(model: OmniModel, batches: Iterable[HeadBatch]) -> float:
    """Mean distance of log energies between what the speech head says, with the reference's durations, and the
    reference."""
    mel, head = LogMel(), cast(Any, model.heads["speech"])
    distances, frames = [], []
    for given in batches:
        told = {name: given.targets[name] for name in ("ids", "voice", "durations")}
        spoken = model(given.batch, heads={"speech": told}).heads["speech"]
        distances.append(head.loss(spoken, mel(given.targets["wave"]).transpose(1, 2), told["durations"])[0])
        frames.append(spoken.frames.sum())
    return float((torch.stack(distances) * torch.stack(frames)).sum() / torch.stack(frames).sum())
