"""The LightningDataModule: from a source's store to batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from omni_lab.batch import Modality, OmniBatch
from omni_lab.config.schema import DataConfig
from omni_lab.data.collate import Sample, collate
from omni_lab.data.sampler import ConsecutiveBatchSampler, OmniBatchSampler
from omni_lab.data.sources.base import SPLITS, VQASource
from omni_lab.data.store import Store, ensure_store
from omni_lab.data.tokenizer import encode_text

ANSWER = "answer"


class VQADataset(Dataset[Sample]):
    """Questions of one split as samples of text (or a spoken question), picture, sound and clip.

    modalities: leave out the others (a control without eyes). max_scenes: keep only the questions about the first that
    many scenes. only_needed: each sample carries no more than what its family needs, so that samples differ in the
    modalities they carry. families: keep only these.

    encoded: for a modality, what gives the tokens [N, D] of a row of the store; samples then carry them in place of the
    medium. encoded_light: beside that, what gives those of the encoder's early exit.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        modalities: Collection[Modality] = tuple(Modality),
        max_scenes: int | None = None,
        required_modalities_only: bool = False,
        families: Collection[str] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}: got {split!r}")
        table = store.questions(split)
        scenes = table.column("scene").to_numpy()
        keep = np.ones(len(scenes), dtype=bool)
        if max_scenes is not None:
            keep &= np.isin(scenes, np.unique(scenes)[:max_scenes])
        if families is not None:
            keep &= np.isin(table.column("family").to_numpy(zero_copy_only=False), list(families))
        table = table.filter(keep)
        self.store = store
        self.modalities = modalities
        self.media_rows = {m: table.column(m.value).to_numpy() for m in store.shapes}  # -1 where there is none
        self.latents: dict[Modality, Callable[[int], torch.Tensor]] = {}
        self.early_exit_latents: dict[Modality, Callable[[int], torch.Tensor]] = {}
        self.scenes = table.column("scene").to_numpy()
        self.ids: list[str] = table.column("id").to_pylist()
        self.texts: list[str | None] = table.column("text").to_pylist()
        self.families: list[str] = table.column("family").to_pylist()
        self.present = np.stack([self._present(m) for m in Modality], axis=1)  # [n, M]
        known = store.families
        if required_modalities_only:
            unknown = sorted(set(self.families) - set(known))
            if unknown:
                raise ValueError(
                    f"only_needed wants to know what each family needs: {store.path} does not say it of {unknown}"
                )
            self.present &= np.array([[m in known[f].required_modalities for m in Modality] for f in self.families])
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
            if text is not None
        }

    def _present(self, modality: Modality) -> np.ndarray:
        if modality not in self.modalities:
            return np.zeros(len(self.ids), dtype=bool)
        if modality is Modality.TEXT:
            return np.array([text is not None for text in self.texts], dtype=bool)
        return self.media_rows.get(modality, np.full(len(self.ids), -1)) >= 0

    def __len__(self) -> int:
        return len(self.ids)

    def family_weights(self) -> np.ndarray:
        """[n], one over the size of each question's family."""
        _, family, sizes = np.unique(self.families, return_inverse=True, return_counts=True)
        return 1.0 / sizes[family]

    def combinations(self) -> np.ndarray:
        """[n], a number for the set of modalities that each sample carries."""
        return self.present @ (1 << np.arange(len(Modality)))

    def lengths(self) -> np.ndarray:
        """[n], word pieces in the text of each sample, 0 where it has none."""
        pieces = [0 if text is None else len(self._tokens[text]) for text in self.texts]
        return np.array(pieces) * self.present[:, Modality.TEXT.column]

    @property
    def image_rows(self) -> np.ndarray:
        """[n], the row of each question's picture in the store."""
        return self.media_rows[Modality.IMAGE]

    def make_sample(self, text: str, picture_row: int) -> Sample:
        """Any question about any scene of the split, named by its picture, without a known answer; with the sound and
        the clip that the scene's written questions come with."""
        about = np.flatnonzero(self.image_rows == picture_row)
        if len(about) == 0:
            raise ValueError(f"picture_row must be that of a picture of this split: got {picture_row}")
        written = [i for i in about if self.texts[i] is not None]
        return self._sample(text, self._rows(int((written or about)[0])))

    def load_media(self, modality: Modality, row: int) -> torch.Tensor:
        """A picture or clip as it is stored, a sound as a waveform [S] float32 from -1 to 1."""
        values = torch.from_numpy(self.store.media(modality, row).copy())
        return values / 32768.0 if modality is Modality.AUDIO else values

    def _rows(self, i: int) -> dict[Modality, int]:
        return {m: int(r[i]) for m, r in self.media_rows.items() if self.present[i, m.column]}

    def _sample(self, text: str | None, rows: Mapping[Modality, int]) -> Sample:
        inputs: dict[Modality, torch.Tensor] = {}
        keys: dict[Modality, Any] = dict(rows)
        if text is not None and Modality.TEXT in self.modalities:
            if text not in self._tokens:
                self._tokens[text] = torch.tensor(encode_text(self.store.tokenizer, text, name="question"))
            inputs[Modality.TEXT], keys[Modality.TEXT] = self._tokens[text], text
        for modality, row in rows.items():
            inputs[modality] = self.latents.get(modality, partial(self.load_media, modality))(row)
        light = {m: self.early_exit_latents[m](row) for m, row in rows.items() if m in self.early_exit_latents}
        return Sample(
            id=f"question {text!r}", task=ANSWER, family="", inputs=inputs, dedup_keys=keys, early_exit_inputs=light
        )

    def __getitem__(self, i: int) -> Sample:
        sample = self._sample(self.texts[i] if self.present[i, Modality.TEXT.column] else None, self._rows(i))
        return replace(sample, id=self.ids[i], family=self.families[i], targets={"answer_scores": self.scores[i]})


