"""The data types that every room shares: `Modality`, `Tokens`, `ModalityInput`, `OmniBatch`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

SAMPLE_RATE = 16_000  # Hz, of every waveform inside the models


class Modality(enum.StrEnum):
    """The modalities in their one fixed order: column `m.column` of every `[B, M]` tensor belongs to `m`."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"

    @cached_property
    def column(self) -> int:
        return list(Modality).index(self)


NUM_MODALITIES = len(Modality)


class ComputeLevel(enum.IntEnum):
    """How an encoder runs, the cheapest first: not at all, as a tiny encoder that stands in for it, up to its early
    exit, or in full."""

    SKIP = 0
    TINY = 1
    EARLY_EXIT = 2
    FULL = 3


@dataclass(frozen=True)
class Tokens:
    """The tokens of one modality: what an encoder returns and fusion consumes.

    An input that several samples share is one of U entries and is computed once: norms, projections and pooling run
    on U entries, and only what depends on other inputs of the sample runs on B.

    values: [U, N, D].
    mask: [U, N], True where a token is not padding.
    times: [U, N], seconds; None for a modality without a time axis.
    entry_index: [B], the entry that each sample uses, -1 where it has none; None means one entry per sample, in order.
    """

    values: Float[Tensor, "u n d"]
    mask: Bool[Tensor, "u n"]
    times: Float[Tensor, "u n"] | None = None
    entry_index: Int[Tensor, " b"] | None = None

    def __len__(self) -> int:
        """The number of samples, B."""
        return len(self.values) if self.entry_index is None else len(self.entry_index)

    def with_values(self, values: Float[Tensor, "u n d"]) -> Tokens:
        return replace(self, values=values)

    def gather(self, per_entry: Shaped[Tensor, "u ..."]) -> Shaped[Tensor, "b ..."]:
        """Expands a tensor with one row per entry to one row per sample; a sample without an entry gets row 0."""
        return per_entry if self.entry_index is None else per_entry.index_select(0, self.entry_index.clamp(min=0))

    @property
    def sample_mask(self) -> Bool[Tensor, "b n"]:
        """[B, N], the mask per sample; all False for a sample without an entry."""
        return self.mask if self.entry_index is None else self.gather(self.mask) & self.present.unsqueeze(1)

    @property
    def present(self) -> Bool[Tensor, " b"]:
        """[B], True where the sample has an entry."""
        if self.entry_index is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.values.device)
        return self.entry_index >= 0

    def select(self, samples: Int[Tensor, " p"]) -> Tokens:
        """The tokens of these samples; no entry is copied."""
        return replace(self, entry_index=samples if self.entry_index is None else self.entry_index[samples])

    def drop_unused_entries(self) -> Tokens:
        """Removes the entries that no sample uses."""
        if self.entry_index is None or (
            len(self.entry_index) >= len(self.values) and len(self.entry_index.unique()) >= len(self.values)
        ):
            return self
        used, rows = self.entry_index[self.present].unique(return_inverse=True)
        entry_index = self.entry_index.clone()
        entry_index[self.present] = rows
        times = None if self.times is None else self.times[used]
        return Tokens(self.values[used], self.mask[used], times, entry_index)

    def expand_entries(self) -> Tokens:
        """Copies shared entries so that each sample has its own, U = B."""
        if self.entry_index is None:
            return self
        times = None if self.times is None else self.gather(self.times)
        return Tokens(self.gather(self.values), self.sample_mask, times)

    def mean_pool(self) -> Float[Tensor, "b d"]:
        """Mean over the real tokens of each sample; zeros where there are none."""
        weight = self.mask.unsqueeze(-1).to(self.values.dtype)  # [U, N, 1]
        mean = (self.values * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self._zero_without_tokens(self.gather(mean))

    def max_pool(self) -> Float[Tensor, "b d"]:
        """Maximum over the real tokens, zeros where there are none; unlike a mean, it keeps what few tokens show."""
        largest = self.values.masked_fill(~self.mask.unsqueeze(-1), -torch.inf).amax(dim=1)
        return self._zero_without_tokens(self.gather(largest))

    def _zero_without_tokens(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        if torch.compiler.is_exporting():  # exported graphs run for samples with tokens alone
            return pooled
        return torch.where(self.sample_mask.any(dim=1, keepdim=True), pooled, 0.0)


@dataclass(frozen=True)
class ModalityInput:
    """The inputs of one modality in a batch; an input that several samples share is stored and encoded once.

    values: [U, ...], one entry per distinct input: token ids [U, T], images [U, 3, H, W] uint8, waveforms [U, S], video
        [U, F, 3, H, W] uint8; or precomputed tokens [U, N, D] float.
    mask: [U, T], True where the time axis (or the token axis) is not padding.
    entry_index: [B], the entry of each sample, -1 where the sample lacks the modality. Modalities with equal indices
        share one tensor object: fusion between them is then computed once per entry.
    lower_values: with precomputed tokens, the tokens of the same inputs at other levels than `ComputeLevel.FULL`.
    """

    values: Tensor
    mask: Bool[Tensor, "u t"]
    entry_index: Int[Tensor, " b"]
    lower_values: Mapping[ComputeLevel, Float[Tensor, "u n d"]] = field(default_factory=dict)

    @property
    def is_encoded(self) -> bool:
        """Whether `values` holds precomputed tokens."""
        return self.values.ndim == 3


@dataclass(frozen=True)
class OmniBatch:
    """A batch of B samples, each with any subset of the modalities.

    inputs: one entry per modality that occurs in the batch.
    families: [B], the kind of each question ("shape", "colour"), for tables.
    targets: tensors with first axis B; the answer task has "answer_scores" [B, A] in [0, 1].
    """

    inputs: Mapping[Modality, ModalityInput]
    tasks: Sequence[str]
    families: Sequence[str]
    ids: Sequence[str]
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def present(self) -> Bool[Tensor, "b m"]:
        """[B, M], True where the sample has the modality; derived from the indices, so the two cannot disagree."""
        missing = torch.full((len(self),), -1)
        rows = [self.inputs[m].entry_index if m in self.inputs else missing for m in Modality]
        device = next((i.entry_index.device for i in self.inputs.values()), torch.device("cpu"))
        return torch.stack([r.to(device) for r in rows], dim=1) >= 0

    def without(self, modality: Modality) -> OmniBatch:
        """Removes a modality from every sample."""
        return replace(self, inputs={m: i for m, i in self.inputs.items() if m is not modality})

    def with_entry_index(self, modality: Modality, entry_index: Int[Tensor, " b"]) -> OmniBatch:
        """Assigns the entries of one modality to other samples, e.g. images shuffled across the batch."""
        return replace(self, inputs={**self.inputs, modality: replace(self.inputs[modality], entry_index=entry_index)})

    def select(self, samples: Int[Tensor, " p"]) -> OmniBatch:
        """These samples in this order; repeats are allowed, and no input is copied."""
        tasks, families, ids = ([names[i] for i in samples.tolist()] for names in (self.tasks, self.families, self.ids))
        selected = self._map(lambda tensor: tensor[samples], per_entry=lambda tensor: tensor)
        return replace(selected, tasks=tasks, families=families, ids=ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> OmniBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> OmniBatch:
        return self._map(Tensor.pin_memory)

    def _map(
        self, change: Callable[[Tensor], Tensor], per_entry: Callable[[Tensor], Tensor] | None = None
    ) -> OmniBatch:
        """Changes every tensor, those with axis U by `per_entry` if given; shared indices stay shared."""
        per_entry = per_entry or change
        indices = {id(i.entry_index): change(i.entry_index) for i in self.inputs.values()}
        inputs = {
            m: ModalityInput(
                values=per_entry(i.values),
                mask=per_entry(i.mask),
                entry_index=indices[id(i.entry_index)],
                lower_values={level: per_entry(values) for level, values in i.lower_values.items()},
            )
            for m, i in self.inputs.items()
        }
        return replace(self, inputs=inputs, targets={name: change(t) for name, t in self.targets.items()})
