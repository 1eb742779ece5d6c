"""The levels of an encoder, as calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from omni_lab.batch import ComputeLevel, Modality, OmniBatch, Tokens


def encoder_at(encoder: Any, level: ComputeLevel) -> Callable[..., Tokens]:
    """The call that encodes at a level: the encoder itself, `forward_early_exit` or `forward_tiny`.

    Raises ValueError for `SKIP`.
    """
    if level is ComputeLevel.SKIP:
        raise ValueError("an encoder that is skipped returns no tokens")
    return encoder if level is ComputeLevel.FULL else getattr(encoder, f"forward_{level.name.lower()}")


def at_levels(
    batch: OmniBatch, encoded: Mapping[Modality, tuple[Tokens, Int[Tensor, " l"]]], levels: Int[Tensor, "b m"]
) -> dict[Modality, Tokens]:
    """The tokens of each sample at its levels, of inputs that `OmniModel.encode_levels` encoded at all levels."""
    streams = {}
    for modality, (tokens, first) in encoded.items():
        wanted, entries = levels[:, modality.column], batch.inputs[modality].entry_index
        if wanted.any():
            streams[modality] = replace(tokens, entry_index=torch.where(wanted > 0, first[wanted] + entries, -1))
    return streams
