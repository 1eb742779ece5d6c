"""A routed model taken apart into graphs without control flow, and put together again from whatever carries them out.

The route decides on the host which parts are called, so that what is skipped costs nothing in any runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from omni_lab.attention import AttentionOutput, MultiHeadAttention
from omni_lab.encoders import AudioEncoder
from omni_lab.fusion import CrossModalFusion
from omni_lab.heads import AnswerHead
from omni_lab.modalities import M, Modality, OmniBatch, Tokens
from omni_lab.model import OmniModel
from omni_lab.routing import RouteSpace
from omni_lab.routing.controller import KNOTS, Controller, decision

Run = Callable[..., tuple[Tensor, ...]]


def layers_of(module: nn.Module) -> dict[str, Any]:
    """What holds many weights, by name: linear layers, convolutions and embeddings."""
    many = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, many)}


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

    @property
    def make(self) -> tuple[object, ...]:
        """Equal for parts that differ in nothing but their weights."""
        shapes = tuple((name, tuple(w.shape)) for name, w in self.module.named_parameters())
        heads = tuple((m.heads, m.head_dim) for m in self.module.modules() if isinstance(m, MultiHeadAttention))
        own = self.name if isinstance(self.module, _Encode) else None
        return (type(self.module), own, self.inputs, shapes, heads)

    def layers(self) -> dict[str, str]:
        """The weights of `layers_of` its module: from their name to the layer's."""
        return {f"{name}.weight": name for name in layers_of(self.module)}


class _Encode(nn.Module):
    def __init__(self, encoder: nn.Module, light: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.light = light

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        if values.ndim == 3:  # sound, cut into tokens
            values, mask = values.flatten(1), mask.flatten(1)
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


class _Decide(nn.Module):
    def __init__(self, controller: Controller, carrier: Modality) -> None:
        super().__init__()
        self.read = controller.read[carrier.value]
        self.context = controller.context
        self.wish = controller.wish
        self.gain = controller.gain if controller.conditioned else None

    def forward(self, summary: Tensor, present: Tensor, near: Tensor | None = None) -> tuple[Tensor, ...]:
        gain = None if self.gain is None else self.gain(near)
        return (decision(self.read, self.context, self.wish, summary, present, gain),)


@dataclass(frozen=True)
class Frame:
    """What of a routed model is not in its parts.

    pool: how the answer head pools. samples_per_token: of sound; waveforms are cut up so. costs: of a conditioned
    controller, see `Controller`.
    """

    space: RouteSpace
    pool: str
    latent_bits: int | None
    samples_per_token: int = 1
    conditioned: bool = False
    costs: tuple[float, ...] = ()

    @classmethod
    def of(cls, model: OmniModel, controller: Controller | None = None) -> Frame:
        pool = cast(AnswerHead, model.heads["answer"]).pool
        conditioned = controller is not None and controller.conditioned
        costs = tuple(cast(Controller, controller).costs.tolist()) if conditioned else ()
        return cls(model.space, pool, model.latent_bits, _samples_per_token(model), conditioned, costs)

    def identity(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {**vars(self), "space": self.space.identity(), "costs": [*self.costs]}

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any]) -> Frame:
        """The frame that has this `identity`."""
        space = RouteSpace.of_identity(identity["space"])
        return cls(**{**identity, "space": space, "costs": tuple(identity["costs"])})


def _samples_per_token(model: OmniModel) -> int:
    if Modality.AUDIO not in model.space.modalities:
        return 1
    encoder = cast(AudioEncoder, model.encoders[Modality.AUDIO.value])
    return round(encoder.seconds_per_token * encoder.input_rate)


