"""Splits a routed model into parts without control flow, and assembles it again around any runtime that runs the parts.

The route decides on the host which parts are called, so a skipped part costs nothing in any runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from omni_lab.batch import NUM_MODALITIES, ComputeLevel, Modality, OmniBatch, Tokens
from omni_lab.encoders.audio import AudioEncoder
from omni_lab.encoders.levels import encoder_at
from omni_lab.fusion.cross_modal import CrossModalFusion
from omni_lab.heads.answer import AnswerHead
from omni_lab.layers.attention import AttentionOutput, MaskedMultiHeadAttention
from omni_lab.model import OmniModel
from omni_lab.routing.route import RouteSpace
from omni_lab.routing.router import NUM_KNOTS, Router, router_mlp

PartRunner = Callable[..., tuple[Tensor, ...]]  # run(name, *inputs) -> outputs


def weight_layers(module: nn.Module) -> dict[str, Any]:
    """Linear layers, convolutions and embeddings by name: the layers that hold most weights."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


@dataclass(frozen=True)
class ModelPart:
    """One graph: tensors in, a tuple of tensors out; the first axis of each is the batch.

    name: such as "encoder.image", "encoder.image.early_exit", "path.0.text_from_image", "block.0.text",
        "answer.summary.image", "answer.classify" or "router.text".
    owner: the modality that the weights belong to (of a path, its query); None if all modalities share them.
    inputs: names of the inputs.
    variable_length: whether the second axis of the inputs varies too.
    """

    name: str
    module: nn.Module
    owner: Modality | None
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    variable_length: bool = False

    @property
    def graph_key(self) -> tuple[object, ...]:
        """Equal for parts whose graphs differ in their weights alone."""
        shapes = tuple((name, tuple(w.shape)) for name, w in self.module.named_parameters())
        attentions = [m for m in self.module.modules() if isinstance(m, MaskedMultiHeadAttention)]
        heads = tuple((attention.num_heads, attention.head_dim) for attention in attentions)
        name = self.name if isinstance(self.module, _EncoderPart) or not shapes else None
        return (type(self.module), name, self.inputs, shapes, heads)

    def layers(self) -> dict[str, str]:
        """Names of the weights of `weight_layers`, each with the name of its layer."""
        return {f"{name}.weight": name for name in weight_layers(self.module)}


class _EncoderPart(nn.Module):
    def __init__(self, encoder: nn.Module, level: ComputeLevel) -> None:
        super().__init__()
        self.encoder = encoder
        self.level = level

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        if values.ndim == 3:  # a waveform, cut into tokens
            values, mask = values.flatten(1), mask.flatten(1)
        tokens = encoder_at(self.encoder, self.level)(values, mask)
        return (tokens.values, tokens.mask) if tokens.times is None else (tokens.values, tokens.mask, tokens.times)


