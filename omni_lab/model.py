"""OmniModel: encoders -> fusion -> heads, composed by injection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from omni_lab.config import ModelConfig
from omni_lab.encoders import TextEncoder, VisionEncoder
from omni_lab.fusion import CrossModalFusion, FusionOutput, Path, all_paths
from omni_lab.heads import AnswerHead
from omni_lab.modalities import Modality, OmniBatch, Tokens


class OmniOutput(NamedTuple):
    """heads: each requested head's result. encoded: what the encoders returned. fusion: the
    fused streams, and attention weights if they were asked for."""

    heads: Mapping[str, Tensor]
    encoded: Mapping[Modality, Tokens]
    fusion: FusionOutput


class OmniModel(nn.Module):
    """encoders: one per modality, called as encoder(values, mask) -> Tokens. fusion: streams -> FusionOutput.
    heads: by name, each called with the fused streams.
    """

    def __init__(self, *, encoders: Mapping[Modality, nn.Module], fusion: nn.Module, heads: Mapping[str, nn.Module]):
        super().__init__()
        self.encoders = nn.ModuleDict({m.value: encoders[m] for m in Modality if m in encoders})
        self.fusion = fusion
        self.heads = nn.ModuleDict(heads)

    def encode(self, batch: OmniBatch) -> dict[Modality, Tokens]:
        """Every distinct input goes through its encoder once; `rows` say which samples use it."""
        streams = {}
        for modality, given in batch.inputs.items():
            if modality.value not in self.encoders:
                raise ValueError(f"no encoder for {modality}: this model has {list(self.encoders)}")
            streams[modality] = replace(self.encoders[modality.value](given.values, given.mask), rows=given.rows)
        return streams

    def forward(
        self, batch: OmniBatch, *, heads: Collection[str] | None = None, need_weights: bool = False
    ) -> OmniOutput:
        """heads: which to run (default all). need_weights: take the explicit attention path and return the weights."""
        wanted = list(self.heads) if heads is None else list(heads)
        unknown = [name for name in wanted if name not in self.heads]
        if unknown:
            raise ValueError(f"no head named {unknown[0]!r}: this model has {list(self.heads)}")
        encoded = self.encode(batch)
        fused = self.fusion(encoded, need_weights=need_weights)
        return OmniOutput({name: self.heads[name](fused.tokens) for name in wanted}, encoded, fused)


def build_model(config: ModelConfig, *, vocab_size: int, answers: int) -> OmniModel:
    """The model of a configuration: vocab_size token ids in, scores for so many answers out."""
    makers = {
        Modality.TEXT: lambda: TextEncoder(config.text, vocab_size=vocab_size, out_dim=config.dim),
        Modality.IMAGE: lambda: VisionEncoder(config.vision, out_dim=config.dim),
    }
    missing = [str(m) for m in config.modalities if m not in makers]
    if missing:
        raise ValueError(f"no encoder is implemented for {missing}: choose among {[str(m) for m in makers]}")
    paths: Sequence[Path] = (
        all_paths(config.modalities) if config.fusion.paths is None else [Path(*p) for p in config.fusion.paths]
    )
    return OmniModel(
        encoders={m: makers[m]() for m in config.modalities},
        fusion=CrossModalFusion(
            paths=[p for p in paths if {*p} <= {*config.modalities}],
            dim=config.dim,
            depth=config.fusion.depth,
            heads=config.fusion.heads,
            mlp_ratio=config.fusion.mlp_ratio,
            dropout=config.fusion.dropout,
        ),
        heads={
            "answer": AnswerHead(
                modalities=config.modalities, dim=config.dim, answers=answers, dropout=config.fusion.dropout
            )
        },
    )
