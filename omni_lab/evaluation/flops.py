"""FLOPs that a call executes, by counting, and the cost model of routes that is built from such counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality, OmniBatch, Tokens
from omni_lab.encoders.levels import encoder_at
from omni_lab.heads.answer import AnswerHead
from omni_lab.model import OmniModel
from omni_lab.routing.cost import CostModel

ENCODER_ATTRIBUTES = {"image": ("image_size", "grid"), "video": ("frame_size", "grid"), "audio": ("samples_per_token",)}


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs (2 x MACs) of the matrix products, convolutions and attention that a call executes."""
    return _count(function).get_total_flops()


def _count(function: Callable[[], Any]) -> FlopCounterMode:
    # torch 2.11's counter lacks the CPU kernel of attention and would count it as nothing
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    kernels = {attention: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        function()
    return counter


def build_cost_model(model: OmniModel, *, frames: int = 8, router_flops: float = 0.0) -> CostModel:
    """Counts the encoders on blank inputs: for text and audio of three lengths, as FLOPs are quadratic in the number of
    tokens; an answer head of another class than `AnswerHead` on sixteen tokens of one modality and of two.

    frames: of each video. Raises ValueError for an encoder that lacks what the count needs (see `omni_lab.registry`).
    """
    for modality, names in ENCODER_ATTRIBUTES.items():
        missing = [n for n in names if modality in model.encoders and not hasattr(model.encoders[modality], n)]
        if missing:
            kind = type(model.encoders[modality]).__name__
            raise ValueError(f"the {modality} encoder, a {kind}, cannot be routed: it lacks the attributes {missing}")
    table = torch.zeros(NUM_MODALITIES, len(ComputeLevel), 3, dtype=torch.double)
    for modality in model.space.modalities:
        for level in model.space.allowed_levels(modality):
            if level is not ComputeLevel.SKIP:
                table[modality.column, level] = encoder_polynomial(model, modality, level, frames)
    network: Any = model
    if "image" in model.encoders:
        _check_grid(network.encoders["image"], next(model.parameters()).device)
    layer, encoders = network.fusion.layers[0], dict(network.encoders.items())
    path, block = next(iter(layer.cross.values())), next(iter(layer.blocks.values()))
    head, tokens_per_item = network.heads["answer"], {}
    if "image" in encoders:
        tokens_per_item[Modality.IMAGE] = math.prod(encoders["image"].grid)
    if "video" in encoders:
        tokens_per_item[Modality.VIDEO] = encoders["video"].grid ** 2
    return CostModel(
        encoder_coefs=table,
        dim=path.attention.dim,
        mlp_dim=block.mlp.fc1.out_features,
        num_answers=network.heads["answer"].classify[-1].out_features if isinstance(head, AnswerHead) else 0,
        head=None if isinstance(head, AnswerHead) else _measure_head(head, model.space.modalities, path.attention.dim),
        gated=path.gate is not None,
        tokens_per_item=tokens_per_item,
        samples_per_token=encoders["audio"].samples_per_token if "audio" in encoders else 1,
        router_flops=router_flops,
    )


def _check_grid(encoder: Any, device: torch.device) -> None:
    """Raises ValueError for an encoder of images whose tokens are not as many as its `grid` says."""
    size = encoder.image_size
    with torch.no_grad():
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
        found = encoder(blank, torch.ones(1, 1, dtype=torch.bool, device=device)).values.shape[1]
    if found != math.prod(encoder.grid):
        kind = type(encoder).__name__
        raise ValueError(
            f"the image encoder, a {kind}, gives {found} tokens: its grid {encoder.grid} has another number"
        )


def _measure_head(head: nn.Module, modalities: Sequence[Modality], dim: int) -> tuple[float, float]:
    """FLOPs once, and per encoded modality."""
    tokens = Tokens(torch.zeros(1, 16, dim), torch.ones(1, 16, dtype=torch.bool))
    one, two = (count_flops(partial(head, dict.fromkeys(modalities[:n], tokens), None)) for n in (1, 2))
    return (2.0 * one - two, float(two - one)) if len(modalities) > 1 else (0.0, float(one))


def encoder_polynomial(
    model: OmniModel, modality: Modality, level: ComputeLevel, frames: int = 8
) -> Float[Tensor, " 3"]:
    """[3]: the FLOPs of an encoder, coefficients of 1, n and n^2, for n tokens."""
    encoder: Any = model.encoders[modality.value]
    call = encoder_at(encoder, level)
    if modality is Modality.IMAGE:
        inputs = {0: torch.zeros(1, 3, encoder.image_size, encoder.image_size, dtype=torch.uint8)}
    elif modality is Modality.VIDEO:
        inputs = {0: torch.zeros(1, frames, 3, encoder.frame_size, encoder.frame_size, dtype=torch.uint8)}
    elif modality is Modality.AUDIO:
        inputs = {n: torch.zeros(1, n * encoder.samples_per_token) for n in (2, 6, 12)}
    else:
        inputs = {n: torch.zeros(1, n, dtype=torch.long) for n in (2, 6, 12)}
    flops = []
    for x in inputs.values():
        mask = torch.ones(1, 1 if modality is Modality.IMAGE else x.shape[1]).bool()
        flops.append(count_flops(partial(call, x, mask)))
    powers = torch.tensor([[n**k for k in range(len(inputs))] for n in inputs], dtype=torch.double)
    coefs = torch.linalg.solve(powers, torch.tensor(flops, dtype=torch.double))
    return torch.nn.functional.pad(coefs, (0, 3 - len(inputs)))


def head_flops(model: OmniModel, batch: OmniBatch, heads: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """FLOPs of one forward by part: "encoders and fusion", the "context" if any head needs it, and each head.

    heads: requests by name, as in `OmniModel.forward`; other heads do not run and have no entry.
    """
    counts = {"encoders and fusion": count_flops(lambda: model(batch, heads=[]))}
    if any(cast(Any, model.heads[name]).needs_context for name in heads):
        fused = model(batch, heads=[]).fusion.tokens
        counts["context"] = count_flops(lambda: cast(Any, model.context_encoder)(fused))
    for name, request in heads.items():
        before = counts["encoders and fusion"] + counts.get("context", 0) * cast(Any, model.heads[name]).needs_context
        counts[name] = count_flops(partial(model, batch, heads={name: request})) - before
    return counts


def unused_flops(model: OmniModel, batch: OmniBatch, heads: Mapping[str, Mapping[str, Any]]) -> int:
    """FLOPs inside heads that are not requested, while those in `heads` run."""
    counts = _count(lambda: model(batch, heads=heads)).get_flop_counts()
    unused = tuple(f"{type(model).__name__}.heads.{name}" for name in model.heads if name not in heads)
    return sum(sum(by_operator.values()) for module, by_operator in counts.items() if module.startswith(unused))
