"""The LightningDataModule of models with many heads: tasks that are drawn, each batch of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import lightning as L
import torch

from omni_lab.config import HeadsConfig
from omni_lab.data.module import ResumableLoader
from omni_lab.data.sampling import ConsecutiveBatches
from omni_lab.data.tokenizer import Codec, train_tokenizer
from omni_lab.data.worlds.emoji_world import EmojiWorld
from omni_lab.data.worlds.sayings import Sayings
from omni_lab.data.worlds.tasks import HeadTasks

Item = TypeVar("Item")


class HeadsDataModule(L.LightningDataModule):
    """Draws the tasks of `config`. root: where what is spoken is kept. tasks: only these. workers: processes that draw
    training batches."""

    def __init__(
        self, config: HeadsConfig, *, root: Path, seed: int = 0, tasks: Sequence[str] | None = None, workers: int = 1
    ) -> None:
        super().__init__()
        self.config = config
        self.root = root
        self.seed = seed
        self.workers = workers
        self.world = EmojiWorld(things=config.things)
        known = config.examples["train"]
        unknown = [task for task in tasks or () if task not in known]
        if unknown:
            raise ValueError(f"tasks must be of {[*known]}: got {unknown}")
        self.names = [task for task in known if tasks is None or task in tasks]
        self._tasks: dict[str, HeadTasks] = {}

    @cached_property
    def codec(self) -> Codec:
        """In the words of the training split."""
        texts = Sayings(self.world, "train").corpus(self.config.sentences, seed=self.seed)
        return Codec(train_tokenizer(texts), max_length=self.config.longest)

    @property
    def mix(self) -> Mapping[str, float]:
        """The share of training batches that each of all tasks has, summing up to one."""
        known = self.config.examples["train"]
        weights = {task: count ** (1 / self.config.temperature) for task, count in known.items()}
        return {task: weight / sum(weights.values()) for task, weight in weights.items()}

    @property
    def batches(self) -> int:
        """In an epoch: a task that is trained alone has as many as it has among all of them."""
        return max(1, round(self.config.batches * sum(self.mix[task] for task in self.names)))

    def tasks(self, split: str) -> HeadTasks:
        if split not in self._tasks:
            self._tasks[split] = HeadTasks(
                self.world,
                self.codec,
                split,
                sizes=self.config.sizes,
                examples=self.config.examples[split],
                folder=self.root,
                mix={task: self.mix[task] for task in self.names},
                seed=self.seed,
            )
        return self._tasks[split]

    def prepare_data(self) -> None:
        for split in ("train", "validation"):
            self.tasks(split).prepare()

    def loader(self, split: str) -> ResumableLoader:
        """Batches as they are drawn, `advance`d from epoch to epoch in training."""
        training = split == "train"
        tasks = self.tasks(split)
        tasks.prepare()
        workers = self.workers if training else 0
        return ResumableLoader(
            tasks,  # type: ignore[arg-type]
            batch_sampler=ConsecutiveBatches(self.batches if training else len(tasks), size=1, advance=training),
            collate_fn=_only,
            num_workers=workers,
            persistent_workers=False,
            generator=torch.Generator().manual_seed(self.seed),  # leaves the global random state alone
        )

    def train_dataloader(self) -> ResumableLoader:
        return self.loader("train")

    def val_dataloader(self) -> ResumableLoader:
        return self.loader("validation")


def _only(items: Sequence[Item]) -> Item:
    (item,) = items
    return item
