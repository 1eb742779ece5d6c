"""The LightningDataModule of models with many heads: tasks that are drawn, each batch of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch

from omni_lab.batch import Modality
from omni_lab.config.schema import MultitaskConfig
from omni_lab.data.collate import collate
from omni_lab.data.datamodule import OmniDataModule, ResumableLoader
from omni_lab.data.sampler import ConsecutiveBatchSampler
from omni_lab.data.tokenizer import DecoderTokenizer, encode_text, train_tokenizer
from omni_lab.worlds.contrastive_views import ContrastiveViews
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.sentence_sampler import SentenceSampler
from omni_lab.worlds.tasks import TaskDataset

Item = TypeVar("Item")

GALLERIES = 8  # validation and test batches of views


class MultitaskDataModule(L.LightningDataModule):
    """Draws the tasks of `config`. root: where what is spoken is kept. tasks: only these. workers: processes that draw
    training batches."""

    def __init__(
        self,
        config: MultitaskConfig,
        *,
        root: Path,
        seed: int = 0,
        tasks: Sequence[str] | None = None,
        workers: int = 1,
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
        self._tasks: dict[str, TaskDataset] = {}

    @cached_property
    def tokenizer(self) -> DecoderTokenizer:
        """In the words of the training split."""
        texts = SentenceSampler(self.world, "train").corpus(self.config.sentences, seed=self.seed)
        return DecoderTokenizer(train_tokenizer(texts), max_length=self.config.max_length)

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

    def dataset(self, split: str) -> TaskDataset:
        if split not in self._tasks:
            self._tasks[split] = TaskDataset(
                self.world,
                self.tokenizer,
                split,
                sizes=self.config.batch_sizes,
                examples=self.config.examples[split],
                folder=self.root,
                mix={task: self.mix[task] for task in self.names},
                seed=self.seed,
            )
        return self._tasks[split]

    def prepare_data(self) -> None:
        for split in ("train", "validation"):
            self.dataset(split).prepare()

    def loader(self, split: str) -> ResumableLoader:
        """Batches as they are drawn, `advance`d from epoch to epoch in training."""
        training = split == "train"
        tasks = self.dataset(split)
        tasks.prepare()
        workers = self.workers if training else 0
        return ResumableLoader(
            tasks,  # type: ignore[arg-type]
            batch_sampler=ConsecutiveBatchSampler(self.batches if training else len(tasks), size=1, advance=training),
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


class ContrastiveDataModule(OmniDataModule):
    """Serves views of things in place of questions about scenes; words come from the world's tokenizer. mix: what is
    drawn how often for training (`ThingViews`: pairs, sentences, voices); validation and test views are single names.

    views: per epoch, drawn afresh. Each validation and test batch holds every thing of the vocabulary once.
    """

    source: EmojiWorld

    def __init__(self, *args: Any, views: int, views_per_batch: int, mix: Mapping[str, float], **options: Any) -> None:
        super().__init__(*args, **options)
        self.views = views
        self.views_per_batch = views_per_batch
        self.mix = mix

    def loader(self, split: str, *, share: tuple[Modality, ...] = ()) -> ResumableLoader:
        world, tokenizer = self.source, self.store.tokenizer
        dataset = ContrastiveViews(
            world,
            lambda text: encode_text(tokenizer, text, name="name"),
            split,
            seed=self.seed if split == "train" else 0,
            **(self.mix if split == "train" else {}),  # type: ignore[arg-type]
            modalities=[m for m in Modality if m in self.modalities],
        )
        training = split == "train"
        size = self.views_per_batch if training else world.things
        sampler = ConsecutiveBatchSampler(self.views if training else GALLERIES * size, size=size, advance=training)
        return ResumableLoader(dataset, batch_sampler=sampler, collate_fn=partial(collate, dedup=share))
