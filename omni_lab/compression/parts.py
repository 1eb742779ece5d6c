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

from omni_lab.batch import NUM_MODALITIES, Modality, OmniBatch, Tokens
from omni_lab.encoders.audio import AudioEncoder
from omni_lab.fusion.cross_modal import CrossModalFusion
from omni_lab.heads.answer import AnswerHead
from omni_lab.layers.attention import AttentionOutput, MaskedMultiHeadAttention
from omni_lab.model import OmniModel
from omni_lab.routing.route import RouteSpace
from omni_lab.routing.router import NUM_KNOTS, Router, router_mlp

PartRunner = Callable[..., tuple[Tensor, ...]]


def layers_of(module: nn.Module) -> dict[str, Any]:
    """What holds many weights, by name: linear layers, convolutions and embeddings."""
    many = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, many)}


@dataclass(frozen=True)
class ModelPart:
    """One graph: tensors in, a tuple of tensors out; the first axis of each is that of samples.

    name: such as "encoder.image", "encoder.image.early_exit", "path.0.text_from_image", "block.0.text",
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
        heads = tuple(
            (m.num_heads, m.head_dim) for m in self.module.modules() if isinstance(m, MaskedMultiHeadAttention)
        )
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
        tokens = (cast(Any, self.encoder).forward_early_exit if self.light else self.encoder)(values, mask)
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


class _RouterPart(nn.Module):
    def __init__(self, controller: Router, carrier: Modality) -> None:
        super().__init__()
        self.read = controller.question_proj[carrier.value]
        self.context = controller.presence_proj
        self.wish = controller.logit_head
        self.gain = controller.penalty_gain if controller.penalty_conditioned else None

    def forward(self, summary: Tensor, present: Tensor, near: Tensor | None = None) -> tuple[Tensor, ...]:
        gain = None if self.gain is None else self.gain(near)
        return (router_mlp(self.read, self.context, self.wish, summary, present, gain),)


@dataclass(frozen=True)
class AssemblySpec:
    """What of a routed model is not in its parts.

    pool: how the answer head pools. samples_per_token: of sound; waveforms are cut up so. costs: of a conditioned
    controller, see `Controller`.
    """

    space: RouteSpace
    pool: str
    latent_bits: int | None
    samples_per_token: int = 1
    penalty_conditioned: bool = False
    costs: tuple[float, ...] = ()

    @classmethod
    def from_model(cls, model: OmniModel, controller: Router | None = None) -> AssemblySpec:
        pool = cast(AnswerHead, model.heads["answer"]).pool
        conditioned = controller is not None and controller.penalty_conditioned
        costs = tuple(cast(Router, controller).costs.tolist()) if conditioned else ()
        return cls(model.space, pool, model.latent_bits, _samples_per_token(model), conditioned, costs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {**vars(self), "space": self.space.to_dict(), "costs": [*self.costs]}

    @classmethod
    def from_dict(cls, identity: Mapping[str, Any]) -> AssemblySpec:
        """The frame that has this `identity`."""
        space = RouteSpace.from_dict(identity["space"])
        return cls(**{**identity, "space": space, "costs": tuple(identity["costs"])})


def _samples_per_token(model: OmniModel) -> int:
    if Modality.AUDIO not in model.space.modalities:
        return 1
    encoder = cast(AudioEncoder, model.encoders[Modality.AUDIO.value])
    return round(encoder.seconds_per_token * encoder.sample_rate)


def _cut(wave: Tensor, each: int, *, least: int = 1) -> Tensor:
    """[U, S] -> [U, tokens, each], with silence at the end, and at least so many. While its graph is traced, a length
    that is a whole number of tokens saves a minute of arithmetic about padding."""
    lacking = max(least, -(-wave.shape[1] // each)) * each - wave.shape[1]
    return nn.functional.pad(wave, (0, lacking)).unflatten(1, (-1, each))


def split_router(controller: Router) -> list[ModelPart]:
    """One part per modality that may carry a question. Raises ValueError for a controller that chooses among plans."""
    if controller.num_choices:
        raise ValueError("a controller that chooses among plans is a control of the ablation: it has no parts")
    width = cast(nn.Linear, next(iter(controller.question_proj.values()))).in_features
    example = (torch.randn(2, width), torch.ones(2, NUM_MODALITIES), torch.rand(2, NUM_KNOTS))
    names = ("summary", "present", "near")
    given = 3 if controller.penalty_conditioned else 2
    return [
        ModelPart(f"router.{m}", _RouterPart(controller, m), None, example[:given], names[:given], (None,) * given)
        for m in controller.space.modalities
    ]


def split_model(model: OmniModel, batch: OmniBatch) -> list[ModelPart]:
    """Every part of a model without early fusion, in the order in which it first runs. batch: where examples come
    from; it must have raw inputs of every modality. Raises ValueError for another."""
    if model.early_fusion is not None:
        raise ValueError("a model that joins clips and sounds early cannot be taken apart: its encoders run together")
    lacking = [str(m) for m in model.space.modalities if m not in batch.inputs or batch.inputs[m].is_encoded]
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
            for light in (False, True)[: len(model.space.allowed_levels(modality)) - 1]:
                name = f"encoder.{modality}" + ".early_exit" * light
                parts.append(ModelPart(name, _Encode(encoder, light), modality, example, ("values", "mask"), lengths))
            streams[modality] = Tokens(tokens.values, tokens.mask)
    for depth, layer in enumerate(cast(Any, model.fusion).layers):
        for path in layer.paths:
            ends = [t for m in path for t in (streams[m].values, streams[m].mask)]
            names = ("query", "query_mask", "context", "context_mask")
            lengths4 = ("query_length", "query_length", "context_length", "context_length")
            module = _Cross(layer.cross[str(path)])
            parts.append(ModelPart(f"path.{depth}.{path}", module, path.query, tuple(ends), names, lengths4))
        for query, block in layer.blocks.items():
            own = streams[Modality(query)]
            parts.append(
                ModelPart(
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
        parts.append(ModelPart(name, _Summary(head, modality), modality, (pooled,), ("pooled",), (None,)))
    parts.append(ModelPart("answer.classify", _Classify(head), None, (pooled,), ("summed",), (None,)))
    return parts


class _RemoteModule(nn.Module):
    def __init__(self, run: PartRunner, name: str) -> None:
        super().__init__()
        self.run = run
        self.name = name


class _RemoteEncoder(_RemoteModule):
    def __init__(self, run: PartRunner, name: str, cut: int | None = None) -> None:
        super().__init__(run, name)
        self.cut = cut

    def forward(self, values: Tensor, mask: Tensor) -> Tokens:
        return self._run(self.name, values, mask)

    def forward_early_exit(self, values: Tensor, mask: Tensor) -> Tokens:
        return self._run(f"{self.name}.early_exit", values, mask)

    def _run(self, name: str, values: Tensor, mask: Tensor) -> Tokens:
        if self.cut is not None:
            values, mask = _cut(values, self.cut), _cut(mask, self.cut)
        return Tokens(*self.run(name, values, mask))


class _RemoteCrossAttention(_RemoteModule):
    def forward(self, query: Tokens, context: Tokens, *, need_weights: bool = False) -> AttentionOutput:
        if need_weights:
            raise ValueError(f"{self.name}: a part that is carried out elsewhere keeps its attention weights")
        ends = (query.values, query.mask, *((c := context.expand_entries()).values, c.mask))
        return AttentionOutput(self.run(self.name, *ends)[0], None)


class _RemoteBlock(_RemoteModule):
    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.with_values(self.run(self.name, tokens.values, tokens.mask)[0])


class _RemoteProjection(_RemoteModule):
    def forward(self, vectors: Tensor) -> Tensor:
        return self.run(self.name, vectors)[0]


class _RemoteRouter(Router):
    """Decisions are worked out elsewhere; what they come to stays as it is."""

    def __init__(self, run: PartRunner, frame: AssemblySpec) -> None:
        super().__init__(frame.space, width=1, hidden=1, conditioned=frame.penalty_conditioned)
        self.run = run
        if frame.penalty_conditioned:
            self.costs.copy_(torch.tensor(frame.costs))

    def modality_logits(
        self, modality: Modality, summary: Tensor, present: Tensor, near: Tensor | None = None
    ) -> Tensor:
        return self.run(f"router.{modality}", summary, present, *(() if near is None else (near,)))[0]


def assemble_model(frame: AssemblySpec, run: PartRunner) -> OmniModel:
    """The same model, with every part carried out by `run(name, *inputs)`; routes, gathering and what is stored
    between the parts stay as they are."""
    space, paths = frame.space, frame.space.paths
    sound = partial(_RemoteEncoder, cut=frame.samples_per_token)
    encoders = {m: sound if m is Modality.AUDIO else _RemoteEncoder for m in Modality}
    fusion = CrossModalFusion(paths=[], dim=1, depth=space.depth, num_heads=1)
    fusion.paths = list(paths)
    for depth, layer in enumerate(cast(Any, fusion.layers)):
        layer.paths = [p for p in paths if (depth, p) not in space.pruned_paths]
        layer.cross = nn.ModuleDict({str(p): _RemoteCrossAttention(run, f"path.{depth}.{p}") for p in layer.paths})
        layer.blocks = nn.ModuleDict({p.query: _RemoteBlock(run, f"block.{depth}.{p.query}") for p in paths})
    answer = AnswerHead(modalities=[], dim=1, answers=1, pool=frame.pool)
    answer.summary = nn.ModuleDict({m: _RemoteProjection(run, f"answer.summary.{m}") for m in space.modalities})
    answer.classify = _RemoteProjection(run, "answer.classify")  # type: ignore[assignment]
    return OmniModel(
        encoders={m: encoders[m](run, f"encoder.{m}") for m in space.modalities},
        fusion=fusion,
        heads={"answer": answer},
        space=space,
        latent_bits=frame.latent_bits,
    ).eval()


def assemble_router(frame: AssemblySpec, run: PartRunner) -> Router:
    """The same controller, likewise."""
    return _RemoteRouter(run, frame).eval()
