"""Single questions, and what was decided about each, put together to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from omni_lab.engine.decisions import Decision
from omni_lab.engine.inputs import Media

Sample = Mapping[str, Media]  # the inputs of one question, by modality


def stack_samples(samples: Sequence[Sample]) -> dict[str, Media]:
    """The inputs of a batch. What is shorter is padded. samples: raw inputs, see `single_medium`."""
    stacked = {}
    for modality in dict.fromkeys(m for sample in samples for m in sample):
        held = [(i, sample[modality]) for i, sample in enumerate(samples) if modality in sample]
        entries = np.full(len(samples), -1, np.int64)
        entries[[i for i, _ in held]] = np.arange(len(held))
        values = _pad([medium.values for _, medium in held])
        stacked[modality] = Media(values, _pad([medium.mask for _, medium in held]), entries)
    return stacked


def select_decision(decision: Decision, arrays: Mapping[str, Media], sample: int) -> Decision:
    """What was decided about one sample of a batch, with the tokens that it needs. arrays: the inputs of the batch."""
    tokens = {}
    for key, (values, mask) in decision.tokens.items():
        entry = arrays[key[0]].entry_index[sample]
        if entry >= 0 and mask[entry].any():
            tokens[key] = (values[entry : entry + 1], mask[entry : entry + 1])
    return Decision(decision.levels[sample : sample + 1], decision.paths[sample : sample + 1], tokens)


def stack_decisions(decisions: Sequence[Decision], arrays: Mapping[str, Media]) -> Decision:
    """What was decided about the samples of a batch, one decision for each. arrays: the inputs of the batch."""
    tokens = {}
    for key in dict.fromkeys(key for decision in decisions for key in decision.tokens):
        held = [(i, decision.tokens[key]) for i, decision in enumerate(decisions) if key in decision.tokens]
        entries = arrays[key[0]].entry_index
        values, mask = _pad([values for _, (values, _) in held]), _pad([mask for _, (_, mask) in held])
        size = int(entries.max()) + 1
        every = np.zeros((size, *values.shape[1:]), values.dtype), np.zeros((size, *mask.shape[1:]), bool)
        rows = entries[[i for i, _ in held]]
        every[0][rows], every[1][rows] = values, mask
        tokens[key] = every
    levels, paths = (np.concatenate([getattr(d, name) for d in decisions]) for name in ("levels", "paths"))
    return Decision(levels, paths, tokens)


def _pad(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[1, N, ...] each, of various N, to [R, N, ...]; zeros where one is shorter."""
    if rows[0].ndim < 2 or len({row.shape[1:] for row in rows}) == 1:
        return np.concatenate(rows)
    longest = max(row.shape[1] for row in rows)
    padded = np.zeros((len(rows), longest, *rows[0].shape[2:]), rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : row.shape[1]] = row[0]
    return padded