class ResumableLoader(DataLoader[Sample]):
    """A DataLoader over an `OmniBatchSampler` that can continue in the middle of an epoch.

    Lightning stores its `state_dict` in every checkpoint. The state counts the batches handed out, not those that
    workers have prefetched.
    """

    batch_sampler: OmniBatchSampler | ConsecutiveBatchSampler
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
        source: VQASource,
        config: DataConfig,
        *,
        root: Path,
        modalities: Collection[Modality] = tuple(Modality),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.config = config
        self.root = root
        self.modalities = modalities
        self.seed = seed
        self._datasets: dict[str, VQADataset] = {}
        self._store: Store | None = None

    def prepare_data(self) -> None:
        ensure_store(self.source, self.root)

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = ensure_store(self.source, self.root)
        return self._store

    def dataset(self, split: str) -> VQADataset:
        if split not in self._datasets:
            self._datasets[split] = VQADataset(
                self.store,
                split,
                modalities=self.modalities,
                max_scenes=self.config.max_scenes,
                required_modalities_only=self.config.required_modalities_only,
                families=self.config.families,
            )
        return self._datasets[split]

    def with_config(self, config: DataConfig, *, seed: int, raw: bool = False, **scenes: int) -> OmniDataModule:
        """The same questions, drawn by another configuration and seed; of the splits named, only those about so many of
        their first scenes. What was encoded stays encoded, unless `raw` media are wanted of those splits."""
        other = copy.copy(self)
        other.config, other.seed, other._datasets = config, seed, dict(self._datasets)
        for split, count in scenes.items():
            whole = self.dataset(split)
            few = VQADataset(self.store, split, modalities=self.modalities, max_scenes=count)
            if not raw:
                few.latents, few.early_exit_latents = whole.latents, whole.early_exit_latents
            other._datasets[split] = few
        return other

    def loader(self, split: str, *, share: tuple[Modality, ...] = tuple(Modality)) -> ResumableLoader:
        """share: which modalities' inputs a batch holds once however many samples use them."""
        dataset = self.dataset(split)
        training = split == "train"
        costs = np.zeros(len(dataset))
        for modality, cost in self.config.modality_costs.items():
            costs += dataset.present[:, modality.column] * cost
        sampler = OmniBatchSampler(
            dataset.scenes,
            max_batch_cost=self.config.max_batch_cost,
            costs=np.where(costs > 0, costs, 1.0),
            combinations=dataset.combinations(),
            questions_per_group=self.config.questions_per_scene if training else None,
            weights=dataset.family_weights() if training and self.config.balance_families else None,
            shuffle=training,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            replicas=self.trainer.world_size if self.trainer is not None else 1,
        )
        return ResumableLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=partial(collate, dedup=share),
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
