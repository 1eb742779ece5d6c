"""FLOPs that were really executed, and the cost model that predicts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from omni_lab.encoders import AudioEncoder
from omni_lab.encoders.audio import RATE
from omni_lab.modalities import M, Modality
from omni_lab.model import OmniModel
from omni_lab.routing import Level
from omni_lab.routing.cost import CostModel


def _attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs (2 x MACs) of the matrix products, convolutions and attention that a call executes.

    The counter of torch 2.11 does not know the attention kernel of the CPU, and would count it as nothing.
    """
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        function()
    return counter.get_total_flops()


def cost_model(model: OmniModel, *, controller: float = 0.0) -> CostModel:
    """Encoders are counted on blank inputs of three lengths: FLOPs are quadratic in the number of tokens."""
    table = torch.zeros(M, len(Level), 3, dtype=torch.double)
    for modality in model.space.modalities:
        for level in model.space.choices(modality):
            if level is not Level.SKIP:
                table[modality.column, level] = _encoder_polynomial(model, modality, level)
    if Level.FULL not in model.space.choices(Modality.TEXT):
        raise ValueError("text must be encoded in full")
    layer: Any = model.fusion.layers[0]  # type: ignore[index,union-attr]
    path: Any = next(iter(layer.cross.values()))
    block: Any = next(iter(layer.blocks.values()))
    classify: Any = model.heads["answer"].classify
    return CostModel(
        encoders=table,
        dim=path.attention.dim,
        hidden=block.mlp.fc1.out_features,
        answers=classify[-1].out_features,
        gated=path.gate is not None,
        controller=controller,
    )


def _encoder_polynomial(model: OmniModel, modality: Modality, level: Level) -> torch.Tensor:
    """[3], coefficients of 1, n and n^2."""
    encoder: Any = model.encoders[modality.value]
    call = encoder if level is Level.FULL else encoder.light
    if modality in (Modality.IMAGE, Modality.VIDEO):
        size = encoder.image_size if modality is Modality.IMAGE else encoder.frame_size
        frames = () if modality is Modality.IMAGE else (8,)
        values = torch.zeros(1, *frames, 3, size, size, dtype=torch.uint8)
        flops = count_flops(lambda: call(values, torch.ones(1, *(frames or (1,)), dtype=torch.bool)))
        return torch.tensor([float(flops), 0.0, 0.0], dtype=torch.double)
    lengths, flops_at = [2, 6, 12], []
    for n in lengths:
        if isinstance(encoder, AudioEncoder):
            given = torch.zeros(1, round(n * encoder.seconds_per_token * RATE))
        else:
            given = torch.zeros(1, n, dtype=torch.long)
        flops_at.append(count_flops(lambda given=given: call(given, torch.ones_like(given, dtype=torch.bool))))
    n = torch.tensor(lengths, dtype=torch.double)
    powers = torch.stack([torch.ones_like(n), n, n**2], dim=1)
    return torch.linalg.solve(powers, torch.tensor(flops_at, dtype=torch.double))
