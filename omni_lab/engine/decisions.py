"""What is decided and answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from omni_lab.engine.route_graph import RouteSignature

TokenTable = dict[tuple[str, int, bool], tuple[np.ndarray, np.ndarray]]


class Decision(NamedTuple):
    """What runs for each sample.

    levels: [B, M], of each modality, 0 where it is skipped. paths: [B, L, P], True where a path is open.
    tokens: what was encoded in order to decide.
    """

    levels: np.ndarray
    paths: np.ndarray
    tokens: Mapping[tuple[str, int, bool], tuple[np.ndarray, np.ndarray]]


class Answer(NamedTuple):
    """The most likely answer, its probability, and all logits [A]."""

    text: str
    confidence: float
    logits: np.ndarray
    route: RouteSignature
