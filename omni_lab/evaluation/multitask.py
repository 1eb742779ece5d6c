"""What the heads of a model say of the examples of a task, beside those who may not look."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from omni_lab.batch import Modality, OmniBatch
from omni_lab.data.collate import Sample, collate
from omni_lab.data.tokenizer import DecoderTokenizer
from omni_lab.heads.detection import Detections
from omni_lab.heads.text import GenerationConfig
from omni_lab.heads.tts import GriffinLimVocoder
from omni_lab.layers.mel import LogMelSpectrogram
from omni_lab.metrics.detection import mean_average_precision
from omni_lab.metrics.restoration import psnr_ssim
from omni_lab.metrics.text import bleu, error_rate
from omni_lab.model import OmniModel
from omni_lab.worlds.tasks import TaskBatch, TaskDataset, valid_captions
from omni_lab.worlds.things import ambiguous_words

Change = Callable[[OmniBatch], OmniBatch]


class TextPredictions(NamedTuple):
    """written, and all that would be right, of examples of some kinds; in lower case."""

    predictions: list[str]
    references: list[list[str]]
    kinds: list[str]

    def select(self, *kinds: str) -> TextPredictions:
        """The examples of these kinds."""
        kept = [i for i, kind in enumerate(self.kinds) if kind in kinds]
        return TextPredictions(*([column[i] for i in kept] for column in self))  # type: ignore[arg-type]

    @property
    def right(self) -> list[bool]:
        """Whether each is exactly one of its references."""
        return [text in known for text, known in zip(self.predictions, self.references, strict=True)]


class WordSense(NamedTuple):
    """Which of two things a word was taken for (None: neither), and which it meant, as they are called in the language
    that is translated into. word: its number among `ambiguous_words`."""

    said: str | None
    meant: str
    word: int


def senses(texts: TextPredictions) -> list[WordSense]:
    """Of translations of sentences in which a word means two things. Raises ValueError where none of them is meant."""
    found = []
    for text, (known, *_), kind in zip(*texts, strict=True):
        source, target = kind.split(",")[0].split("-")
        meanings = []
        for number, word in enumerate(ambiguous_words()):
            names = [sense.names[target].lower() for sense in word.senses] if word.language == source else []
            meant = _longest(names, known, target)
            if meant is not None:
                meanings.append(WordSense(_longest(names, text, target), meant, number))
        if not meanings:
            raise ValueError(f"no word of {known!r} is one of two: {kind}")
        found.append(max(meanings, key=lambda sense: len(sense.meant)))
    return found


def _longest(names: Sequence[str], text: str, language: str) -> str | None:
    """Of the names that stand in the text, as words of their own where the language has spaces ("pen" is in no
    "penguin")."""
    edge = "" if language == "zh" else r"\b"
    return max((name for name in names if re.search(edge + re.escape(name) + edge, text)), key=len, default=None)


def without_images(batch: OmniBatch) -> OmniBatch:
    """The same samples, but their pictures are not there."""
    rows = batch.inputs[Modality.IMAGE].entry_index
    return batch.with_entry_index(Modality.IMAGE, torch.full_like(rows, -1))


class RestoredImages(NamedTuple):
    """Restored pictures and whole ones [B, 3, H, W] in [0, 1]; damaged ones as they were given; what of them was kept,
    [B, H, W], for holes."""

    restored: Float[Tensor, "b 3 h w"]
    whole: Float[Tensor, "b 3 h w"]
    damaged: UInt8[Tensor, "b 3 h w"]
    kept: Bool[Tensor, "b h w"] | None


class DetectionPredictions(NamedTuple):
    """What was found in each picture, and what is there: see `BoxesHead`."""

    found: list[Detections]
    labels: Int[Tensor, "b n"]
    boxes: Float[Tensor, "b n 4"]


class SynthesizedSpeech(NamedTuple):
    """Sounds [S] at 16 kHz of each text: by the head, and by the voice that it learned from."""

    texts: list[str]
    voices: list[str]
    ours: list[Tensor]
    reference: list[Tensor]


def iter_examples(tasks: TaskDataset, task: str, count: int | None = None, **wanted: Any) -> Iterator[TaskBatch]:
    """The first examples of a task (all of them), in batches. wanted: see `HeadTasks.batch`."""
    if count is not None and count < 0:
        raise ValueError(f"count must be 0 or more: got {count}")
    end = tasks.examples[task] if count is None else min(count, tasks.examples[task])
    for start in range(0, end, tasks.sizes[task]):
        yield tasks.batch(task, range(start, min(start + tasks.sizes[task], end)), **wanted)


@torch.inference_mode()
def generate_texts(
    model: OmniModel,
    codec: DecoderTokenizer,
    batches: Iterable[TaskBatch],
    *,
    decoding: GenerationConfig | None = None,
    change: Change = lambda batch: batch,
) -> TextPredictions:
    """What the text head writes. change: what is done to each batch before the model sees it."""
    found = TextPredictions([], [], [])
    for given in batches:
        told = {"prompt": given.targets["prompt"], "generation": decoding or GenerationConfig()}
        ids = model(change(given.batch), heads={"text": told}).head_outputs["text"].sequences
        found.predictions.extend(codec.batch_decode(ids))
        found.references.extend([_as_read(text) for text in known] for known in given.references)
        found.kinds.extend(given.kinds)
    return found


def _as_read(text: str) -> str:
    """As a codec writes it: in lower case, and "，" as ","."""
    return unicodedata.normalize("NFKC", text).lower()


@torch.inference_mode()
def detect(model: OmniModel, batches: Iterable[TaskBatch]) -> DetectionPredictions:
    """What the boxes head finds."""
    head: Any = model.heads["detection"]
    found: list[Detections] = []
    labels, boxes = [], []
    for given in batches:
        found += head.post_process(model(given.batch, heads={"detection": {}}).head_outputs["detection"])
        labels.append(given.targets["labels"])
        boxes.append(given.targets["boxes"])
    return DetectionPredictions(found, torch.cat(labels), torch.cat(boxes))


@torch.inference_mode()
def restore_images(
    model: OmniModel, batches: Iterable[TaskBatch], *, change: Change = lambda batch: batch
) -> RestoredImages:
    """What the pixels head makes of damaged pictures, all damaged alike."""
    parts = []
    for given in batches:
        told = {"image": given.targets["damaged"], "keep_mask": given.targets.get("kept")}
        restored = model(change(given.batch), heads={"restoration": told}).head_outputs["restoration"]
        parts.append((restored, given.targets["picture"] / 255, told["image"], told["keep_mask"]))
    restored, whole, damaged, kept = zip(*parts, strict=True)
    return RestoredImages(
        torch.cat(restored), torch.cat(whole), torch.cat(damaged), None if kept[0] is None else torch.cat(kept)
    )


def posterior_mean_fill(tasks: TaskDataset, count: int | None = None) -> Float[Tensor, "n 3 h w"]:
    """What no filling of holes can be expected to outdo in squared error, if it is not told what is missing: of the
    first `count` examples of `restore` (default: all) the mean over all things that could stand there, each as much as
    `HeadTasks.supposed` says. In [0, 1]. It knows the background, the place and the turn of the thing, and how often
    things come again, but not which sets of things belong to which split."""
    guesses = []
    for k in range(tasks.examples["restore"] if count is None else count):
        pictures, chances = tasks.inpainting_candidates(k)
        guesses.append(torch.tensordot(chances, pictures.float() / 255, 1))
    return torch.stack(guesses)


@torch.inference_mode()
def answer_hits(
    model: OmniModel, batches: Iterable[TaskBatch], *, change: Change = lambda batch: batch
) -> Bool[Tensor, " n"]:
    """[n], whether the answer head is right."""
    hits = []
    for given in batches:
        logits = model(change(given.batch), heads=["answer"]).head_outputs["answer"]
        hits.append(logits.argmax(1) == given.targets["answer_scores"].argmax(1))
    return torch.cat(hits)


@torch.inference_mode()
def synthesize_speech(
    model: OmniModel, tasks: TaskDataset, batches: Iterable[TaskBatch], *, vocoder: GriffinLimVocoder
) -> SynthesizedSpeech:
    """What the speech head says of examples of these tasks, with durations of its own."""
    said = SynthesizedSpeech([], [], [], [])
    for given in batches:
        told = {name: given.targets[name] for name in ("ids", "voice")}
        spoken = model(given.batch, heads={"tts": told}).head_outputs["tts"]
        for mel, frames in zip(spoken.mel, spoken.frames.tolist(), strict=True):
            said.ours.append(vocoder(mel[None, :frames])[0])
        for k in (int(name.rpartition("-")[2]) for name in given.batch.ids):
            said.texts.append(tasks.tts_utterances.lines[k].text)
            said.reference.append(torch.from_numpy(tasks.tts_utterances.sound(k)))
        said.voices.extend(given.kinds)
    return said


@torch.inference_mode()
def nearest_captions(model: OmniModel, tasks: TaskDataset, count: int, asked: Iterable[TaskBatch]) -> list[str]:
    """For each picture a caption, in the language that is asked for, of that one among the first `count` pictures of
    these tasks, all whole, which the model's own eyes find most alike: the largest cosine of their cells side by side.
    """
    looks, gallery, step = [], [], tasks.sizes["describe"]
    for start in range(0, count, step):
        known = [tasks.caption_scene(k) for k in range(start, min(start + step, count))]
        gallery += [placed for placed, _ in known]
        looks.append(_looks(model, collate([Sample("", "", "", {Modality.IMAGE: shown}) for _, shown in known])))
    seen, found = torch.cat(looks), []
    for given in asked:
        nearest = (_looks(model, given.batch) @ seen.T).argmax(1).tolist()
        for i, kind in zip(nearest, given.kinds, strict=True):
            found.append(_as_read(valid_captions(gallery[i], kind.split(",")[0])[0]))
    return found


def _looks(model: OmniModel, batch: OmniBatch) -> Float[Tensor, "b f"]:
    tokens = cast(Any, model.encode(batch)[Modality.IMAGE]).expand_entries()
    return torch.nn.functional.normalize(tokens.values.flatten(1), dim=1) * tokens.mask.any(1)[:, None]


class TaskScore(NamedTuple):
    """How well a model does at a task, in one number. what: it is."""

    value: float
    what: str
    higher_is_better: bool = True


def task_score(model: OmniModel, tasks: TaskDataset, task: str, done: Any = None) -> TaskScore:
    """One number for each task, to compare models by, over all examples of `tasks`. done: what `write`, `find`,
    `answer`, or `restore` (of holes, untold) gave for all of them, if that is known already."""
    if done is None:
        batches = (
            iter_examples(tasks, task, damage="hole", hint="untold")
            if task == "restore"
            else iter_examples(tasks, task)
        )
        ways: dict[str, Callable[..., Any]] = {
            "find": detect,
            "answer": answer_hits,
            "restore": restore_images,
            "speak": spectrogram_distance,
        }
        done = ways[task](model, batches) if task in ways else generate_texts(model, tasks.tokenizer, batches)
    if task == "find":
        return TaskScore(mean_average_precision(*done, resamples=1).map50.value, "mAP at an overlap of 0.5")
    if task == "answer":
        return TaskScore(float(done.double().mean()), "accuracy of chosen answers")
    if task == "restore":
        psnr = psnr_ssim(done.restored, done.whole).psnr
        return TaskScore(float(psnr.mean()), "PSNR of pictures with a hole (dB)")
    if task == "speak":
        return TaskScore(done, "distance of log mel spectrograms", False)
    if task == "transcribe":
        heard = done.select(*(kind for kind in done.kinds if "hsk" not in kind))
        known = [references[0] for references in heard.references]
        rate = error_rate(heard.predictions, known, unit="character", resamples=1)
        return TaskScore(rate.value, "character error rate", False)
    scores = []
    for kind in dict.fromkeys(kind for kind in done.kinds if "hsk" not in kind and "begun" not in kind):
        some = done.select(kind)
        scores.append(bleu(some.predictions, some.references, kind.split(",")[0][-2:], resamples=1).value)
    return TaskScore(sum(scores) / len(scores), "BLEU-4, mean over kinds of texts")


@torch.inference_mode()
def spectrogram_distance(model: OmniModel, batches: Iterable[TaskBatch]) -> float:
    """Mean distance of log energies between what the speech head says, with the reference's durations, and the
    reference."""
    mel, head = LogMelSpectrogram(), cast(Any, model.heads["tts"])
    distances, frames = [], []
    for given in batches:
        told = {name: given.targets[name] for name in ("ids", "voice", "durations")}
        spoken = model(given.batch, heads={"tts": told}).head_outputs["tts"]
        distances.append(head.loss(spoken, mel(given.targets["wave"]).transpose(1, 2), told["durations"])[0])
        frames.append(spoken.frames.sum())
    return float((torch.stack(distances) * torch.stack(frames)).sum() / torch.stack(frames).sum())
