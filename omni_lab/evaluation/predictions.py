"""A model's answers to all questions of a dataset, with everything or without a modality, and a majority baseline."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from omni_lab.batch import Modality, OmniBatch
from omni_lab.data.datamodule import VQADataset
from omni_lab.data.sources.base import QuestionFamily
from omni_lab.metrics.bootstrap import proportion
from omni_lab.model import OmniModel


@dataclass(frozen=True)
class Predictions:
    """One entry per question, in the dataset's order."""

    answer: np.ndarray  # [n], index of the predicted answer
    truth: np.ndarray  # [n], index of the best-scored answer
    score: np.ndarray  # [n], soft accuracy of the prediction; 0 or 1 if only one answer is valid
    scene: np.ndarray  # [n], to group questions by when resampling
    family: np.ndarray  # [n]

    @property
    def accuracy(self) -> float:
        return float(self.score.mean())

    def macro_f1(self, num_answers: int) -> float:
        predicted, truth = torch.from_numpy(self.answer), torch.from_numpy(self.truth)
        return float(multiclass_f1_score(predicted, truth, num_classes=num_answers, average="macro"))

    def for_family(self, family: str) -> Predictions:
        """The questions of one family."""
        mask = self.family == family
        return Predictions(**{name: column[mask] for name, column in vars(self).items()})


def _assemble(dataset: VQADataset, answers: np.ndarray) -> Predictions:
    scores = dataset.scores.numpy()
    score = scores[np.arange(len(answers)), answers]
    return Predictions(answers, scores.argmax(axis=1), score, dataset.scenes, np.asarray(dataset.families))


@torch.inference_mode()
def predict_without_each(
    model: OmniModel, batches: Iterable[OmniBatch], dataset: VQADataset
) -> dict[Modality | None, Predictions]:
    """Predictions with all modalities (key None), and without each of them in turn.

    Every input is encoded once; a modality is removed before fusion.
    """
    removed: list[Modality | None] = [None, *(m for m in Modality if m.value in model.encoders)]
    answers: dict[Modality | None, dict[str, int]] = {m: {} for m in removed}
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    for batch in batches:
        encoded = model.encode(batch.to(device))
        for m in removed:
            rest = {name: tokens for name, tokens in encoded.items() if name is not m}
            if rest:
                predicted = model.fuse(rest, heads=["answer"]).head_outputs["answer"].argmax(dim=1).tolist()
                answers[m].update(zip(batch.ids, predicted, strict=True))
    model.train(was_training)
    return {m: _assemble(dataset, np.array([some.get(i, 0) for i in dataset.ids])) for m, some in answers.items()}


class ModalityAblationRow(NamedTuple):
    """Accuracies of one family: of the whole model (`dense`), and without the one required modality whose removal hurts
    least (`blind`), with 95 % intervals."""

    family: str
    chance: float  # the highest accuracy that the world's rules allow without a required modality
    dense: float
    dense_interval: tuple[float, float]
    blind: float
    blind_interval: tuple[float, float]
    removed: Modality
    questions: int


def modality_ablation_table(
    predictions: Mapping[Modality | None, Predictions],
    families: Mapping[str, QuestionFamily],
    *,
    resamples: int,
    seed: int = 0,
) -> list[ModalityAblationRow]:
    """A row per family that occurs and has a chance level, in the order of `families`."""
    rows = []
    for name, family in families.items():
        dense = predictions[None].for_family(name)
        if family.chance is None or len(dense.score) == 0:
            continue
        ablated = {m: predictions[m].for_family(name) for m in family.required_modalities}
        removed = max(ablated, key=lambda m: ablated[m].accuracy)
        dense_pair, blind_pair = (
            (p.accuracy, proportion(p.score, p.scene, resamples=resamples, seed=seed).interval)
            for p in (dense, ablated[removed])
        )
        rows.append(ModalityAblationRow(name, family.chance, *dense_pair, *blind_pair, removed, len(dense.score)))
    return rows


@torch.inference_mode()
def predict(
    model: OmniModel,
    batches: Iterable[OmniBatch],
    dataset: VQADataset,
    *,
    change: Callable[[OmniBatch], OmniBatch] = lambda batch: batch,
) -> Predictions:
    """Predictions for all questions of `dataset`, in evaluation mode, on the model's device.

    batches: of the loader over `dataset`.
    change: applied to each batch first, for baselines such as `shuffle_images`.
    """
    answers: dict[str, int] = {}
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    for batch in batches:
        logits = model(change(batch).to(device), heads=["answer"]).head_outputs["answer"]
        answers.update(zip(batch.ids, logits.argmax(dim=1).tolist(), strict=True))
    model.train(was_training)
    missing = len(dataset) - len(answers)
    if missing:
        raise ValueError(f"the batches cover {len(answers)} of {len(dataset)} questions: {missing} are missing")
    return _assemble(dataset, np.array([answers[i] for i in dataset.ids]))


def shuffle_images(batch: OmniBatch) -> OmniBatch:
    """A baseline: every question gets the next image of its batch."""
    images = batch.inputs[Modality.IMAGE]
    count = len(images.values)
    if count < 2:
        raise ValueError(f"images can be shuffled only between at least two: the batch has {count}")
    return batch.with_entry_index(Modality.IMAGE, (images.entry_index + 1) % count)


def majority_by_question(train: VQADataset, test: VQADataset) -> Predictions:
    """A baseline without inputs: the most frequent answer to the same question text in training; for a text that does
    not occur there, the most frequent answer of all. Spoken questions count as one text."""
    totals: dict[str, Counter[int]] = defaultdict(Counter)
    for text, truth in zip(train.texts, train.scores.argmax(dim=1).tolist(), strict=True):
        totals[text or "(spoken)"][truth] += 1
        totals[""][truth] += 1
    best = {text: counts.most_common(1)[0][0] for text, counts in totals.items()}
    return _assemble(test, np.array([best.get(text or "(spoken)", best[""]) for text in test.texts]))
