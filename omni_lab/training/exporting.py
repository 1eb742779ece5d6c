"""A trained model and its router in a folder that `omni_lab.engine` runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omni_lab.batch import Modality, OmniBatch
from omni_lab.compression.export import Exporter, route_signatures
from omni_lab.compression.parts import AssemblySpec, split_model
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.compression.sequential import split_sequential_router
from omni_lab.data.collate import collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.engine.route_graph import RouteSignature
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.evaluation.policies import PolicyEvaluator
from omni_lab.routing.router import Router
from omni_lab.routing.sequential import SequentialRouter
from omni_lab.training.checkpoint import weights_digest
from omni_lab.training.compression_recipes import CompressedModel
from omni_lab.training.recipes import TrainedModel


def example_batch(dataset: VQADataset) -> OmniBatch:
    """A few questions that together have raw inputs of every modality, as `split_model` wants them."""
    first = [
        int(np.flatnonzero(dataset.present[:, m.column])[0]) for m in Modality if dataset.present[:, m.column].any()
    ]
    return collate([dataset[i] for i in [*first, *range(4)]])


def frequent_routes(
    network: TrainedModel, router: Router, *, questions: int = 600, coverage: float = 0.95, limit: int = 64
) -> list[RouteSignature]:
    """Those that most validation questions take, the most frequent first.

    questions: so many are looked at. coverage: fraction of them that take one of the routes; at most `limit` routes.
    """
    validation = network.data.dataset("validation")
    chosen = PolicyEvaluator(network.model, validation, questions=validation.sample(questions))
    routes = chosen.collect_routes(lambda batch: network.model.select_route(router, batch)[0], name="frequent routes")
    counts, frequent, covered = Counter(route_signatures(routes, network.model.space)), [], 0
    for signature, count in counts.most_common(limit):
        if covered >= coverage * len(routes):
            break
        frequent.append(signature)
        covered += count
    return frequent


def export_compressed(
    compressed: CompressedModel,
    network: TrainedModel,
    folder: Path,
    *,
    exporter: Exporter | None = None,
    routes: Sequence[RouteSignature] = (),
) -> int:
    """Writes a compressed model, its router and the network's tokenizer; returns the bytes. See `Exporter.write`."""
    shapes = [[weight.shape for weight in model.parameters()] for model in (compressed.model, network.model)]
    whole = shapes[0] == shapes[1]  # no channel was pruned
    costs = build_cost_model(network.model, router_flops=compressed.router.flops) if whole else None
    return (exporter or Exporter()).write(
        folder,
        compressed.parts,
        compressed.spec,
        policy=compressed.policy,
        source=weights_digest(network.model),
        answers=network.data.store.answers,
        router=compressed.router,
        ranges=compressed.ranges,
        routes=routes,
        tokenizer=network.data.store.tokenizer.to_str(),
        shapes=network.data.store.shapes,
        costs=costs,
    )


def export_sequential(
    network: TrainedModel,
    router: SequentialRouter,
    folder: Path,
    *,
    example: OmniBatch,
    policy: PrecisionPolicy | None = None,
) -> int:
    """Writes a network and a router that looks again; returns the bytes. See `Exporter.write`.

    example: see `example_batch`. policy: default: everything in floats.
    """
    parts = split_model(network.model, example)
    raw = {p.owner: p.example for p in parts if p.owner and p.name == f"encoder.{p.owner}"}
    return Exporter().write(
        folder,
        [*parts, *split_sequential_router(router.eval(), raw)],
        AssemblySpec.from_model(network.model),
        policy=policy or PrecisionPolicy.uniform(Precision.FP32),
        source=weights_digest(network.model),
        answers=network.data.store.answers,
        router=router,
        tokenizer=network.data.store.tokenizer.to_str(),
        shapes=network.data.store.shapes,
    )
