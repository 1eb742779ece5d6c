"""Runs the task heads on the examples of a task: what they predict, with and without images, beside baselines."""

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
from omni_lab.worlds.scene import valid_captions
from omni_lab.worlds.tasks import TaskBatch, TaskDataset
from omni_lab.worlds.things import ambiguous_words

Change = Callable[[OmniBatch], OmniBatch]  # applied to each batch before the model


class TextPredictions(NamedTuple):
    """Generated texts of n examples, each with all its valid references and its kind; in lower case."""

    predictions: list[str]
    references: list[list[str]]
    kinds: list[str]

    def select(self, *kinds: str) -> TextPredictions:
        """The examples of these kinds."""
        rows = [i for i, kind in enumerate(self.kinds) if kind in kinds]
        return TextPredictions(*([column[i] for i in rows] for column in self))  # type: ignore[arg-type]

    @property
    def exact_match(self) -> list[bool]:
        """Whether each text equals one of its references."""
        return [text in valid for text, valid in zip(self.predictions, self.references, strict=True)]


class WordSense(NamedTuple):
    """The sense of an ambiguous word in a translation, by its name in the target language."""

    predicted: str | None  # None: the prediction names neither sense
    reference: str
    word: int  # in `ambiguous_words`


def senses(texts: TextPredictions) -> list[WordSense]:
    """One per translation. Raises ValueError for a reference that names no sense of an ambiguous word."""
    result = []
    for text, (reference, *_), kind in zip(*texts, strict=True):
        source, target = kind.split(",")[0].split("-")
        candidates = []
        for number, word in enumerate(ambiguous_words()):
            names = [sense.names[target].lower() for sense in word.senses] if word.language == source else []
            correct = _longest_name(names, reference, target)
            if correct is not None:
                candidates.append(WordSense(_longest_name(names, text, target), correct, number))
        if not candidates:
            raise ValueError(f"no word of {reference!r} is a sense of an ambiguous word: {kind}")
        result.append(max(candidates, key=lambda sense: len(sense.reference)))
    return result


def _longest_name(names: Sequence[str], text: str, language: str) -> str | None:
    """The longest name in the text, as whole words in languages with spaces: "pen" is not in "penguin"."""
    edge = "" if language == "zh" else r"\b"
    return max((name for name in names if re.search(edge + re.escape(name) + edge, text)), key=len, default=None)


def without_images(batch: OmniBatch) -> OmniBatch:
    """The same samples without their images."""
    rows = batch.inputs[Modality.IMAGE].entry_index
    return batch.with_entry_index(Modality.IMAGE, torch.full_like(rows, -1))


class RestoredImages(NamedTuple):
    """Outputs of the restoration head beside its inputs and the originals; floats are in [0, 1]."""

    restored: Float[Tensor, "b 3 h w"]
    original: Float[Tensor, "b 3 h w"]
    damaged: UInt8[Tensor, "b 3 h w"]
    keep_mask: Bool[Tensor, "b h w"] | None  # False in a hole; None for other damage


class DetectionPredictions(NamedTuple):
    """Detections of each image, and the objects: the arguments of `mean_average_precision`."""

    detections: list[Detections]
    labels: Int[Tensor, "b n"]
    boxes: Float[Tensor, "b n 4"]


class SynthesizedSpeech(NamedTuple):
    """Waveforms [S] at 16 kHz of each text: by the TTS head, and by the reference voice it was trained on."""

    texts: list[str]
    voices: list[str]
    synthesized: list[Tensor]
    reference: list[Tensor]


def iter_examples(tasks: TaskDataset, task: str, count: int | None = None, **options: Any) -> Iterator[TaskBatch]:
    """The first `count` examples of a task (default: all), in batches. options: see `TaskDataset.batch`."""
    if count is not None and count < 0:
        raise ValueError(f"count must be 0 or more: got {count}")
    examples, size = range(tasks.examples[task])[:count], tasks.sizes[task]
    for start in range(0, len(examples), size):
        yield tasks.batch(task, examples[start : start + size], **options)


