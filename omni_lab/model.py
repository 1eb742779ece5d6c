"""OmniModel: encoders -> fusion -> heads, passed in as modules."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omni_lab.batch import ComputeLevel, Modality, ModalityInput, OmniBatch, Tokens
from omni_lab.encoders.latents import fake_quantize_tokens
from omni_lab.encoders.levels import encoder_at
from omni_lab.fusion.cross_modal import FusionOutput
from omni_lab.fusion.early import EarlyFusion
from omni_lab.heads.context import ContextEncoder, FusedContext, HeadError
from omni_lab.routing.route import CrossModalPath, Route, RouteSpace
from omni_lab.routing.router import Router, pool_questions

log = logging.getLogger(__name__)
HeadRequests = Collection[str] | Mapping[str, Mapping[str, Any]]  # names, or name -> arguments of the head


class OmniOutput(NamedTuple):
    """What `OmniModel` returns.

    head_outputs: the output of each requested head.
    encoded: the tokens that the encoders returned.
    fusion: the fused streams, and the attention weights if requested.
    context: what the heads with `needs_context` attended to, if one was requested.
    """

    head_outputs: Mapping[str, Any]
    encoded: Mapping[Modality, Tokens]
    fusion: FusionOutput
    context: FusedContext | None = None


class OmniModel(nn.Module):
    """Encoders, fusion and heads.

    encoders: one per modality, called as encoder(values, mask) -> Tokens.
    fusion: called with the tokens per modality, returns FusionOutput.
    heads: by name; one with `needs_context` is called with the output of `context_encoder`, others with fused tokens.
    space: the routes that the model can take.
    latent_bits: fusion sees tokens quantized to so many bits; None for no quantization.
    early_fusion: joins video and audio between the lower and upper layers of their encoders.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[Modality, nn.Module],
        fusion: nn.Module,
        heads: Mapping[str, nn.Module],
        space: RouteSpace,
        latent_bits: int | None = None,
        early_fusion: EarlyFusion | None = None,
        context_encoder: ContextEncoder | None = None,
    ):
        super().__init__()
        self.context_encoder = context_encoder
        self.early_fusion = early_fusion
        self.latent_bits = latent_bits
        self.encoders = nn.ModuleDict({m.value: encoders[m] for m in Modality if m in encoders})
        self.fusion = fusion
        self.heads = nn.ModuleDict(heads)
        self.space = space

    def encode(
        self,
        batch: OmniBatch,
        route: Route | None = None,
        *,
        precomputed: Mapping[Modality, Tokens] | None = None,
        execution: str = "gathered",
    ) -> dict[Modality, Tokens]:
        """Runs each distinct input through its encoder once; inputs that are tokens already pass unchanged.

        route: encodes only what some sample requests, in full or up to the early exit (or both, for different samples).
            Samples that skip a modality lack it in the result.
        precomputed: full tokens from an earlier call for the same batch, with `entry_index`; not computed again.
        Raises ValueError for a route with early fusion.
        """
        if route is None:
            streams = self._encode_all(batch)
            return {m: t if batch.inputs[m].is_encoded else self.quantize(t) for m, t in streams.items()}
        if self.early_fusion is not None:
            raise ValueError("a model with early fusion of video and audio takes no route: its encoders run together")
        return self._encode_routed(batch, route, precomputed or {}, masked=execution == "masked")

    def quantize(self, tokens: Tokens) -> Tokens:
        """The tokens as latents of so many bits hold them."""
        if self.latent_bits is None:
            return tokens
        return tokens.with_values(fake_quantize_tokens(tokens.values, self.latent_bits))

    def select_route(
        self, router: Router, batch: OmniBatch, *, budget: float | None = None
    ) -> tuple[Route, dict[Modality, Tokens]]:
        """The router's most likely route, and the tokens of the questions, which were encoded for that.

        budget: mean fraction of the dense cost, for a penalty-conditioned router; ValueError where it cannot be met.
        """
        present = batch.present
        questions = self.encode_questions(batch)
        penalty = None
        if budget is not None:
            penalty = torch.full((len(batch),), router.penalty_for_budget(budget), device=present.device)
        means = pool_questions(questions, self.space.question_mask(present))
        return router.greedy(router(means, present, penalty), present), questions

    def encode_questions(self, batch: OmniBatch) -> dict[Modality, Tokens]:
        """Tokens of the modality that carries each sample's question, and of nothing else."""
        space, question_mask = self.space, self.space.question_mask(batch.present)
        no_paths = torch.zeros(len(batch), space.depth, len(space.paths), dtype=torch.bool, device=question_mask.device)
        levels = torch.where(question_mask, int(ComputeLevel.FULL), int(ComputeLevel.SKIP))
        return self.encode(batch, space.project(levels, no_paths, batch.present))

    def forward(
        self,
        batch: OmniBatch,
        *,
        heads: HeadRequests | None = None,
        route: Route | None = None,
        precomputed: Mapping[Modality, Tokens] | None = None,
        execution: str = "gathered",
        need_weights: bool = False,
    ) -> OmniOutput:
        """Encoders, fusion and the requested heads. In evaluation mode, samples with a non-finite output are logged.

        heads: names (default: all), or arguments by name: `{"text": {"prompt": ids}, "detection": {}}`.
        route: what runs for which sample (default: everything, without masks or gathering).
        precomputed, execution: see `encode` and `CrossModalFusion`.
        need_weights: take the explicit attention path and return the weights.
        Raises RouteError for a route that the batch or the model does not allow, HeadError for an invalid request.
        """
        requests = list(self.heads) if heads is None else heads
        unknown = [name for name in requests if name not in self.heads]
        if unknown:
            raise HeadError(f"no head named {unknown[0]!r}: this model has {list(self.heads)}")
        if route is not None:
            self.space.check(route, batch.present, batch.ids)
        encoded = self.encode(batch, route, precomputed=precomputed, execution=execution)
        output = self.fuse(encoded, heads=requests, route=route, execution=execution, need_weights=need_weights)
        if not self.training:
            _warn_non_finite(output.head_outputs, batch.ids)
        return output

    def copy_modality_weights(self, source: Modality, target: Modality) -> None:
        """Copies the weights that fusion and heads hold for `source` to those for `target`: the paths whose query it is
        (from key modalities that both have), its blocks and its projections. Useful where the tokens of the two are
        aligned, as those of written and spoken questions."""
        for layer in cast(Any, self.fusion).layers:
            for path in layer.paths:
                source_path = CrossModalPath(source, path.key)
                if path.query is target and source_path in layer.paths:
                    layer.cross[str(path)].load_state_dict(layer.cross[str(source_path)].state_dict())
        for part in self.modules():
            if isinstance(part, nn.ModuleDict) and part is not self.encoders and {source, target} <= {*part.keys()}:
                part[target.value].load_state_dict(part[source.value].state_dict())

    def prune_paths(self, paths: Collection[tuple[int, CrossModalPath]]) -> None:
        """Removes (layer, path) pairs and their weights; no route can open them again. ValueError for an absent one."""
        for depth, path in paths:
            layer = cast(Any, self.fusion).layers[depth]
            if path not in layer.paths:
                raise ValueError(f"layer {depth} has no path {path}: it has {[str(p) for p in layer.paths]}")
            layer.paths.remove(path)
            del layer.cross[str(path)]
        self.space = replace(self.space, pruned_paths=(*self.space.pruned_paths, *paths))

    def fuse(
        self,
        encoded: Mapping[Modality, Tokens],
        *,
        heads: HeadRequests,
        route: Route | None = None,
        path_gates: Float[Tensor, "b l m m"] | None = None,
        execution: str = "gathered",
        need_weights: bool = False,
    ) -> OmniOutput:
        """Fusion and heads, from encoded tokens.

        path_gates: see `CrossModalFusion`; the last layer's diagonal weighs each modality in what the heads get.
        """
        fused = self.fusion(encoded, route=route, path_gates=path_gates, execution=execution, need_weights=need_weights)
        weights = None if path_gates is None else {m: path_gates[:, -1, m.column, m.column] for m in fused.tokens}
        requests = heads if isinstance(heads, Mapping) else {name: {} for name in heads}
        reading = [name for name in requests if cast(Any, self.heads[name]).needs_context]
        context = None
        if reading:
            if self.context_encoder is None:
                raise HeadError(f"the heads {reading} need a model with a context encoder")
            context = self.context_encoder(fused.tokens, weights)
        outputs = {
            name: self.heads[name](context, **kwargs) if name in reading else self.heads[name](fused.tokens, weights)
            for name, kwargs in requests.items()
        }
        return OmniOutput(outputs, encoded, fused, context)

    def _encode_all(self, batch: OmniBatch) -> dict[Modality, Tokens]:
        pair = (Modality.VIDEO, Modality.AUDIO)
        if self.early_fusion is None or not {*pair} <= batch.inputs.keys():
            return encode_inputs(self.encoders, batch)
        joined = self.early_fusion(*(self.encoders[m.value] for m in pair), *(batch.inputs[m] for m in pair))
        alone = encode_inputs(self.encoders, batch.without(Modality.VIDEO).without(Modality.AUDIO))
        return {m: joined[m] if m in joined else alone[m] for m in batch.inputs}

    def _encode_routed(
        self, batch: OmniBatch, route: Route, precomputed: Mapping[Modality, Tokens], *, masked: bool
    ) -> dict[Modality, Tokens]:
        """Per modality: precomputed entries, then those that some sample requests, level by level from the full one.

        masked: encode every entry at every allowed level, requested or not.
        """
        route_levels = route.encoder_levels.cpu()  # once, not once per modality
        streams = {}
        for modality, inputs in batch.inputs.items():
            entries, levels = inputs.entry_index.cpu(), route_levels[:, modality.column]
            if not masked and not levels.any():
                continue
            parts, entry_index = [], torch.full((len(batch),), -1)
            if modality in precomputed:
                tokens = precomputed[modality]
                entry_index = torch.where(levels == ComputeLevel.FULL, cast(Tensor, tokens.entry_index).cpu(), -1)
                parts.append(replace(tokens, entry_index=None))
            for level in (ComputeLevel.FULL, ComputeLevel.EARLY_EXIT, ComputeLevel.TINY):
                requested = (levels == level) & (entries >= 0) & (entry_index < 0)
                every = masked and level in self.space.allowed_levels(modality)
                used = entries[(entries >= 0) if every else requested].unique()
                if len(used):
                    entry_index[requested] = sum(map(len, parts)) + torch.searchsorted(used, entries[requested])
                    parts.append(self.encode_entries(level, modality, inputs, used.to(inputs.entry_index.device)))
            if parts:
                streams[modality] = replace(stack_entries(parts), entry_index=entry_index.to(inputs.entry_index.device))
        return streams

    def encode_entries(
        self, level: ComputeLevel, modality: Modality, inputs: ModalityInput, entries: Int[Tensor, " e"]
    ) -> Tokens:
        """Some of the inputs of a modality at one level; precomputed tokens are looked up."""
        mask = inputs.mask[entries]
        if inputs.is_encoded:
            if level is not ComputeLevel.FULL and level not in inputs.lower_values:
                raise ValueError(f"{modality} tokens were precomputed without the level {level.name.lower()}")
            values = inputs.values if level is ComputeLevel.FULL else inputs.lower_values[level]
            return Tokens(values[entries], mask)
        encode = encoder_at(self.encoders[modality.value], level)
        return self.quantize(encode(inputs.values[entries], mask))

    def encode_levels(self, modality: Modality, inputs: ModalityInput) -> tuple[Tokens, Int[Tensor, " l"]]:
        """All inputs of a modality at every level, one after the other, and where each begins: see `at_levels`."""
        every = torch.arange(len(inputs.values), device=inputs.values.device)
        levels = [level for level in self.space.allowed_levels(modality) if level is not ComputeLevel.SKIP]
        first = torch.zeros(len(ComputeLevel), dtype=torch.long, device=every.device)
        first[[*map(int, levels)]] = torch.arange(len(levels), device=every.device) * len(every)
        return stack_entries([self.encode_entries(level, modality, inputs, every) for level in levels]), first


