"""What a route costs in FLOPs, from the closed forms that were exported with the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from omni_lab.engine.inputs import Media
from omni_lab.engine.route_graph import RouteSignature


def count_tokens(model: Mapping[str, Any], arrays: Mapping[str, Media], sample: int) -> dict[str, int]:
    """The tokens that each modality of a sample has once it is encoded. arrays: of `as_arrays`."""
    items = model["flops"]["tokens_per_item"]
    counts = {}
    for modality, (_, mask, entry) in arrays.items():
        if entry[sample] >= 0:
            real = mask[entry[sample]]
            each = real.any(-1).sum() if real.ndim > 1 else real.sum()  # of audio, tokens that hold a sample
            counts[modality] = int(each) * items.get(modality, 1)
    return counts


def route_flops(model: Mapping[str, Any], route: RouteSignature, tokens: Mapping[str, int]) -> float:
    """FLOPs of encoders, paths, blocks, answer head and router for one question.

    model: as the manifest describes it. tokens: see `count_tokens`.
    """
    costs, depth = model["flops"], model["depth"]
    dim, mlp_dim, gated = costs["dim"], costs["mlp_dim"], costs["gated"]
    once, per_modality = costs["head"]
    total = once + costs["router"]
    queries = {query for query, _ in model["router_paths"]}
    for modality, level in route.levels:
        n = tokens[modality]
        total += float(np.dot(costs["encoders"][modality][str(level)], [1, n, n**2])) + per_modality
        if modality in queries:
            total += depth * (8.0 * n * dim**2 + 4.0 * n**2 * dim + 4.0 * n * dim * mlp_dim)
    for _, query, key in route.paths:
        q, k = tokens[query], tokens[key]
        total += 4.0 * (q + k) * dim**2 + 4.0 * q * k * dim + 4.0 * dim * gated
    return total


def dense_route(model: Mapping[str, Any], present: Mapping[str, Any]) -> RouteSignature:
    """Everything that can run for a question with these modalities."""
    levels = [(m, max(map(int, model["encoders"][m]))) for m in model["modalities"] if m in present]
    paths = [(layer, q, k) for layer, q, k in model["paths"] if q in present and k in present]
    return RouteSignature(tuple(levels), tuple(paths))
