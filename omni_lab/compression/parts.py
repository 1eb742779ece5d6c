"""A routed model taken apart into graphs without control flow, and put together again from whatever carries them out.

The route decides on the host which parts are called, so that what is skipped costs nothing in any runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from omni_lab.attention import AttentionOutput
from omni_lab.fusion import CrossModalFusion
from omni_lab.heads import AnswerHead
from omni_lab.modalities import Modality, OmniBatch, Tokens
from omni_lab.model import OmniModel

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Part:
    """One graph: tensors in, a tuple of tensors out; the first axis of each is that of samples.

    name: such as "encoder.image", "encoder.image.light", "path.0.text_from_image", "block.0.text",
    "answer.summary.image" or "answer.classify". owner: the modality whose weights these are, of a path the one that
    listens; None for what all share. example: inputs that it takes. lengths: of each input, the name of its second
    axis if that may vary.
    """

    name: str
    module: nn.Module
    owner: Modality | None
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    lengths: tuple[str | None, ...]


class _Encode(nn.Module):
    def __init__(self, encoder: nn.Module, light: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.light = light

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        tokens = (cast(Any, self.encoder).light if self.light else self.encoder)(values, mask)
        return (tokens.values, tokens.mask) if tokens.times is None else (tokens.values, tokens.mask, tokens.times)


class _Cross(nn.Module):
    def __init__(self, cross: nn.Module) -> None:
        super().__init__()
        self.cross = cross

    def forward(self, query: Tensor, query_mask: Tensor, context: Tensor, context_mask: Tensor) -> tuple[Tensor, ...]:
        return (self.cross(Tokens(query, query_mask), Tokens(context, context_mask)).values,)


class _Block(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return (self.block(Tokens(values, mask)).values,)


class _Summary(nn.Module):
    def __init__(self, head: AnswerHead, modality: Modality) -> None:
        super().__init__()
        self.summary = head.summary[modality.value]
        self.gate = dict(head.gate.items()).get(modality.value)

    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        said = self.summary(pooled)
        return (said if self.gate is None else said * 2 * self.gate(said).sigmoid(),)


class _Classify(nn.Module):
    def __init__(self, head: AnswerHead) -> None:
        super().__init__()
        self.classify = head.classify

    def forward(self, summed: Tensor) -> tuple[Tensor, ...]:
        return (self.classify(summed),)


def parts_of(model: OmniModel, batch: OmniBatch) -> list[Part]:
    """Every part of a model without early fusion, in the order in which it first runs. batch: where examples come
    from; it must have raw inputs of every modality. Raises ValueError for another."""
    if model.early is not None:
        raise ValueError("a model that joins clips and sounds early cannot be taken apart: its encoders run together")
    lacking = [str(m) for m in model.space.modalities if m not in batch.inputs or batch.inputs[m].encoded]
    if lacking:
        raise ValueError(f"examples want raw inputs of every modality: the batch has none of {lacking}")
    parts, streams = [], {}
    with torch.no_grad():
        for modality in model.space.modalities:
            given, encoder = batch.inputs[modality], model.encoders[modality.value]
            example, axis = (given.values[:2], given.mask[:2]), f"{modality}_length"
            lengths = (None, None) if modality is Modality.IMAGE else (axis, axis)
            for light in (False, True)[: len(model.space.choices(modality)) - 1]:
                name = f"encoder.{modality}" + ".light" * light
                parts.append(Part(name, _Encode(encoder, light), modality, example, ("values", "mask"), lengths))
            tokens = encoder(*example)
            entries = torch.arange(2) % len(tokens.values)
            streams[modality] = Tokens(tokens.values[entries], tokens.mask[entries])
    for depth, layer in enumerate(cast(Any, model.fusion).layers):
        for path in layer.paths:
            ends = [t for m in path for t in (streams[m].values, streams[m].mask)]
            names = ("query", "query_mask", "context", "context_mask")
            lengths4 = ("query_length", "query_length", "context_length", "context_length")
            module = _Cross(layer.cross[str(path)])
            parts.append(Part(f"path.{depth}.{path}", module, path.query, tuple(ends), names, lengths4))
        for query, block in layer.blocks.items():
            own = streams[Modality(query)]
            parts.append(
                Part(
                    f"block.{depth}.{query}",
                    _Block(block),
                    Modality(query),
                    (own.values, own.mask),
                    ("values", "mask"),
                    ("length", "length"),
                )
            )
    head = cast(AnswerHead, model.heads["answer"])
    for modality, stream in streams.items():
        pooled = stream.values.mean(1)
        name = f"answer.summary.{modality}"
        parts.append(Part(name, _Summary(head, modality), modality, (pooled,), ("pooled",), (None,)))
    parts.append(Part("answer.classify", _Classify(head), None, (pooled,), ("summed",), (None,)))
    return parts


class _Elsewhere(nn.Module):
    def __init__(self, run: Run, name: str) -> None:
        super().__init__()
        self.run = run
        self.name = name


class _RunEncoder(_Elsewhere):
    def forward(self, values: Tensor, mask: Tensor) -> Tokens:
        return Tokens(*self.run(self.name, values, mask))

    def light(self, values: Tensor, mask: Tensor) -> Tokens:
        return Tokens(*self.run(f"{self.name}.light", values, mask))


class _RunCross(_Elsewhere):
    def forward(self, query: Tokens, context: Tokens, *, need_weights: bool = False) -> AttentionOutput:
        if need_weights:
            raise ValueError(f"{self.name}: a part that is carried out elsewhere keeps its attention weights")
        ends = (query.values, query.mask, *((c := context.expanded()).values, c.mask))
        return AttentionOutput(self.run(self.name, *ends)[0], None)


class _RunBlock(_Elsewhere):
    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.with_values(self.run(self.name, tokens.values, tokens.mask)[0])


class _RunVectors(_Elsewhere):
    def forward(self, vectors: Tensor) -> Tensor:
        return self.run(self.name, vectors)[0]


def assemble(model: OmniModel, run: Run) -> OmniModel:
    """The same model, with every part carried out by `run(name, *inputs)`; routes, gathering and what is stored
    between the parts stay as they are. Nothing of `model` is changed."""
    fusion = cast(CrossModalFusion, model.fusion)
    head = cast(AnswerHead, model.heads["answer"])
    bare = CrossModalFusion(paths=[], dim=1, depth=len(fusion.layers), heads=1)
    bare.paths = list(fusion.paths)
    for depth, (layer, known) in enumerate(zip(bare.layers, cast(Any, fusion).layers, strict=True)):
        layer.paths = list(known.paths)  # type: ignore[assignment]
        layer.cross = nn.ModuleDict({str(p): _RunCross(run, f"path.{depth}.{p}") for p in known.paths})
        layer.blocks = nn.ModuleDict({q: _RunBlock(run, f"block.{depth}.{q}") for q in known.blocks})
    answer = AnswerHead(modalities=[], dim=1, answers=1, pool=head.pool)
    answer.summary = nn.ModuleDict({m: _RunVectors(run, f"answer.summary.{m}") for m in head.summary})
    answer.classify = _RunVectors(run, "answer.classify")  # type: ignore[assignment]
    return OmniModel(
        encoders={m: _RunEncoder(run, f"encoder.{m}") for m in model.space.modalities},
        fusion=bare,
        heads={"answer": answer},
        space=model.space,
        latent_bits=model.latent_bits,
    ).eval()
