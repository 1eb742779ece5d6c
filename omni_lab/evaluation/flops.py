"""FLOPs that were really executed, and the cost model that predicts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from omni_lab.batch import NUM_MODALITIES, SAMPLE_RATE, Modality, OmniBatch
from omni_lab.model import OmniModel
from omni_lab.routing.cost import CostModel
from omni_lab.routing.route import ComputeLevel


def _attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs (2 x MACs) of the matrix products, convolutions and attention that a call executes.

    The counter of torch 2.11 does not know the attention kernel of the CPU, and would count it as nothing.
    """
    return _counted(function).get_total_flops()


def _counted(function: Callable[[], Any]) -> FlopCounterMode:
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        function()
    return counter


def build_cost_model(model: OmniModel, *, frames: int = 8, router_flops: float = 0.0) -> CostModel:
    """Encoders are counted on blank inputs: of three lengths for text and sound, whose FLOPs are quadratic in
    the number of tokens, and for clips of `frames` frames."""
    table = torch.zeros(NUM_MODALITIES, len(ComputeLevel), 3, dtype=torch.double)
    for modality in model.space.modalities:
        for level in model.space.allowed_levels(modality):
            if level is not ComputeLevel.SKIP:
                table[modality.column, level] = _encoder_polynomial(model, modality, level, frames)
    layer: Any = model.fusion.layers[0]  # type: ignore[index]
    path: Any = next(iter(layer.cross.values()))
    block: Any = next(iter(layer.blocks.values()))
    head: Any = model.heads["answer"]
    encoders: Any = dict(model.encoders.items())
    tokens_each = {}
    if "image" in encoders:
        tokens_each[Modality.IMAGE] = math.prod(encoders["image"].grid)
    if "video" in encoders:
        tokens_each[Modality.VIDEO] = encoders["video"].grid ** 2
    return CostModel(
        encoders=table,
        dim=path.attention.dim,
        hidden=block.mlp.fc1.out_features,
        answers=head.classify[-1].out_features,
        gated=path.gate is not None,
        tokens_each=tokens_each,
        samples_per_token=round(encoders["audio"].seconds_per_token * SAMPLE_RATE) if "audio" in encoders else 1,
        router_flops=router_flops,
    )


def _encoder_polynomial(model: OmniModel, modality: Modality, level: ComputeLevel, frames: int) -> torch.Tensor:
    """[3], coefficients of 1, n and n^2."""
    encoder: Any = model.encoders[modality.value]
    call = encoder if level is ComputeLevel.FULL else encoder.forward_early_exit
    inputs: dict[int, torch.Tensor]
    if modality is Modality.IMAGE:
        inputs = {0: torch.zeros(1, 3, encoder.image_size, encoder.image_size, dtype=torch.uint8)}
    elif modality is Modality.VIDEO:
        inputs = {0: torch.zeros(1, frames, 3, encoder.frame_size, encoder.frame_size, dtype=torch.uint8)}
    elif modality is Modality.AUDIO:
        inputs = {n: torch.zeros(1, round(n * encoder.seconds_per_token * SAMPLE_RATE)) for n in (2, 6, 12)}
    else:
        inputs = {n: torch.zeros(1, n, dtype=torch.long) for n in (2, 6, 12)}
    masks = {n: torch.ones(x.shape[: 1 if modality is Modality.IMAGE else 2]).bool() for n, x in inputs.items()}
    if modality is Modality.IMAGE:
        masks = {0: torch.ones(1, 1).bool()}
    flops = [count_flops(partial(call, x, masks[n])) for n, x in inputs.items()]
    counted = torch.tensor(flops, dtype=torch.double)
    if len(counted) == 1:  # of one size always
        return torch.cat([counted, torch.zeros(2, dtype=torch.double)])
    return torch.linalg.solve(torch.tensor([[1.0, n, n**2] for n in inputs], dtype=torch.double), counted)


def head_flops(model: OmniModel, batch: OmniBatch, heads: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """FLOPs of one forward by part: "encoders and fusion", the "context" where any head reads it, and each head. heads:
    by name, and what each is told; those of the model that are not named do not run, and have no entry."""
    counted = {"encoders and fusion": count_flops(lambda: model(batch, heads=[]))}
    if any(cast(Any, model.heads[name]).needs_context for name in heads):
        fused = model(batch, heads=[]).fusion.tokens
        counted["context"] = count_flops(lambda: cast(Any, model.context_encoder)(fused))
    for name, told in heads.items():
        before = counted["encoders and fusion"] + counted.get("context", 0) * cast(Any, model.heads[name]).needs_context
        counted[name] = count_flops(partial(model, batch, heads={name: told})) - before
    return counted


def unused_flops(model: OmniModel, batch: OmniBatch, heads: Mapping[str, Mapping[str, Any]]) -> int:
    """FLOPs that are spent inside heads that are not asked for, while those are that `heads` names and tells."""
    counted = _counted(lambda: model(batch, heads=heads)).get_flop_counts()
    idle = [f"{type(model).__name__}.heads.{name}" for name in model.heads if name not in heads]
    return sum(sum(counts.values()) for part, counts in counted.items() if part.startswith(tuple(idle)))
