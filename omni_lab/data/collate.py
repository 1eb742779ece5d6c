"""A sample, and the collate function that turns any mix of samples into an `OmniBatch`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from omni_lab.batch import ComputeLevel, Modality, ModalityInput, OmniBatch


@dataclass(frozen=True)
class Sample:
    """One example with any subset of the modalities."""

    id: str
    task: str
    family: str
    # Token ids [T] int64, image [3, H, W] uint8, waveform [S] float32, video [F, 3, H, W] uint8; or tokens [N, D].
    inputs: Mapping[Modality, Tensor]
    dedup_keys: Mapping[Modality, Hashable] = field(default_factory=dict)  # a batch stores inputs of equal keys once
    # Tokens [N, D] at the levels below the full one.
    lower_inputs: Mapping[Modality, Mapping[ComputeLevel, Tensor]] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)


def collate(samples: Sequence[Sample], *, dedup: Collection[Modality] = tuple(Modality)) -> OmniBatch:
    """Pads and masks samples that carry any subset of the modalities, of any lengths.

    dedup: modalities whose inputs of equal keys are stored once per batch.
    Raises ValueError, naming the sample, for empty batches and inputs, and for shapes or targets that do not match.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample: got an empty list")
    inputs = {m: _collate_modality(samples, m, m in dedup) for m in Modality if any(m in s.inputs for s in samples)}
    if not inputs:
        raise ValueError(f"sample {samples[0].id!r} carries no modality at all, nor does any other of the batch")
    # Modalities with equal indices share one tensor object, see `ModalityInput`.
    indices = {tuple(entry.entry_index.tolist()): entry.entry_index for entry in inputs.values()}
    inputs = {m: replace(entry, entry_index=indices[tuple(entry.entry_index.tolist())]) for m, entry in inputs.items()}
    names = samples[0].targets.keys()
    for sample in samples:
        if sample.targets.keys() != names:
            raise ValueError(f"sample {sample.id!r} has targets {list(sample.targets)}: expected {list(names)}")
    return OmniBatch(
        inputs=inputs,
        tasks=[s.task for s in samples],
        families=[s.family for s in samples],
        ids=[s.id for s in samples],
        targets={name: torch.stack([s.targets[name] for s in samples]) for name in names},
    )


def _collate_modality(samples: Sequence[Sample], modality: Modality, dedup: bool) -> ModalityInput:
    entries: dict[Hashable, int] = {}  # the index in `values` by key
    values: list[Tensor] = []
    lower: list[Mapping[ComputeLevel, Tensor]] = []
    first = next(s.inputs[modality] for s in samples if modality in s.inputs)
    has_length = modality is not Modality.IMAGE or first.ndim == 2  # the first axis is time, or counts tokens: padded
    entry_index = torch.full((len(samples),), -1)
    for b, sample in enumerate(samples):
        if modality not in sample.inputs:
            continue
        value = sample.inputs[modality]
        if value.numel() == 0:
            raise ValueError(f"sample {sample.id!r}: {modality} is empty (shape {list(value.shape)})")
        key = (0, sample.dedup_keys[modality]) if dedup and modality in sample.dedup_keys else (1, b)
        if key not in entries:
            if value.shape[has_length:] != first.shape[has_length:] or value.dtype != first.dtype:
                raise ValueError(
                    f"sample {sample.id!r}: {modality} is {list(value.shape)} {value.dtype}, which does not match "
                    f"{list(first.shape)} {first.dtype} earlier in the batch"
                )
            entries[key] = len(values)
            values.append(value)
            lower.append(sample.lower_inputs.get(modality, {}))
        entry_index[b] = entries[key]
    if not has_length:
        return ModalityInput(torch.stack(values), torch.ones(len(values), 1, dtype=torch.bool), entry_index)
    lengths = torch.tensor([len(v) for v in values])
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    padded = pad(values)  # [U, T, ...], zeros after the end
    levels = [level for level in lower[0] if all(level in each for each in lower)]
    padded_lower = {level: pad([each[level] for each in lower]) for level in levels}
    return ModalityInput(padded, torch.arange(padded.shape[1]) < lengths[:, None], entry_index, padded_lower)
