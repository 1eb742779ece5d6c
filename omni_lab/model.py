"""OmniModel: encoders -> fusion -> heads, composed by injection."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from omni_lab.config import ModelConfig
from omni_lab.encoders import AudioEncoder, Int8Latents, TextEncoder, VideoEncoder, VisionEncoder, fake_quantize
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
    heads: by name, each called with the fused streams. latent_bits: what fusion sees of each token's values is what
    storing them in so many bits leaves; None for all of it.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[Modality, nn.Module],
        fusion: nn.Module,
        heads: Mapping[str, nn.Module],
        latent_bits: int | None = None,
    ):
        super().__init__()
        self.latent_bits = latent_bits
        self.encoders = nn.ModuleDict({m.value: encoders[m] for m in Modality if m in encoders})
        self.fusion = fusion
        self.heads = nn.ModuleDict(heads)

    def encode(self, batch: OmniBatch) -> dict[Modality, Tokens]:
        """Every distinct input goes through its encoder once; `rows` say which samples use it. Tokens stay as they
        are."""
        streams = encode_inputs(self.encoders, batch)
        if self.latent_bits is None:
            return streams
        return {
            m: tokens if batch.inputs[m].encoded else tokens.with_values(fake_quantize(tokens.values, self.latent_bits))
            for m, tokens in streams.items()
        }

    def encode_int8(self, batch: OmniBatch) -> dict[Modality, Int8Latents]:
        """What `encode` returns, stored as int8 values and scales: `fuse` takes their `tokens()`."""
        return {m: Int8Latents.of(tokens) for m, tokens in encode_inputs(self.encoders, batch).items()}

    def forward(
        self, batch: OmniBatch, *, heads: Collection[str] | None = None, need_weights: bool = False
    ) -> OmniOutput:
        """heads: which to run (default all). need_weights: take the explicit attention path and return the weights."""
        wanted = list(self.heads) if heads is None else list(heads)
        unknown = [name for name in wanted if name not in self.heads]
        if unknown:
            raise ValueError(f"no head named {unknown[0]!r}: this model has {list(self.heads)}")
        return self.fuse(self.encode(batch), heads=wanted, need_weights=need_weights)

    def lend(self, lender: Modality, borrower: Modality) -> None:
        """What fusion and heads do for the borrower becomes a copy of what they do for the lender: the paths along
        which it listens (to what both can listen to), its blocks and summaries. Of use where the two modalities'
        tokens are aligned, as those of a written and a spoken question."""
        for layer in cast(Any, self.fusion).layers:
            for path in layer.paths:
                twin = Path(lender, path.key)
                if path.query is borrower and twin in layer.paths:
                    layer.cross[str(path)].load_state_dict(layer.cross[str(twin)].state_dict())
        for part in self.modules():
            if isinstance(part, nn.ModuleDict) and part is not self.encoders and {lender, borrower} <= {*part.keys()}:
                part[borrower.value].load_state_dict(part[lender.value].state_dict())

    def fuse(
        self, encoded: Mapping[Modality, Tokens], *, heads: Collection[str], need_weights: bool = False
    ) -> OmniOutput:
        """Fusion and heads, from what the encoders returned."""
        fused = self.fusion(encoded, need_weights=need_weights)
        return OmniOutput({name: self.heads[name](fused.tokens) for name in heads}, encoded, fused)


def encode_inputs(encoders: nn.ModuleDict, batch: OmniBatch) -> dict[Modality, Tokens]:
    """Each modality of the batch through its encoder, but for tokens. Raises ValueError for one that has none."""
    streams = {}
    for modality, given in batch.inputs.items():
        if modality.value not in encoders:
            raise ValueError(f"no encoder for {modality}: this model has {list(encoders)}")
        encoded = Tokens if given.encoded else encoders[modality.value]
        streams[modality] = replace(encoded(given.values, given.mask), rows=given.rows)
    return streams


def build_encoders(config: ModelConfig, *, vocab_size: int) -> dict[Modality, nn.Module]:
    """One encoder per modality of the configuration; clips are encoded with the pictures' weights."""
    vision = VisionEncoder(config.vision, out_dim=config.dim)
    makers: dict[Modality, Callable[[], nn.Module]] = {
        Modality.TEXT: lambda: TextEncoder(config.text, vocab_size=vocab_size, out_dim=config.dim),
        Modality.IMAGE: lambda: vision,
        Modality.AUDIO: lambda: AudioEncoder(config.audio, out_dim=config.dim),
        Modality.VIDEO: lambda: VideoEncoder(config.video, vision=vision, out_dim=config.dim),
    }
    return {m: makers[m]() for m in config.modalities}


def build_model(config: ModelConfig, *, vocab_size: int, answers: int) -> OmniModel:
    """The model of a configuration: vocab_size token ids in, scores for so many answers out."""
    paths: Sequence[Path] = (
        all_paths(config.modalities) if config.fusion.paths is None else [Path(*p) for p in config.fusion.paths]
    )
    return OmniModel(
        encoders=build_encoders(config, vocab_size=vocab_size),
        latent_bits=config.latent_bits,
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
                modalities=config.modalities,
                dim=config.dim,
                answers=answers,
                dropout=config.fusion.dropout,
                pool=config.pool,
            )
        },
    )