def _warn_non_finite(head_outputs: Mapping[str, Any], ids: Sequence[str]) -> None:
    for name, output in head_outputs.items():
        if isinstance(output, Tensor):
            broken = (~output.flatten(1).isfinite().all(dim=1)).nonzero().squeeze(1).tolist()
            if broken:
                log.warning(
                    "non-finite output of the %s head for %s", name, ", ".join(f"{i} ({ids[i]!r})" for i in broken)
                )


def stack_entries(parts: Sequence[Tokens]) -> Tokens:
    """Concatenates entries of the same shape; times only if every part has them."""
    times = [part.times for part in parts if part.times is not None]
    return Tokens(
        torch.cat([part.values for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat(times) if len(times) == len(parts) else None,
    )


def encode_inputs(encoders: nn.ModuleDict, batch: OmniBatch) -> dict[Modality, Tokens]:
    """Each modality through its encoder, unless it is tokens already. Raises ValueError for a missing encoder."""
    streams = {}
    for modality, inputs in batch.inputs.items():
        if modality.value not in encoders:
            raise ValueError(f"no encoder for {modality}: this model has {list(encoders)}")
        encoder = Tokens if inputs.is_encoded else encoders[modality.value]
        streams[modality] = replace(encoder(inputs.values, inputs.mask), entry_index=inputs.entry_index)
    return streams
