"""LightningDataModules of sampled data: batches of one task each, and contrastive views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning as L
import torch

from omni_lab.batch import Modality
from omni_lab.config.schema import MultitaskConfig
from omni_lab.data.collate import collate
from omni_lab.data.datamodule import OmniDataModule, ResumableLoader
from omni_lab.data.sampler import ConsecutiveBatchSampler
from omni_lab.data.store import ensure_store
from omni_lab.data.tokenizer import DecoderTokenizer, encode_text, train_tokenizer
from omni_lab.worlds.contrastive_views import ContrastiveViews
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.sentence_sampler import SentenceSampler
from omni_lab.worlds.tasks import TaskDataset

NUM_EVAL_BATCHES = 8  # validation and test batches of views


class MultitaskDataModule(L.LightningDataModule):
    """Batches of the tasks of `config`, each of one task.

    root: folder that caches synthesized speech.
    tasks: only these; all if None.
    workers: processes that make training batches.
    Raises ValueError for a task without examples in `config`.
    """

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
        every = config.examples["train"]
        unknown = [task for task in tasks or () if task not in every]
        if unknown:
            raise ValueError(f"tasks must be of {[*every]}: got {unknown}")
        self.names = [task for task in every if tasks is None or task in tasks]
        self._datasets: dict[str, TaskDataset] = {}

    @cached_property
    def tokenizer(self) -> DecoderTokenizer:
        """Trained on text of the training split."""
        texts = SentenceSampler(self.world, "train").corpus(self.config.sentences, seed=self.seed)
        return DecoderTokenizer(train_tokenizer(texts), max_length=self.config.max_length)

    @property
    def mix(self) -> Mapping[str, float]:
        """The fraction of training batches of each task among all tasks; they sum to one."""
        counts = self.config.examples["train"]
        weights = {task: count ** (1 / self.config.temperature) for task, count in counts.items()}
        return {task: weight / sum(weights.values()) for task, weight in weights.items()}

    @property
    def batches(self) -> int:
        """Batches per epoch: a task trained alone has as many as it has among all tasks."""
        return max(1, round(self.config.batches * sum(self.mix[task] for task in self.names)))

    def dataset(self, split: str) -> TaskDataset:
        if split not in self._datasets:
            self._datasets[split] = TaskDataset(
                self.world,
                self.tokenizer,
                split,
                sizes=self.config.batch_sizes,
                examples=self.config.examples[split],
                folder=self.root,
                mix={task: self.mix[task] for task in self.names},
                seed=self.seed,
            )
        return self._datasets[split]

    def prepare_data(self) -> None:
        for split in ("train", "validation"):
            self.dataset(split).prepare()

    def loader(self, split: str) -> ResumableLoader:
        """Every training epoch continues where the last one ended; other epochs are all the same."""
        training = split == "train"
        dataset = self.dataset(split)
        dataset.prepare()
        return ResumableLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=ConsecutiveBatchSampler(self.batches if training else len(dataset), size=1, advance=training),
            collate_fn=itemgetter(0),  # an item is a batch already
            num_workers=self.workers if training else 0,
            persistent_workers=False,
            generator=torch.Generator().manual_seed(self.seed),  # leaves the global random state alone
        )

    def train_dataloader(self) -> ResumableLoader:
        return self.loader("train")

    def val_dataloader(self) -> ResumableLoader:
        return self.loader("validation")


class ContrastiveDataModule(OmniDataModule):
    """Batches of contrastive views, in place of questions; the tokenizer is that of the world's store.

    views: training views per epoch, sampled anew in each; a validation or test batch holds every thing once.
    mix: options of the training views (`ContrastiveViews`: pairs, sentences, voices); the others are single names.
    """

    source: EmojiWorld

    def __init__(self, *args: Any, views: int, views_per_batch: int, mix: Mapping[str, float], **options: Any) -> None:
        super().__init__(*args, **options)
        self.views = views
        self.views_per_batch = views_per_batch
        self.mix = mix

    def prepare_data(self) -> None:
        ensure_store(self.source, self.root)  # for its tokenizer: views are rendered anew

    def loader(self, split: str, *, share: tuple[Modality, ...] = ()) -> ResumableLoader:
        training, world, tokenizer = split == "train", self.source, self.store.tokenizer
        dataset = ContrastiveViews(
            world,
            lambda text: encode_text(tokenizer, text, name="name"),
            split,
            seed=self.seed if training else 0,
            modalities=[m for m in Modality if m in self.modalities],
            **(self.mix if training else {}),  # type: ignore[arg-type]
        )
        size = self.views_per_batch if training else world.things
        count = self.views if training else NUM_EVAL_BATCHES * size
        sampler = ConsecutiveBatchSampler(count, size=size, advance=training)
        return ResumableLoader(dataset, batch_sampler=sampler, collate_fn=partial(collate, dedup=share))
