"""Which questions go into which batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class SharedImageBatchSampler(Sampler[list[int]]):
    """Batches of whole pictures: `images_per_batch` pictures with up to `questions_per_image` questions each.

    Every picture comes once an epoch, so it is encoded once an epoch however many questions are asked about it; which
    of its questions are asked is drawn anew each epoch. The order depends on (seed, epoch) alone, so an interrupted
    epoch can be continued at any batch: set `start_batch`.

    picture_rows: [n], the picture of each question. weights: [n], how likely each of a picture's questions is to be
    drawn, relative to the others (default: all alike). shuffle=False takes all questions in order (evaluation).
    """

    def __init__(
        self,
        picture_rows: Sequence[int] | np.ndarray,
        *,
        images_per_batch: int,
        questions_per_image: int | None = None,
        weights: np.ndarray | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        if images_per_batch < 1 or (questions_per_image is not None and questions_per_image < 1):
            raise ValueError(
                "images_per_batch and questions_per_image must be at least 1: "
                f"got {images_per_batch} and {questions_per_image}"
            )
        rows = np.asarray(picture_rows)
        order = np.argsort(rows, kind="stable")
        boundaries = np.flatnonzero(np.diff(rows[order])) + 1
        self.groups = np.split(order, boundaries) if len(rows) else []
        self.images_per_batch = images_per_batch
        self.questions_per_image = questions_per_image
        self.weights = weights
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.start_batch = 0
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.groups) // self.images_per_batch)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.groups)) if self.shuffle else np.arange(len(self.groups))
        start, self.start_batch = self.start_batch, 0
        for batch in range(len(self)):
            batch_rng = np.random.default_rng([self.seed, self.epoch, batch])
            chosen = order[batch * self.images_per_batch : (batch + 1) * self.images_per_batch]
            if batch >= start:
                yield [int(i) for g in chosen for i in self._draw(self.groups[g], batch_rng)]

    def _draw(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.questions_per_image is None or len(group) <= self.questions_per_image:
            return group
        if not self.shuffle:
            return group[: self.questions_per_image]
        chances = None if self.weights is None else self.weights[group] / self.weights[group].sum()
        return rng.choice(group, self.questions_per_image, replace=False, p=chances)
