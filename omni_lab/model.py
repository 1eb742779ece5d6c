"""OmniModel: encoders -> fusion -> heads, composed by injection."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omni_lab.batch import Modality, ModalityInput, OmniBatch, Tokens
from omni_lab.encoders.latents import Int8Latents, fake_quantize_tokens
from omni_lab.fusion.cross_modal import FusionOutput
from omni_lab.fusion.early import EarlyFusion
from omni_lab.heads.context import ContextEncoder, FusedContext, HeadError
from omni_lab.routing.route import ComputeLevel, CrossModalPath, Route, RouteSpace
from omni_lab.routing.router import Router, pool_questions

log = logging.getLogger(__name__)
HeadRequests = Collection[str] | Mapping[str, Mapping[str, Any]]  # heads by name, and what each is told


class OmniOutput(NamedTuple):
    """heads: each requested head's result. encoded: what the encoders returned. fusion: the
    fused streams, and attention weights if they were asked for. memory: what heads read, if one did."""

    head_outputs: Mapping[str, Any]
    encoded: Mapping[Modality, Tokens]
    fusion: FusionOutput
    context: FusedContext | None = None


class OmniModel(nn.Module):
    """encoders: one per modality, called as encoder(values, mask) -> Tokens. fusion: streams -> FusionOutput.
    heads: by name; an answer head is called with the fused streams, all others with what `memory` makes of them.
    latent_bits: what fusion sees of each token's values is what
    storing them in so many bits leaves; None for all of it. space: the routes it can take. early: joins clips and
    sounds in the lower layers of their encoders.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[Modality, nn.Module],
        fusion: nn.Module,
        heads: Mapping[str, nn.Module],
        space: RouteSpace,
        latent_bits: int | None = None,
        early: EarlyFusion | None = None,
        memory: ContextEncoder | None = None,
    ):
        super().__init__()
        self.context_encoder = memory
        self.early_fusion = early
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
        """Every distinct input goes through its encoder once; `rows` say which samples use it. Tokens stay as they
        are.

        route: an encoder sees only the inputs of samples that want it, once in full and once up to its early exit
        where different samples want both; a skipped modality is absent from its sample. known: what an earlier call
        made, in full, of some inputs of the same batch; it is not made again.
        """
        if route is None:
            streams = self._everything(batch)
            return {m: tokens if batch.inputs[m].is_encoded else self._stored(tokens) for m, tokens in streams.items()}
        if self.early_fusion is not None:
            raise ValueError("a model that joins clips and sounds early takes no routes: its encoders run together")
        return self._routed(batch, route, precomputed or {}, masked=execution == "masked")

    def _stored(self, tokens: Tokens) -> Tokens:
        """What storing them in few bits leaves."""
        return (
            tokens
            if self.latent_bits is None
            else tokens.with_values(fake_quantize_tokens(tokens.values, self.latent_bits))
        )

    def select_route(
        self, router: Router, batch: OmniBatch, *, budget: float | None = None
    ) -> tuple[Route, dict[Modality, Tokens]]:
        """What a controller runs for a batch, the likeliest of every decision; and the tokens of the questions, which
        it had to hear for that. budget: the mean share of the dense cost, for a conditioned controller. Raises
        ValueError for a budget that it cannot meet."""
        present = batch.present
        question = self.encode_questions(batch)
        told = None
        if budget is not None:
            told = torch.full((len(batch),), router.penalty_for_budget(budget), device=present.device)
        means = pool_questions(question, self.space.question_mask(present))
        return router.greedy(router(means, present, told), present), question

    def encode_questions(self, batch: OmniBatch) -> dict[Modality, Tokens]:
        """The tokens of whatever carries a question, and of nothing else."""
        space, carriers = self.space, self.space.question_mask(batch.present)
        closed = torch.zeros(len(batch), space.depth, len(space.paths), dtype=torch.bool, device=carriers.device)
        levels = torch.where(carriers, int(ComputeLevel.FULL), int(ComputeLevel.SKIP))
        return self.encode(batch, space.project(levels, closed, batch.present))

    def encode_int8(self, batch: OmniBatch) -> dict[Modality, Int8Latents]:
        """What `encode` returns, stored as int8 values and scales: `fuse` takes their `tokens()`."""
        return {m: Int8Latents.from_tokens(tokens) for m, tokens in self._everything(batch).items()}

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
        """heads: which to run (default all), or a mapping to what each wants to be told: `{"text": {"prompt": ids},
        "detection": {}}`. A head that is not asked for costs nothing. route: what runs for which sample (default
        everything, without masks or gathering). known: see `encode`. execution: see `CrossModalFusion`. need_weights:
        take the explicit attention path and return the weights. Raises RouteError for a route that the batch or the
        model does not allow, HeadError for what a head cannot give. Samples for which a head of a model in evaluation
        mode says nothing finite are named in a warning.
        """
        wanted = list(self.heads) if heads is None else heads
        unknown = [name for name in wanted if name not in self.heads]
        if unknown:
            raise HeadError(f"no head named {unknown[0]!r}: this model has {list(self.heads)}")
        if route is not None:
            self.space.check(route, batch.present, batch.ids)
        encoded = self.encode(batch, route, precomputed=precomputed, execution=execution)
        output = self.fuse(encoded, heads=wanted, route=route, execution=execution, need_weights=need_weights)
        if not self.training:
            _report_broken(output.head_outputs, batch.ids)
        return output

    def copy_modality_weights(self, source: Modality, target: Modality) -> None:
        """What fusion and heads do for the borrower becomes a copy of what they do for the lender: the paths along
        which it listens (to what both can listen to), its blocks and summaries. Of use where the two modalities'
        tokens are aligned, as those of a written and a spoken question."""
        for layer in cast(Any, self.fusion).layers:
            for path in layer.paths:
                twin = CrossModalPath(source, path.key)
                if path.query is target and twin in layer.paths:
                    layer.cross[str(path)].load_state_dict(layer.cross[str(twin)].state_dict())
        for part in self.modules():
            if isinstance(part, nn.ModuleDict) and part is not self.encoders and {source, target} <= {*part.keys()}:
                part[target.value].load_state_dict(part[source.value].state_dict())

    def prune_paths(self, paths: Collection[tuple[int, CrossModalPath]]) -> None:
        """Takes paths out of their layers for good, weights and all; no route opens them any more. Raises ValueError
        for one that is not there."""
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
        """Fusion and heads, from what the encoders returned. openness: see `CrossModalFusion`; its diagonal, in the
        last layer, weighs what heads hear of each modality."""
        fused = self.fusion(encoded, route=route, path_gates=path_gates, execution=execution, need_weights=need_weights)
        weights = None if path_gates is None else {m: path_gates[:, -1, m.column, m.column] for m in fused.tokens}
        told = heads if isinstance(heads, Mapping) else {name: {} for name in heads}
        asked: dict[str, Any] = {name: self.heads[name] for name in told}
        memory = None
        if any(head.needs_context for head in asked.values()):
            if self.context_encoder is None:
                reading = [name for name, head in asked.items() if head.needs_context]
                raise HeadError(f"the heads {reading} want a model with a memory")
            memory = self.context_encoder(fused.tokens, weights)
        said = {
            name: head(memory, **told[name]) if head.needs_context else head(fused.tokens, weights)
            for name, head in asked.items()
        }
        return OmniOutput(said, encoded, fused, memory)

    def _everything(self, batch: OmniBatch) -> dict[Modality, Tokens]:
        both = (Modality.VIDEO, Modality.AUDIO)
        if self.early_fusion is None or not {*both} <= batch.inputs.keys():
            return encode_inputs(self.encoders, batch)
        video, audio = (cast(Any, self.encoders[m.value]) for m in both)
        joined = self.early_fusion(video, audio, *(batch.inputs[m] for m in both))
        alone = encode_inputs(self.encoders, batch.without(Modality.VIDEO).without(Modality.AUDIO))
        return {m: joined[m] if m in joined else alone[m] for m in batch.inputs}

    def _routed(
        self, batch: OmniBatch, route: Route, known: Mapping[Modality, Tokens], *, masked: bool
    ) -> dict[Modality, Tokens]:
        """Per modality, what is known already, the tokens of the other inputs that some sample wants in full, and of
        those wanted up to the exit.

        masked: whether anybody wants them or not.
        """
        levels = route.encoder_levels.cpu()  # once, not once per modality
        streams = {}
        for modality, given in batch.inputs.items():
            entries, wanted = given.entry_index.cpu(), levels[:, modality.column]
            if not masked and not wanted.any():
                continue
            parts, rows, count = [], torch.full((len(batch),), -1), 0
            if modality in known:
                heard = known[modality]
                rows = torch.where(wanted == ComputeLevel.FULL, cast(Tensor, heard.entry_index).cpu(), -1)
                parts, count = [replace(heard, entry_index=None)], len(heard.values)
            for level in (ComputeLevel.FULL, ComputeLevel.EARLY_EXIT):
                wants = (wanted == level) & (entries >= 0) & (rows < 0)
                used = entries[
                    (entries >= 0) if masked and level in self.space.allowed_levels(modality) else wants
                ].unique()
                if len(used):
                    parts.append(self._encoded_at(level, modality, given, used.to(given.entry_index.device)))
                    rows[wants] = count + torch.searchsorted(used, entries[wants])
                    count += len(used)
            if parts:
                streams[modality] = replace(_stacked(parts), entry_index=rows.to(given.entry_index.device))
        return streams

    def _encoded_at(
        self, level: ComputeLevel, modality: Modality, given: ModalityInput, entries: Int[Tensor, " e"]
    ) -> Tokens:
        mask = given.mask[entries]
        if given.is_encoded:
            values = given.values if level is ComputeLevel.FULL else given.early_exit_values
            if values is None:
                raise ValueError(f"{modality} was encoded beforehand in full only: its early exit cannot be taken")
            return Tokens(values[entries], mask)
        encoder: Any = self.encoders[modality.value]
        return self._stored(
            (encoder if level is ComputeLevel.FULL else encoder.forward_early_exit)(given.values[entries], mask)
        )


def _report_broken(heads: Mapping[str, Any], ids: Sequence[str]) -> None:
    for name, said in heads.items():
        if not isinstance(said, Tensor):
            continue
        finite = said.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            broken = [f"{i} ({ids[i]!r})" for i in (~finite).nonzero().squeeze(1).tolist()]
            log.warning("the %s head says nothing finite of %s", name, ", ".join(broken))


def _stacked(parts: Sequence[Tokens]) -> Tokens:
    """Entries of the same shape one after the other."""
    times = [part.times for part in parts if part.times is not None]
    return Tokens(
        torch.cat([part.values for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat(times) if len(times) == len(parts) else None,
    )


def encode_inputs(encoders: nn.ModuleDict, batch: OmniBatch) -> dict[Modality, Tokens]:
    """Each modality of the batch through its encoder, but for tokens. Raises ValueError for one that has none."""
    streams = {}
    for modality, given in batch.inputs.items():
        if modality.value not in encoders:
            raise ValueError(f"no encoder for {modality}: this model has {list(encoders)}")
        encoded = Tokens if given.is_encoded else encoders[modality.value]
        streams[modality] = replace(encoded(given.values, given.mask), entry_index=given.entry_index)
    return streams
