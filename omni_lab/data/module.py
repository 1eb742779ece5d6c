"""The LightningDataModule: from a source's store to batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from omni_lab.config import DataConfig
from omni_lab.data.samples import Sample, collate
from omni_lab.data.sampling import SharedImageBatchSampler
from omni_lab.data.sources import SPLITS, VqaSource
from omni_lab.data.store import Store, ensure_store
from omni_lab.data.tokenizer import encode_text
from omni_lab.modalities import Modality, OmniBatch

ANSWER = "answer"


class QuestionDataset(Dataset[Sample]):
    """Questions of one split as samples of text and image.

    modalities: leave out the others (a control without eyes). max_images: keep only the first that many pictures.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        modalities: Collection[Modality] = (Modality.TEXT, Modality.IMAGE),
        max_images: int | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}: got {split!r}")
        table = store.questions(split)
        rows = table.column("picture").to_numpy()
        if max_images is not None:
            table = table.filter(np.isin(rows, np.unique(rows)[:max_images]))
        self.store = store
        self.modalities = modalities
        self.picture_rows = table.column("picture").to_numpy()
        self.ids: list[str] = table.column("id").to_pylist()
        self.texts: list[str] = table.column("text").to_pylist()
        self.families: list[str] = table.column("family").to_pylist()
        index = {answer: i for i, answer in enumerate(store.answers)}
        self.scores = torch.zeros(len(self.ids), len(index))  # [n, A]
        for i, (answers, scores) in enumerate(
            zip(table.column("answers").to_pylist(), table.column("scores").to_pylist(), strict=True)
        ):
            for answer, score in zip(answers, scores, strict=True):
                if answer in index:  # in VQA v2 rare answers lie outside the vocabulary: they can only be missed
                    self.scores[i, index[answer]] = score
        tokenizer = store.tokenizer
        self._tokens = {
            text: torch.tensor(encode_text(tokenizer, text, name=f"question {name}"))
            for text, name in dict(zip(self.texts, self.ids, strict=True)).items()
        }

    def __len__(self) -> int:
        return len(self.ids)

    def family_weights(self) -> np.ndarray:
        """[n], one over the size of each question's family."""
        _, family, sizes = np.unique(self.families, return_inverse=True, return_counts=True)
        return 1.0 / sizes[family]

    def ask(self, text: str, picture_row: int) -> Sample:
        """Any question about any picture of the store, without a known answer."""
        inputs = {}
        if Modality.TEXT in self.modalities:
            if text not in self._tokens:
                self._tokens[text] = torch.tensor(encode_text(self.store.tokenizer, text, name="question"))
            inputs[Modality.TEXT] = self._tokens[text]
        if Modality.IMAGE in self.modalities:
            inputs[Modality.IMAGE] = torch.from_numpy(self.store.picture(picture_row).copy())
        keys = {Modality.TEXT: text, Modality.IMAGE: picture_row}
        return Sample(id=f"{picture_row}: {text}", task=ANSWER, family="", inputs=inputs, keys=keys)

    def __getitem__(self, i: int) -> Sample:
        asked = self.ask(self.texts[i], int(self.picture_rows[i]))
        return replace(asked, id=self.ids[i], family=self.families[i], targets={"answer_scores": self.scores[i]})


class ResumableLoader(DataLoader[Sample]):
    """A DataLoader over a `SharedImageBatchSampler` that can continue in the middle of an epoch.

    Lightning stores its `state_dict` in every checkpoint. The state counts the batches handed out, not those that
    workers have prefetched.
    """

    batch_sampler: SharedImageBatchSampler
    handed_out = 0

    def __iter__(self) -> Iterator[OmniBatch]:  # type: ignore[override]
        self.handed_out = self.batch_sampler.start_batch
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"handed_out": self.handed_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batch_sampler.start_batch = state["handed_out"] % len(self.batch_sampler)


class OmniDataModule(L.LightningDataModule):
    """Builds or opens the store of `source` under `root` and serves its splits."""

    def __init__(
        self,
        source: VqaSource,
        config: DataConfig,
        *,
        root: Path,
        modalities: Collection[Modality] = (Modality.TEXT, Modality.IMAGE),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.config = config
        self.root = root
        self.modalities = modalities
        self.seed = seed
        self._datasets: dict[str, QuestionDataset] = {}
        self._store: Store | None = None

    def prepare_data(self) -> None:
        ensure_store(self.source, self.root)

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = ensure_store(self.source, self.root)
        return self._store

    def dataset(self, split: str) -> QuestionDataset:
        if split not in self._datasets:
            self._datasets[split] = QuestionDataset(
                self.store, split, modalities=self.modalities, max_images=self.config.max_images
            )
        return self._datasets[split]

    def loader(self, split: str, *, share: tuple[Modality, ...] = tuple(Modality)) -> ResumableLoader:
        """share: which modalities' inputs a batch holds once however many samples use them."""
        dataset = self.dataset(split)
        training = split == "train"
        sampler = SharedImageBatchSampler(
            dataset.picture_rows,
            images_per_batch=self.config.images_per_batch,
            questions_per_image=self.config.questions_per_image if training else None,
            weights=dataset.family_weights() if training and self.config.balance_families else None,
            shuffle=training,
            seed=self.seed,
        )
        return ResumableLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=partial(collate, share=share),
            num_workers=self.config.num_workers,
            persistent_workers=self.config.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # leaves the global random state alone
        )

    def train_dataloader(self) -> ResumableLoader:
        return self.loader("train")

    def val_dataloader(self) -> ResumableLoader:
        return self.loader("validation")

    def test_dataloader(self) -> ResumableLoader:
        return self.loader("test")
