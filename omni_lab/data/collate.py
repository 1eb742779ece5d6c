"""One sample, and the collate that turns any mix of samples into an `OmniBatch`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from omni_lab.batch import Modality, ModalityInput, OmniBatch


@dataclass(frozen=True)
class Sample:
    """inputs: what the sample carries: token ids [T] int64, a picture [3, H, W] uint8, a waveform [S] float32,
    a clip [F, 3, H, W] uint8; or the tokens [N, D] float of any of them. keys: equal keys mean the same input, which a
    batch then holds once. light: beside tokens, what the encoder's early exit makes of the same input, as many tokens.
    """

    id: str
    task: str
    family: str
    inputs: Mapping[Modality, Tensor]
    dedup_keys: Mapping[Modality, Hashable] = field(default_factory=dict)
    early_exit_inputs: Mapping[Modality, Tensor] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)


def collate(samples: Sequence[Sample], *, dedup: Collection[Modality] = tuple(Modality)) -> OmniBatch:
    """Pads and masks samples that carry any subset of the modalities, in any lengths.

    share: modalities whose equal-keyed inputs are stored once per batch (all of them; fewer only to measure what
    sharing gains). Raises ValueError for an empty batch, one without any input, an empty input, or shapes that do not
    go together, naming the sample.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample: got an empty list")
    inputs = {m: _collate_modality(samples, m, m in dedup) for m in Modality if any(m in s.inputs for s in samples)}
    if not inputs:
        raise ValueError(f"sample {samples[0].id!r} carries no modality at all, nor does any other of the batch")
    rows = {tuple(given.entry_index.tolist()): given.entry_index for given in inputs.values()}
    inputs = {m: replace(given, entry_index=rows[tuple(given.entry_index.tolist())]) for m, given in inputs.items()}
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


def _has_length(modality: Modality, value: Tensor) -> bool:
    """Whether the first axis of an input may differ between samples: it is time, or counts tokens."""
    return modality is not Modality.IMAGE or value.ndim == 2


def _collate_modality(samples: Sequence[Sample], modality: Modality, share: bool) -> ModalityInput:
    entries: dict[Hashable, int] = {}
    values: list[Tensor] = []
    light: list[Tensor] = []
    rows = torch.full((len(samples),), -1)
    for b, sample in enumerate(samples):
        if modality not in sample.inputs:
            continue
        value = sample.inputs[modality]
        if value.numel() == 0:
            raise ValueError(f"sample {sample.id!r}: {modality} is empty (shape {list(value.shape)})")
        key = (0, sample.dedup_keys[modality]) if share and modality in sample.dedup_keys else (1, b)
        if key not in entries:
            first = values[0] if values else value
            fixed = slice(1, None) if _has_length(modality, value) else slice(None)
            if value.shape[fixed] != first.shape[fixed] or value.dtype != first.dtype:
                raise ValueError(
                    f"sample {sample.id!r}: {modality} is {list(value.shape)} {value.dtype}, which does not go "
                    f"with {list(first.shape)} {first.dtype} earlier in the batch"
                )
            entries[key] = len(values)
            values.append(value)
            if modality in sample.early_exit_inputs:
                light.append(sample.early_exit_inputs[modality])
        rows[b] = entries[key]
    if not _has_length(modality, values[0]):
        return ModalityInput(torch.stack(values), torch.ones(len(values), 1, dtype=torch.bool), rows)
    lengths = torch.tensor([len(v) for v in values])
    padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # [U, T, ...], zeros behind the end
    exits = torch.nn.utils.rnn.pad_sequence(light, batch_first=True) if len(light) == len(values) else None
    return ModalityInput(padded, torch.arange(padded.shape[1]) < lengths[:, None], rows, exits)