@torch.inference_mode()
def generate_texts(
    model: OmniModel,
    tokenizer: DecoderTokenizer,
    batches: Iterable[TaskBatch],
    *,
    decoding: GenerationConfig | None = None,
    change: Change = lambda batch: batch,
) -> TextPredictions:
    """Texts of the text head, with the prompts of the examples."""
    texts = TextPredictions([], [], [])
    for batch in batches:
        request = {"prompt": batch.targets["prompt"], "generation": decoding or GenerationConfig()}
        ids = model(change(batch.batch), heads={"text": request}).head_outputs["text"].sequences
        texts.predictions.extend(tokenizer.batch_decode(ids))
        texts.references.extend([normalize_text(text) for text in valid] for valid in batch.references)
        texts.kinds.extend(batch.kinds)
    return texts


def normalize_text(text: str) -> str:
    """As the tokenizer decodes it: in lower case, and with "," for "，"."""
    return unicodedata.normalize("NFKC", text).lower()


@torch.inference_mode()
def detect(model: OmniModel, batches: Iterable[TaskBatch]) -> DetectionPredictions:
    """Objects that the detection head finds in each image, and the targets."""
    head: Any = model.heads["detection"]
    detections: list[Detections] = []
    targets = []
    for batch in batches:
        detections += head.post_process(model(batch.batch, heads={"detection": {}}).head_outputs["detection"])
        targets.append((batch.targets["labels"], batch.targets["boxes"]))
    return DetectionPredictions(detections, *map(torch.cat, zip(*targets, strict=True)))