def _cut(wave: Tensor, each: int, *, least: int = 1) -> Tensor:
    """[U, S] -> [U, tokens, each], with silence at the end, and at least so many. While its graph is traced, a length
    that is a whole number of tokens saves a minute of arithmetic about padding."""
    lacking = max(least, -(-wave.shape[1] // each)) * each - wave.shape[1]
    return nn.functional.pad(wave, (0, lacking)).unflatten(1, (-1, each))


def controller_parts(controller: Controller) -> list[Part]:
    """One part per modality that may carry a question. Raises ValueError for a controller that chooses among plans."""
    if controller.plans:
        raise ValueError("a controller that chooses among plans is a control of the ablation: it has no parts")
    width = cast(nn.Linear, next(iter(controller.read.values()))).in_features
    example = (torch.randn(2, width), torch.ones(2, M), torch.rand(2, KNOTS))
    names = ("summary", "present", "near")
    given = 3 if controller.conditioned else 2
    return [
        Part(f"controller.{m}", _Decide(controller, m), None, example[:given], names[:given], (None,) * given)
        for m in controller.space.modalities
    ]


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
            two = torch.arange(2) % len(given.values)
            axis, example = f"{modality}_length", (given.values[two], given.mask[two])
            lengths = (None, None) if modality is Modality.IMAGE else (axis, axis)
            tokens = encoder(*example)
            if modality is Modality.AUDIO:
                each = _samples_per_token(model)
                example = (_cut(example[0], each, least=2), _cut(example[1], each, least=2))
            for light in (False, True)[: len(model.space.choices(modality)) - 1]:
                name = f"encoder.{modality}" + ".light" * light
                parts.append(Part(name, _Encode(encoder, light), modality, example, ("values", "mask"), lengths))
            streams[modality] = Tokens(tokens.values, tokens.mask)
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
    def __init__(self, run: Run, name: str, cut: int | None = None) -> None:
        super().__init__(run, name)
        self.cut = cut

    def forward(self, values: Tensor, mask: Tensor) -> Tokens:
        return self._run(self.name, values, mask)

    def light(self, values: Tensor, mask: Tensor) -> Tokens:
        return self._run(f"{self.name}.light", values, mask)

    def _run(self, name: str, values: Tensor, mask: Tensor) -> Tokens:
        if self.cut is not None:
            values, mask = _cut(values, self.cut), _cut(mask, self.cut)
        return Tokens(*self.run(name, values, mask))


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


class _RunController(Controller):
    """Decisions are worked out elsewhere; what they come to stays as it is."""

    def __init__(self, run: Run, frame: Frame) -> None:
        super().__init__(frame.space, width=1, hidden=1, conditioned=frame.conditioned)
        self.run = run
        if frame.conditioned:
            self.costs.copy_(torch.tensor(frame.costs))

    def heard(self, modality: Modality, summary: Tensor, present: Tensor, near: Tensor | None = None) -> Tensor:
        return self.run(f"controller.{modality}", summary, present, *(() if near is None else (near,)))[0]


def assemble(frame: Frame, run: Run) -> OmniModel:
    """The same model, with every part carried out by `run(name, *inputs)`; routes, gathering and what is stored
    between the parts stay as they are."""
    space, paths = frame.space, frame.space.paths
    sound = partial(_RunEncoder, cut=frame.samples_per_token)
    encoders = {m: sound if m is Modality.AUDIO else _RunEncoder for m in Modality}
    fusion = CrossModalFusion(paths=[], dim=1, depth=space.depth, heads=1)
    fusion.paths = list(paths)
    for depth, layer in enumerate(cast(Any, fusion.layers)):
        layer.paths = [p for p in paths if (depth, p) not in space.taken_out]
        layer.cross = nn.ModuleDict({str(p): _RunCross(run, f"path.{depth}.{p}") for p in layer.paths})
        layer.blocks = nn.ModuleDict({p.query: _RunBlock(run, f"block.{depth}.{p.query}") for p in paths})
    answer = AnswerHead(modalities=[], dim=1, answers=1, pool=frame.pool)
    answer.summary = nn.ModuleDict({m: _RunVectors(run, f"answer.summary.{m}") for m in space.modalities})
    answer.classify = _RunVectors(run, "answer.classify")  # type: ignore[assignment]
    return OmniModel(
        encoders={m: encoders[m](run, f"encoder.{m}") for m in space.modalities},
        fusion=fusion,
        heads={"answer": answer},
        space=space,
        latent_bits=frame.latent_bits,
    ).eval()


def assemble_controller(frame: Frame, run: Run) -> Controller:
    """The same controller, likewise."""
    return _RunController(run, frame).eval()
