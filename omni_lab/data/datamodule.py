"""From a source to batches: the dataset of questions and the LightningDataModule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from omni_lab.batch import ComputeLevel, Modality, OmniBatch
from omni_lab.config.schema import DataConfig
from omni_lab.data.collate import Sample, collate
from omni_lab.data.sampler import ConsecutiveBatchSampler, OmniBatchSampler
from omni_lab.data.sources.base import SPLITS, VQASource
from omni_lab.data.store import Store, ensure_store
from omni_lab.data.tokenizer import encode_text


class VQADataset(Dataset[Sample]):
    """The questions of one split, as samples of text (or a spoken question), image, audio and video.

    media_rows: [n] per modality, the row in the store, -1 where there is none.
    present: [n, M] bool, the modalities that each sample carries.
    scores: [n, A], soft accuracy of every answer of the vocabulary.
    latents: by modality, gives the precomputed tokens [N, D] of a row; samples then carry them in place of the media.
    lower_latents: beside `latents`, the tokens at other levels than the full one.
    glances: by modality and row, numbers [G] about the raw input; samples then carry them as the target "glances".
    """

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        modalities: Collection[Modality] = tuple(Modality),
        first_scene: int = 0,
        max_scenes: int | None = None,
        required_modalities_only: bool = False,
        families: Collection[str] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """modalities: leave out all others. tokenizer: by default the store's. For the rest see `DataConfig`."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}: got {split!r}")
        table = store.questions(split)
        scenes = table.column("scene").to_numpy()
        mask = np.ones(len(scenes), dtype=bool)
        if first_scene or max_scenes is not None:
            mask &= np.isin(scenes, np.unique(scenes)[first_scene:max_scenes])
        if families is not None:
            mask &= np.isin(table.column("family").to_numpy(zero_copy_only=False), list(families))
        table = table.filter(mask)
        self._mask = mask  # of the questions of the whole split, those that are here
        self.store = store
        self.modalities = modalities
        self.media_rows = {m: table.column(m.value).to_numpy() for m in store.shapes}
        self.latents: dict[Modality, Callable[[int], torch.Tensor]] = {}
        self.lower_latents: dict[Modality, dict[ComputeLevel, Callable[[int], torch.Tensor]]] = {}
        self.glances: dict[Modality, dict[int, torch.Tensor]] = {}
        self.scenes = table.column("scene").to_numpy()
        self.ids: list[str] = table.column("id").to_pylist()
        self.texts: list[str | None] = table.column("text").to_pylist()
        self.families: list[str] = table.column("family").to_pylist()
        absent = np.full(len(self.ids), -1)
        rows = self.media_rows | {Modality.TEXT: np.array([-1 if text is None else 0 for text in self.texts])}
        self.present = np.stack([(rows.get(m, absent) if m in modalities else absent) >= 0 for m in Modality], axis=1)
        if required_modalities_only:
            requirements = store.families
            unknown = sorted(set(self.families) - set(requirements))
            if unknown:
                raise ValueError(f"required_modalities_only: {store.path} has no requirements of {unknown}")
            required = [[m in requirements[f].required_modalities for m in Modality] for f in self.families]
            self.present &= np.array(required)
        index = {answer: i for i, answer in enumerate(store.answers)}
        self.scores = torch.zeros(len(self.ids), len(index))
        answers, scores = table.column("answers").to_pylist(), table.column("scores").to_pylist()
        for i in range(len(self.ids)):
            for answer, score in zip(answers[i], scores[i], strict=True):
                if answer in index:  # rare answers of VQA v2 are not in the vocabulary: they can only be missed
                    self.scores[i, index[answer]] = score
        self.tokenizer = tokenizer or store.tokenizer
        self._tokens = {
            text: torch.tensor(encode_text(self.tokenizer, text, name=f"question {name}"))
            for text, name in dict(zip(self.texts, self.ids, strict=True)).items()
            if text is not None
        }

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, count: int, *, seed: int = 0) -> list[int]:
        """Of `count` random questions of the whole split, the indices of those that are here, in random order.

        A dataset of fewer scenes therefore gives a part of what the whole one gives.
        """
        index = np.cumsum(self._mask) - 1
        sampled = np.random.default_rng(seed).permutation(len(self._mask))[:count]
        return index[sampled[self._mask[sampled]]].tolist()

    def family_weights(self) -> np.ndarray:
        """[n], one over the size of each question's family."""
        _, family, sizes = np.unique(self.families, return_inverse=True, return_counts=True)
        return 1.0 / sizes[family]

    def combinations(self) -> np.ndarray:
        """[n], a code of the modalities that each sample carries."""
        return self.present @ (1 << np.arange(len(Modality)))

    def lengths(self) -> np.ndarray:
        """[n], tokens in the text of each sample, 0 where it has none."""
        counts = [0 if text is None else len(self._tokens[text]) for text in self.texts]
        return np.array(counts) * self.present[:, Modality.TEXT.column]

    @property
    def image_rows(self) -> np.ndarray:
        """[n], the row of each question's image in the store."""
        return self.media_rows[Modality.IMAGE]

    def make_sample(self, text: str, image_row: int) -> Sample:
        """A sample with a new question about a scene, without targets.

        image_row: an image of this split; the scene's audio and video come along as with its written questions.
        """
        about = np.flatnonzero(self.image_rows == image_row)
        if len(about) == 0:
            raise ValueError(f"image_row must be that of an image of this split: got {image_row}")
        written = [i for i in about if self.texts[i] is not None]
        return self._sample(text, self._rows(int((written or about)[0])))

    def used_rows(self, modality: Modality) -> list[int]:
        """The rows in the store that the samples carry, each once, sorted."""
        return np.unique(self.media_rows[modality][self.present[:, modality.column]]).tolist()

    def build_media(self) -> None:
        """Builds all media that the samples carry, as far as no latents stand for them."""
        for modality in self.media_rows:
            if modality not in self.latents:
                self.store.build(modality, self.used_rows(modality))

    def load_media(self, modality: Modality, row: int) -> torch.Tensor:
        """An image or video as it is stored, audio as [S] float32 from -1 to 1."""
        values = torch.from_numpy(self.store.media(modality, row).copy())
        return values / 32768.0 if modality is Modality.AUDIO else values

    def _rows(self, i: int) -> dict[Modality, int]:
        return {m: int(r[i]) for m, r in self.media_rows.items() if self.present[i, m.column]}

    def _sample(self, text: str | None, rows: Mapping[Modality, int]) -> Sample:
        inputs: dict[Modality, torch.Tensor] = {}
        keys: dict[Modality, Any] = dict(rows)
        if text is not None and Modality.TEXT in self.modalities:
            if text not in self._tokens:
                self._tokens[text] = torch.tensor(encode_text(self.tokenizer, text, name="question"))
            inputs[Modality.TEXT], keys[Modality.TEXT] = self._tokens[text], text
        for modality, row in rows.items():
            inputs[modality] = self.latents.get(modality, partial(self.load_media, modality))(row)
        lower = {m: {level: get(rows[m]) for level, get in self.lower_latents.get(m, {}).items()} for m in rows}
        return Sample(f"question {text!r}", "answer", "", inputs, dedup_keys=keys, lower_inputs=lower)

    def __getitem__(self, i: int) -> Sample:
        sample = self._sample(self.texts[i] if self.present[i, Modality.TEXT.column] else None, self._rows(i))
        targets = {"answer_scores": self.scores[i]}
        if self.glances:
            width = len(next(iter(next(iter(self.glances.values())).values())))
            targets["glances"] = torch.zeros(len(Modality), width)
            for modality, row in self._rows(i).items():
                if modality in self.glances:
                    targets["glances"][modality.column] = self.glances[modality][row]
        return replace(sample, id=self.ids[i], family=self.families[i], targets=targets)


