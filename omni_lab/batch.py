"""The words that every other room speaks: `Modality`, `Tokens`, `ModalityInput`, `OmniBatch`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SAMPLE_RATE = 16_000


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


@dataclass(frozen=True)
class Tokens:
    """What an encoder returns and fusion consumes.

    values: [U, N, D]. mask: [U, N], True where a token is real. times: [U, N] in seconds, where the modality has a
    clock. rows: [B], which of the U entries each sample uses, -1 where it has none; None means one entry per sample in
    order, U = B. So what several samples share is computed once: everything that treats entries one by one (norms,
    projections, pooling) runs on U entries, and only what mixes in something of the sample's own runs on B.
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

    def gather(self, per_entry: Float[Tensor, "u ..."]) -> Float[Tensor, "b ..."]:
        """Something computed per entry, one copy for each sample that uses it."""
        return per_entry if self.entry_index is None else per_entry.index_select(0, self.entry_index.clamp(min=0))

    @property
    def sample_mask(self) -> Bool[Tensor, "b n"]:
        """[B, N], the mask dealt out; all False for a sample without an entry."""
        if self.entry_index is None:
            return self.mask
        return self.mask.index_select(0, self.entry_index.clamp(min=0)) & (self.entry_index >= 0).unsqueeze(1)

    @property
    def present(self) -> Bool[Tensor, " b"]:
        """[B], True where the sample has an entry."""
        if self.entry_index is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.values.device)
        return self.entry_index >= 0

    def select(self, samples: Int[Tensor, " p"]) -> Tokens:
        """The tokens of some of the samples."""
        return replace(self, entry_index=samples if self.entry_index is None else self.entry_index[samples])

    def drop_unused_entries(self) -> Tokens:
        """The same tokens without the entries that no sample uses."""
        if self.entry_index is None or (
            len(self.entry_index) >= len(self.values) and len(self.entry_index.unique()) >= len(self.values)
        ):
            return self
        used, rows = self.entry_index[self.entry_index >= 0].unique(return_inverse=True)
        kept = self.entry_index.clone()
        kept[self.entry_index >= 0] = rows
        times = None if self.times is None else self.times[used]
        return Tokens(self.values[used], self.mask[used], times, kept)

    def expand_entries(self) -> Tokens:
        """The same tokens with one entry per sample."""
        if self.entry_index is None:
            return self
        times = None if self.times is None else self.gather(self.times)
        return Tokens(self.gather(self.values), self.sample_mask, times)

    def mean_pool(self) -> Float[Tensor, "b d"]:
        """Mean over each sample's real tokens; zeros where there are none. [B, D]"""
        weight = self.mask.unsqueeze(-1).to(self.values.dtype)  # [U, N, 1]
        mean = (self.values * weight).sum(1) / weight.sum(1).clamp(min=1)
        return torch.where(self.sample_mask.any(dim=1, keepdim=True), self.gather(mean), 0.0)

    def max_pool(self) -> Float[Tensor, "b d"]:
        """The largest value of each channel over each sample's real tokens; zeros where there are none. [B, D]

        What few tokens say is heard among many that say nothing; in a mean it drowns.
        """
        largest = self.values.masked_fill(~self.mask.unsqueeze(-1), -torch.inf).amax(dim=1)
        return torch.where(self.sample_mask.any(dim=1, keepdim=True), self.gather(largest), 0.0)


@dataclass(frozen=True)
class ModalityInput:
    """The inputs of one modality in a batch. What several samples share is stored, and encoded, once.

    values: [U, ...], one entry per *distinct* input: token ids [U, T], pictures [U, 3, H, W] uint8,
    waveforms [U, S], clips [U, F, 3, H, W] uint8; or what an encoder made of any of them, tokens [U, N, D] float.
    mask: [U, T], True where the time axis, or the axis of tokens, is not padding.
    rows: [B], which entry belongs to each sample, -1 where the sample lacks the modality. Modalities that are dealt out
    alike share one `rows` object: what happens between them is then computed once per entry. light: with tokens, what
    the encoder's early exit made of the same inputs.
    """

    values: Tensor
    mask: Bool[Tensor, "u t"]
    entry_index: Int[Tensor, " b"]
    early_exit_values: Float[Tensor, "u n d"] | None = None

    @property
    def is_encoded(self) -> bool:
        """Whether these are tokens already."""
        return self.values.ndim == 3


@dataclass(frozen=True)
class OmniBatch:
    """A batch in which every sample may carry any subset of the modalities.

    inputs: one `ModalityInput` per modality that occurs at all. tasks, families, ids: one string per sample; a
    family is a kind of question, for tables ("shape", "colour").
    targets: tensors with first axis B, by name; the answer task has "answer_scores" [B, A] in [0, 1].
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
        """[B, M], True where the sample carries the modality: read off the rows, so the two cannot disagree."""
        missing = torch.full((len(self),), -1)
        rows = [self.inputs[m].entry_index if m in self.inputs else missing for m in Modality]
        device = next((i.entry_index.device for i in self.inputs.values()), torch.device("cpu"))
        return torch.stack([r.to(device) for r in rows], dim=1) >= 0

    def without(self, modality: Modality) -> OmniBatch:
        """The same batch with one modality absent everywhere."""
        return replace(self, inputs={m: i for m, i in self.inputs.items() if m is not modality})

    def with_entry_index(self, modality: Modality, rows: Int[Tensor, " b"]) -> OmniBatch:
        """The same batch with one modality dealt out differently, e.g. pictures shuffled across samples."""
        return replace(self, inputs={**self.inputs, modality: replace(self.inputs[modality], entry_index=rows)})

    def select(self, samples: Int[Tensor, " p"]) -> OmniBatch:
        """Some of the samples, in that order, as often as they are named; their inputs are still held once."""
        rows = {id(given.entry_index): given.entry_index[samples] for given in self.inputs.values()}
        chosen = samples.tolist()
        return OmniBatch(
            inputs={m: replace(given, entry_index=rows[id(given.entry_index)]) for m, given in self.inputs.items()},
            tasks=[self.tasks[i] for i in chosen],
            families=[self.families[i] for i in chosen],
            ids=[self.ids[i] for i in chosen],
            targets={name: target[samples] for name, target in self.targets.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> OmniBatch:
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> OmniBatch:
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> OmniBatch:
        rows = {
            id(given.entry_index): change(given.entry_index) for given in self.inputs.values()
        }  # shared before, shared after
        return replace(
            self,
            inputs={
                m: ModalityInput(
                    change(given.values),
                    change(given.mask),
                    rows[id(given.entry_index)],
                    None if given.early_exit_values is None else change(given.early_exit_values),
                )
                for m, given in self.inputs.items()
            },
            targets={name: change(tensor) for name, tensor in self.targets.items()},
        )