class _TokensPart(nn.Module):
    """A module that takes `Tokens`: one pair of values and mask (a block), or two (a path's query and context)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, values: Tensor, mask: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        tokens = (Tokens(values, mask), Tokens(*context)) if context else (Tokens(values, mask),)
        return (self.module(*tokens).values,)


class _VectorPart(nn.Module):
    """A module that takes one vector per sample, and the gate of its output, if there is one."""

    def __init__(self, module: nn.Module, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.module = module
        self.gate = gate

    def forward(self, vectors: Tensor) -> tuple[Tensor, ...]:
        output = self.module(vectors)
        return (output if self.gate is None else output * 2 * self.gate(output).sigmoid(),)


class _RouterPart(nn.Module):
    def __init__(self, router: Router, modality: Modality) -> None:
        super().__init__()
        self.question_proj = router.question_proj[modality.value]
        self.presence_proj = router.presence_proj
        self.logit_head = router.logit_head
        self.penalty_gain = router.penalty_gain if router.penalty_conditioned else None

    def forward(self, question: Tensor, present: Tensor, knot_weights: Tensor | None = None) -> tuple[Tensor, ...]:
        gain = None if self.penalty_gain is None else self.penalty_gain(knot_weights)
        return (router_mlp(self.question_proj, self.presence_proj, self.logit_head, question, present, gain),)


@dataclass(frozen=True)
class AssemblySpec:
    """What `assemble_model` and `assemble_router` need beside the parts.

    samples_per_token: of audio; waveforms are cut into tokens.
    costs: of a penalty-conditioned router, see `Router`.
    """

    space: RouteSpace
    pool: str
    latent_bits: int | None
    samples_per_token: int = 1
    penalty_conditioned: bool = False
    costs: tuple[float, ...] = ()

    @classmethod
    def from_model(cls, model: OmniModel, router: Router | None = None) -> AssemblySpec:
        pool = cast(AnswerHead, model.heads["answer"]).pooling
        samples = cast(AudioEncoder, model.encoders["audio"]).samples_per_token if "audio" in model.encoders else 1
        costs = tuple(router.costs.tolist()) if router is not None and router.penalty_conditioned else ()
        return cls(model.space, pool, model.latent_bits, samples, bool(costs), costs)


def cut_into_tokens(wave: Tensor, samples: int, *, min_tokens: int = 1) -> Tensor:
    """[U, S] -> [U, tokens, samples], padded with silence. A whole number of tokens saves a minute of arithmetic about
    padding while the graph is traced."""
    padding = max(min_tokens, -(-wave.shape[1] // samples)) * samples - wave.shape[1]
    return nn.functional.pad(wave, (0, padding)).unflatten(1, (-1, samples))


def split_router(router: Router) -> list[ModelPart]:
    """One part per modality that may hold a question. Raises ValueError for the baseline that chooses static routes."""
    if router.num_choices:
        raise ValueError("a router that chooses among static routes is a baseline of the ablation: it has no parts")
    dim = cast(nn.Linear, next(iter(router.question_proj.values()))).in_features
    count = 3 if router.penalty_conditioned else 2
    example = (torch.randn(2, dim), torch.ones(2, NUM_MODALITIES), torch.rand(2, NUM_KNOTS))[:count]
    inputs = ("question_embedding", "present", "knot_weights")[:count]
    modalities = router.space.modalities
    return [ModelPart(f"router.{m}", _RouterPart(router, m), None, example, inputs) for m in modalities]


def split_model(model: OmniModel, batch: OmniBatch) -> list[ModelPart]:
    """Every part of a model, in the order in which it first runs.

    batch: the examples come from it; it must hold raw inputs of every modality.
    Raises ValueError for another batch, and for a model with early fusion.
    """
    if model.early_fusion is not None:
        raise ValueError("a model with early fusion cannot be split: its video and audio encoders run together")
    missing = [str(m) for m in model.space.modalities if m not in batch.inputs or batch.inputs[m].is_encoded]
    if missing:
        raise ValueError(f"examples need raw inputs of every modality: the batch has none of {missing}")
    parts, streams, names = [], {}, ("values", "mask")
    for modality in model.space.modalities:
        source, encoder = batch.inputs[modality], model.encoders[modality.value]
        two = torch.arange(2) % len(source.values)
        example: tuple[Tensor, ...] = (source.values[two], source.mask[two])
        with torch.no_grad():
            tokens = encoder(*example)
        streams[modality] = (tokens.values, tokens.mask)
        if modality is Modality.AUDIO:
            samples = cast(AudioEncoder, encoder).samples_per_token
            example = tuple(cut_into_tokens(x, samples, min_tokens=2) for x in example)
        for level in reversed(model.space.allowed_levels(modality)[1:]):  # the full encoder first
            name = f"encoder.{modality}" + f".{level.name.lower()}" * (level is not ComputeLevel.FULL)
            varies = modality is not Modality.IMAGE
            parts.append(ModelPart(name, _EncoderPart(encoder, level), modality, example, names, varies))
    for depth, layer in enumerate(cast(Any, model.fusion).layers):
        for path in layer.paths:
            module, inputs = _TokensPart(layer.cross[str(path)]), ("query", "query_mask", "context", "context_mask")
            example = streams[path.query] + streams[path.key]
            parts.append(ModelPart(f"path.{depth}.{path}", module, path.query, example, inputs, True))
        for query, block in layer.blocks.items():
            name, owner = f"block.{depth}.{query}", Modality(query)
            parts.append(ModelPart(name, _TokensPart(block), owner, streams[owner], names, True))
    head = cast(AnswerHead, model.heads["answer"])
    for modality, (values, _) in streams.items():
        pooled, gate = (values.mean(1),), dict(head.gate.items()).get(modality.value)
        summary = _VectorPart(head.summary[modality.value], gate)
        parts.append(ModelPart(f"answer.summary.{modality}", summary, modality, pooled, ("pooled",)))
    parts.append(ModelPart("answer.classify", _VectorPart(head.classify), None, pooled, ("summed",)))
    return parts


class _RemoteModule(nn.Module):
    """Stands for a module whose part `run` carries out."""

    def __init__(self, run: PartRunner, name: str) -> None:
        super().__init__()
        self.run = run
        self.name = name


class _RemoteEncoder(_RemoteModule):
    def forward(self, values: Tensor, mask: Tensor) -> Tokens:
        return Tokens(*self.run(self.name, values, mask))

    def forward_early_exit(self, values: Tensor, mask: Tensor) -> Tokens:
        return Tokens(*self.run(f"{self.name}.early_exit", values, mask))

    def forward_tiny(self, values: Tensor, mask: Tensor) -> Tokens:
        return Tokens(*self.run(f"{self.name}.tiny", values, mask))


class _RemoteCrossAttention(_RemoteModule):
    def forward(self, query: Tokens, context: Tokens, *, need_weights: bool = False) -> AttentionOutput:
        if need_weights:
            raise ValueError(f"{self.name}: a part that another runtime runs does not return attention weights")
        context = context.expand_entries()
        return AttentionOutput(self.run(self.name, query.values, query.mask, context.values, context.mask)[0], None)


class _RemoteBlock(_RemoteModule):
    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.with_values(self.run(self.name, tokens.values, tokens.mask)[0])


class _RemoteProjection(_RemoteModule):
    def forward(self, vectors: Tensor) -> Tensor:
        return self.run(self.name, vectors)[0]


def assemble_model(spec: AssemblySpec, run: PartRunner) -> OmniModel:
    """The same model, its parts run by `run(name, *inputs)`. Routing, gathering and latents stay as they are."""

    def run_audio(name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        return run(name, *(cut_into_tokens(x, spec.samples_per_token) for x in inputs))

    space, paths, encoders = spec.space, spec.space.paths, {}
    for m in space.modalities:
        encoders[m] = _RemoteEncoder(run_audio if m is Modality.AUDIO else run, f"encoder.{m}")
    fusion = CrossModalFusion(paths=[], dim=1, depth=space.depth, num_heads=1)
    fusion.paths = list(paths)
    for depth, layer in enumerate(cast(Any, fusion.layers)):
        layer.paths = [p for p in paths if (depth, p) not in space.pruned_paths]
        layer.cross = nn.ModuleDict({str(p): _RemoteCrossAttention(run, f"path.{depth}.{p}") for p in layer.paths})
        layer.blocks = nn.ModuleDict({p.query: _RemoteBlock(run, f"block.{depth}.{p.query}") for p in paths})
    answer = AnswerHead(modalities=[], dim=1, num_answers=1, pooling=spec.pool)
    answer.summary = nn.ModuleDict({m: _RemoteProjection(run, f"answer.summary.{m}") for m in space.modalities})
    answer.classify = _RemoteProjection(run, "answer.classify")  # type: ignore[assignment]
    bits = spec.latent_bits
    return OmniModel(encoders=encoders, fusion=fusion, heads={"answer": answer}, space=space, latent_bits=bits).eval()


def assemble_router(spec: AssemblySpec, run: PartRunner) -> Router:
    """The same router, its logits computed by `run`."""

    def modality_logits(modality: Modality, *inputs: Tensor | None) -> Tensor:
        return run(f"router.{modality}", *(x for x in inputs if x is not None))[0]

    router = Router(spec.space, dim=1, hidden_dim=1, penalty_conditioned=spec.penalty_conditioned)
    router.modality_logits = modality_logits  # type: ignore[assignment, method-assign]
    if spec.penalty_conditioned:
        router.costs.copy_(torch.tensor(spec.costs))
    return router.eval()