class ResumableLoader(DataLoader[Sample]):
    """A DataLoader that can continue in the middle of an epoch: its state, which Lightning puts into every checkpoint,
    counts the batches handed out, not those prefetched by workers. Media are built before workers start: these may not
    start processes."""

    batch_sampler: OmniBatchSampler | ConsecutiveBatchSampler
    handed_out = 0

    def __iter__(self) -> Iterator[OmniBatch]:  # type: ignore[override]
        if isinstance(self.dataset, VQADataset):
            self.dataset.build_media()
        self.handed_out = self.batch_sampler.start_batch
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"handed_out": self.handed_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batch_sampler.start_batch = state["handed_out"] % len(self.batch_sampler)


@dataclass(eq=False, repr=False)
class OmniDataModule(L.LightningDataModule):
    """Builds or opens the store of a source, and loads batches of its splits."""

    source: VQASource
    config: DataConfig
    _: KW_ONLY
    root: Path  # folder of all stores
    modalities: Collection[Modality] = tuple(Modality)  # leave out all others
    seed: int = 0  # of batches
    eval_scenes: Mapping[str, int] = field(default_factory=dict)  # by split, use only its first scenes
    tokenizer: Tokenizer | None = None  # of the model that reads the questions, if trained on another store

    def __post_init__(self) -> None:
        super().__init__()
        self._datasets: dict[str, VQADataset] = {}

    def prepare_data(self) -> None:
        for split in ("train", "validation"):
            self.dataset(split).build_media()

    @cached_property
    def store(self) -> Store:
        return ensure_store(self.source, self.root)

    def dataset(self, split: str) -> VQADataset:
        if split not in self._datasets:
            self._datasets[split] = VQADataset(
                self.store,
                split,
                modalities=self.modalities,
                first_scene=self.config.first_scene if split == "train" else 0,
                max_scenes=self.eval_scenes.get(split, self.config.max_scenes),
                required_modalities_only=self.config.required_modalities_only,
                families=self.config.families,
                tokenizer=self.tokenizer,
            )
        return self._datasets[split]

    def with_config(self, config: DataConfig, *, seed: int, raw: bool = False, **scenes: int) -> OmniDataModule:
        """A copy that samples by another configuration and seed; the same questions, unless that chooses others.

        scenes: by split, use only so many of its first scenes.
        raw: these splits load raw media; by default they share the precomputed latents.
        """
        other = copy.copy(self)
        other.config, other.seed = config, seed
        choosing = ("first_scene", "max_scenes", "families", "required_modalities_only")
        same = all(getattr(config, name) == getattr(self.config, name) for name in choosing)
        other._datasets = dict(self._datasets) if same else {}
        for split, count in scenes.items():
            subset = VQADataset(
                self.store, split, modalities=self.modalities, max_scenes=count, tokenizer=self.tokenizer
            )
            if not raw:
                whole = self.dataset(split)
                subset.latents, subset.lower_latents = whole.latents, whole.lower_latents
                subset.glances = whole.glances
            other._datasets[split] = subset
        return other

    def loader(self, split: str) -> ResumableLoader:
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
            collate_fn=collate,
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
