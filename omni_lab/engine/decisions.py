"""What is decided and answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from omni_lab.engine.library import GraphLibrary
from omni_lab.engine.route_graph import RouteSignature
from omni_lab.utils.penalties import penalty_for_budget

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


def choose_penalty(library: GraphLibrary, budget: float | None, penalty: float | None) -> float | None:
    """What the router is conditioned on; None for one that takes no penalty. See `ExportedOmniModel.select_route`."""
    parts, model = library.parts, library.model
    step = [spec.name for spec in parts["router.step"].inputs] if "router.step" in parts else []
    if "router.knots" not in parts and "penalty" not in step:
        if budget is not None or penalty is not None:
            raise ValueError("this router was trained with one penalty: it takes neither another penalty nor a budget")
        return None
    if (budget is None) == (penalty is None):
        raise ValueError("this router is conditioned on a penalty: pass a budget, or a penalty")
    if penalty is not None:
        return penalty
    assert budget is not None
    if not model["costs"]:
        raise ValueError("what this router costs under each penalty was not measured: pass a penalty, not a budget")
    return penalty_for_budget(budget, np.array(model["costs"]), np.array(model["knots"]))
