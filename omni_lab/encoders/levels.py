"""The levels of an encoder, as calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omni_lab.batch import ComputeLevel, Tokens


def encoder_at(encoder: Any, level: ComputeLevel) -> Callable[..., Tokens]:
    """The call that encodes at a level: the encoder itself, `forward_early_exit` or `forward_tiny`.

    Raises ValueError for `SKIP`.
    """
    if level is ComputeLevel.SKIP:
        raise ValueError("an encoder that is skipped returns no tokens")
    return encoder if level is ComputeLevel.FULL else getattr(encoder, f"forward_{level.name.lower()}")