@torch.inference_mode()
def restore_images(
    model: OmniModel, batches: Iterable[TaskBatch], *, change: Change = lambda batch: batch
) -> RestoredImages:
    """Images restored by the restoration head. All batches must have the same kind of damage."""
    parts = []
    for batch in batches:
        request = {"image": batch.targets["damaged"], "keep_mask": batch.targets.get("kept")}
        restored = model(change(batch.batch), heads={"restoration": request}).head_outputs["restoration"]
        parts.append((restored, batch.targets["picture"] / 255, request["image"], request["keep_mask"]))
    columns = zip(*parts, strict=True)
    return RestoredImages(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def posterior_mean_fill(tasks: TaskDataset, count: int | None = None) -> Float[Tensor, "n 3 h w"]:
    """The inpainting of the lowest expected squared error without a hint, in [0, 1]: for the first `count` `restore`
    examples (default: all), the mean over all things that could be in the hole, by `TaskDataset.inpainting_candidates`.

    It knows the background, the place and rotation of the missing thing, and how often things repeat, but not which
    sets of things belong to which split.
    """
    candidates = (tasks.inpainting_candidates(k) for k in range(tasks.examples["restore"])[:count])
    return torch.stack([torch.tensordot(chances, images.float() / 255, 1) for images, chances in candidates])


@torch.inference_mode()
def answer_hits(
    model: OmniModel, batches: Iterable[TaskBatch], *, change: Change = lambda batch: batch
) -> Bool[Tensor, " n"]:
    """[n], True where the answer head is right."""
    hits = []
    for batch in batches:
        logits = model(change(batch.batch), heads=["answer"]).head_outputs["answer"]
        hits.append(logits.argmax(1) == batch.targets["answer_scores"].argmax(1))
    return torch.cat(hits)


@torch.inference_mode()
def synthesize_speech(
    model: OmniModel, tasks: TaskDataset, batches: Iterable[TaskBatch], *, vocoder: GriffinLimVocoder
) -> SynthesizedSpeech:
    """Speech of the TTS head, with the durations that it predicts. batches: of `tasks`."""
    speech = SynthesizedSpeech([], [], [], [])
    for batch in batches:
        request = {name: batch.targets[name] for name in ("ids", "voice")}
        output = model(batch.batch, heads={"tts": request}).head_outputs["tts"]
        for mel, frames in zip(output.mel, output.frames.tolist(), strict=True):
            speech.synthesized.append(vocoder(mel[None, :frames])[0])
        for k in (int(name.rpartition("-")[2]) for name in batch.batch.ids):
            speech.texts.append(tasks.tts_utterances.lines[k].text)
            speech.reference.append(torch.from_numpy(tasks.tts_utterances.waveform(k)))
        speech.voices.extend(batch.kinds)
    return speech


@torch.inference_mode()
def nearest_captions(model: OmniModel, tasks: TaskDataset, count: int, batches: Iterable[TaskBatch]) -> list[str]:
    """Nearest-neighbour baseline of captioning: for each example a caption, in its language, of the undamaged image
    among the first `count` of `tasks` with the highest cosine similarity of image tokens."""
    embeddings, gallery, step = [], [], tasks.sizes["describe"]
    for start in range(0, count, step):
        scenes = [tasks.caption_scene(k) for k in range(start, min(start + step, count))]
        gallery += [placed for placed, _ in scenes]
        images = [Sample("", "", "", {Modality.IMAGE: image}) for _, image in scenes]
        embeddings.append(_embed_images(model, collate(images)))
    captions = []
    for batch in batches:
        nearest = (_embed_images(model, batch.batch) @ torch.cat(embeddings).T).argmax(1).tolist()
        for i, kind in zip(nearest, batch.kinds, strict=True):
            captions.append(normalize_text(valid_captions(gallery[i], kind.split(",")[0])[0]))
    return captions


def _embed_images(model: OmniModel, batch: OmniBatch) -> Float[Tensor, "b f"]:
    tokens = cast(Any, model.encode(batch)[Modality.IMAGE]).expand_entries()
    return torch.nn.functional.normalize(tokens.values.flatten(1), dim=1) * tokens.mask.any(1)[:, None]


class TaskScore(NamedTuple):
    """How well a model does a task, in one number. metric: its name."""

    value: float
    metric: str
    higher_is_better: bool = True


def task_score(model: OmniModel, tasks: TaskDataset, task: str, predictions: Any = None) -> TaskScore:
    """One number per task, over all examples of `tasks`, to compare models.

    predictions: for all examples, if computed before, by `generate_texts`, `detect`, `answer_hits` or `restore_images`
    (of holes without a hint).
    """
    options: dict[str, Any] = {"damage": "hole", "hint": "untold"} if task == "restore" else {}

    def run(function: Callable[..., Any]) -> Any:
        return function(model, iter_examples(tasks, task, **options)) if predictions is None else predictions

    if task == "find":
        return TaskScore(mean_average_precision(*run(detect), resamples=1).map50.value, "mAP at an IoU of 0.5")
    if task == "answer":
        return TaskScore(float(run(answer_hits).double().mean()), "accuracy of chosen answers")
    if task == "restore":
        images = run(restore_images)
        psnr = psnr_ssim(images.restored, images.original).psnr
        return TaskScore(float(psnr.mean()), "PSNR of images with a hole (dB)")
    if task == "speak":
        return TaskScore(run(spectrogram_distance), "distance of log mel spectrograms", False)
    predictions = run(lambda model, batches: generate_texts(model, tasks.tokenizer, batches))
    kinds = [kind for kind in dict.fromkeys(predictions.kinds) if "hsk" not in kind]
    if task == "transcribe":
        texts = predictions.select(*kinds)
        rate = error_rate(texts.predictions, [valid[0] for valid in texts.references], unit="character", resamples=1)
        return TaskScore(rate.value, "character error rate", False)
    scores = []
    for kind in (kind for kind in kinds if "begun" not in kind):
        texts = predictions.select(kind)
        scores.append(bleu(texts.predictions, texts.references, kind.split(",")[0][-2:], resamples=1).value)
    return TaskScore(sum(scores) / len(scores), "BLEU-4, mean over kinds of texts")


@torch.inference_mode()
def spectrogram_distance(model: OmniModel, batches: Iterable[TaskBatch]) -> float:
    """Mean distance of log mel energies between the TTS head's output, with the reference's durations, and the
    reference."""
    mel, head = LogMelSpectrogram(), cast(Any, model.heads["tts"])
    distances, frames = [], []
    for batch in batches:
        request = {name: batch.targets[name] for name in ("ids", "voice", "durations")}
        output = model(batch.batch, heads={"tts": request}).head_outputs["tts"]
        reference = mel(batch.targets["wave"]).transpose(1, 2)
        distances.append(head.loss(output, reference, request["durations"])[0])
        frames.append(output.frames.sum())
    return float((torch.stack(distances) * torch.stack(frames)).sum() / torch.stack(frames).sum())
