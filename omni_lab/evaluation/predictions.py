"""What a model answers, question by question, and what one could answer without looking."""

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
from omni_lab.metrics.bootstrap import bootstrap_interval
from omni_lab.model import OmniModel


@dataclass(frozen=True)
class Predictions:
    """One entry per question, in the dataset's order.

    answer, truth: [n] index of the predicted and of the best-scored answer. score: [n] soft accuracy of the prediction
    (for one true answer: 1 or 0). scene: [n] which scene it was about, to resample by. family: [n].
    """

    answer: np.ndarray
    truth: np.ndarray
    score: np.ndarray
    scene: np.ndarray
    family: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.score.mean())

    def macro_f1(self, answers: int) -> float:
        predicted, truth = torch.from_numpy(self.answer), torch.from_numpy(self.truth)
        return float(multiclass_f1_score(predicted, truth, num_classes=answers, average="macro"))

    def for_family(self, family: str) -> Predictions:
        """The questions of one family."""
        keep = self.family == family
        return Predictions(*(getattr(self, f)[keep] for f in ("answer", "truth", "score", "scene", "family")))


def _assemble(dataset: VQADataset, answers: np.ndarray) -> Predictions:
    scores = dataset.scores.numpy()
    return Predictions(
        answer=answers,
        truth=scores.argmax(axis=1),
        score=scores[np.arange(len(answers)), answers],
        scene=dataset.scenes,
        family=np.asarray(dataset.families),
    )


@torch.inference_mode()
def predict_without_each(
    model: OmniModel, batches: Iterable[OmniBatch], dataset: VQADataset
) -> dict[Modality | None, Predictions]:
    """What the model answers with everything (key None), and without each of the modalities in turn.

    Every input is encoded once; what is taken away is taken away before fusion.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    lost: list[Modality | None] = [None, *(m for m in Modality if m.value in model.encoders)]
    answers: dict[Modality | None, dict[str, int]] = {m: {} for m in lost}
    for batch in batches:
        encoded = model.encode(batch.to(device))
        for m in lost:
            kept = {name: tokens for name, tokens in encoded.items() if name is not m}
            if kept:
                chosen = model.fuse(kept, heads=["answer"]).head_outputs["answer"].argmax(dim=1).tolist()
                answers[m].update(zip(batch.ids, chosen, strict=True))
    model.train(was_training)
    return {m: _assemble(dataset, np.array([found.get(i, 0) for i in dataset.ids])) for m, found in answers.items()}


class ModalityAblationRow(NamedTuple):
    """One family: dense is the accuracy with everything, blind the highest of those without one needed modality
    (`lost`), each with its 95 % interval; chance is what the world's rules allow the blind."""

    family: str
    chance: float
    dense: float
    dense_interval: tuple[float, float]
    blind: float
    blind_interval: tuple[float, float]
    lost: Modality
    questions: int


def modality_ablation_table(
    predictions: Mapping[Modality | None, Predictions],
    families: Mapping[str, QuestionFamily],
    *,
    resamples: int,
    seed: int = 0,
) -> list[ModalityAblationRow]:
    """A row per family that has a chance level and occurs, in the order of `families`."""
    rows = []
    for name, family in families.items():
        dense = predictions[None].for_family(name)
        if family.chance is None or len(dense.score) == 0:
            continue
        parts = {m: predictions[m].for_family(name) for m in family.required_modalities}
        lost = max(parts, key=lambda m: parts[m].accuracy)
        intervals = [bootstrap_interval(p.score, p.scene, resamples=resamples, seed=seed) for p in (dense, parts[lost])]
        rows.append(
            ModalityAblationRow(
                name,
                family.chance,
                dense.accuracy,
                intervals[0],
                parts[lost].accuracy,
                intervals[1],
                lost,
                len(dense.score),
            )
        )
    return rows


@torch.inference_mode()
def predict(
    model: OmniModel,
    batches: Iterable[OmniBatch],
    dataset: VQADataset,
    *,
    change: Callable[[OmniBatch], OmniBatch] | None = None,
) -> Predictions:
    """Answers to all questions of `dataset`, in evaluation mode, on the device the model is on.

    batches: the loader over `dataset`. change: applied to every batch first (a control such as `shuffle_pictures`).
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    answers: dict[str, int] = {}
    for batch in batches:
        given = batch if change is None else change(batch)
        logits = model(given.to(device), heads=["answer"]).head_outputs["answer"]
        answers.update(zip(batch.ids, logits.argmax(dim=1).tolist(), strict=True))
    model.train(was_training)
    missing = len(dataset) - len(answers)
    if missing:
        raise ValueError(f"the batches cover {len(answers)} of {len(dataset)} questions: {missing} are missing")
    return _assemble(dataset, np.array([answers[i] for i in dataset.ids]))


def shuffle_images(batch: OmniBatch) -> OmniBatch:
    """Every question gets the next picture of its batch: a control that keeps pictures and questions, not the pairs."""
    given = batch.inputs[Modality.IMAGE]
    count = len(given.values)
    if count < 2:
        raise ValueError(f"pictures can be shuffled only between at least two: the batch has {count}")
    return batch.with_entry_index(Modality.IMAGE, (given.entry_index + 1) % count)


def majority_by_question(train: VQADataset, test: VQADataset) -> Predictions:
    """The control that never looks: the answer most often right for the same question string in training, or, for a
    string never seen there, the answer most often right overall."""
    totals: dict[str, Counter[int]] = defaultdict(Counter)
    for text, truth in zip(train.texts, train.scores.argmax(dim=1).tolist(), strict=True):
        totals[text or "(spoken)"][truth] += 1
        totals[""][truth] += 1
    best = {text: counts.most_common(1)[0][0] for text, counts in totals.items()}
    return _assemble(test, np.array([best.get(text or "(spoken)", best[""]) for text in test.texts]))
