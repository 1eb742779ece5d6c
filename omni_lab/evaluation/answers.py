"""What a model answers, question by question, and what one could answer without looking."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from omni_lab.data.module import QuestionDataset
from omni_lab.modalities import Modality, OmniBatch
from omni_lab.model import OmniModel


@dataclass(frozen=True)
class Predictions:
    """One entry per question, in the dataset's order.

    answer, truth: [n] index of the predicted and of the best-scored answer. score: [n] soft accuracy of the prediction
    (for one true answer: 1 or 0). picture: [n] which picture it was about, to resample by. family: [n].
    """

    answer: np.ndarray
    truth: np.ndarray
    score: np.ndarray
    picture: np.ndarray
    family: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.score.mean())

    def macro_f1(self, answers: int) -> float:
        predicted, truth = torch.from_numpy(self.answer), torch.from_numpy(self.truth)
        return float(multiclass_f1_score(predicted, truth, num_classes=answers, average="macro"))

    def only(self, family: str) -> Predictions:
        """The questions of one family."""
        keep = self.family == family
        return Predictions(*(getattr(self, f)[keep] for f in ("answer", "truth", "score", "picture", "family")))


def _assemble(dataset: QuestionDataset, answers: np.ndarray) -> Predictions:
    scores = dataset.scores.numpy()
    return Predictions(
        answer=answers,
        truth=scores.argmax(axis=1),
        score=scores[np.arange(len(answers)), answers],
        picture=np.asarray(dataset.picture_rows),
        family=np.asarray(dataset.families),
    )


@torch.inference_mode()
def predict(
    model: OmniModel,
    batches: Iterable[OmniBatch],
    dataset: QuestionDataset,
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
        logits = model(given.to(device), heads=["answer"]).heads["answer"]
        answers.update(zip(batch.ids, logits.argmax(dim=1).tolist(), strict=True))
    model.train(was_training)
    missing = len(dataset) - len(answers)
    if missing:
        raise ValueError(f"the batches cover {len(answers)} of {len(dataset)} questions: {missing} are missing")
    return _assemble(dataset, np.array([answers[i] for i in dataset.ids]))


def shuffle_pictures(batch: OmniBatch) -> OmniBatch:
    """Every question gets the next picture of its batch: a control that keeps pictures and questions, not the pairs."""
    given = batch.inputs[Modality.IMAGE]
    count = len(given.values)
    if count < 2:
        raise ValueError(f"pictures can be shuffled only between at least two: the batch has {count}")
    return batch.with_rows(Modality.IMAGE, (given.rows + 1) % count)


def majority_by_question(train: QuestionDataset, test: QuestionDataset) -> Predictions:
    """The control that never looks: the answer most often right for the same question string in training, or, for a
    string never seen there, the answer most often right overall."""
    totals: dict[str, Counter[int]] = defaultdict(Counter)
    for text, truth in zip(train.texts, train.scores.argmax(dim=1).tolist(), strict=True):
        totals[text][truth] += 1
        totals[""][truth] += 1
    best = {text: counts.most_common(1)[0][0] for text, counts in totals.items()}
    return _assemble(test, np.array([best.get(text, best[""]) for text in test.texts]))
