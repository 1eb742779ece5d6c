"""TODO"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from omni_lab.batch import Modality
from omni_lab.config.schema import ModelConfig, MultitaskConfig
from omni_lab.data.tokenizer import LETTERS, DecoderTokenizer
from omni_lab.encoders.audio import AudioEncoder, MelFrontEnd
from omni_lab.encoders.text import TextEncoder
from omni_lab.encoders.video import VideoEncoder
from omni_lab.encoders.vision import VisionEncoder
from omni_lab.fusion.cross_modal import CrossModalFusion
from omni_lab.fusion.early import EarlyFusion
from omni_lab.heads.answer import AnswerHead
from omni_lab.heads.context import ContextEncoder
from omni_lab.heads.detection import DetectionHead
from omni_lab.heads.restoration import RestorationHead
from omni_lab.heads.text import TextHead
from omni_lab.heads.tts import TTSHead
from omni_lab.model import OmniModel
from omni_lab.routing.route import ComputeLevel, CrossModalPath, RouteSpace, all_cross_modal_paths


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


def _levels(config: ModelConfig) -> dict[Modality, tuple[ComputeLevel, ...]]:
    """What may be chosen for each encoder; text, the shortest, has no early exit."""
    exits = {Modality.IMAGE: config.vision.early_exit, Modality.VIDEO: config.vision.early_exit}
    exits[Modality.AUDIO] = config.audio.early_exit
    return {m: tuple(ComputeLevel) for m, has_exit in exits.items() if has_exit and m in config.modalities}


def _early(encoders: Mapping[Modality, nn.Module]) -> EarlyFusion:
    video, audio = (cast(Any, encoders.get(m)) for m in (Modality.VIDEO, Modality.AUDIO))
    if video is None or audio is None or not isinstance(audio.front, MelFrontEnd):
        raise ValueError("early fusion joins clips and sounds: it wants both, and the mel front end")
    return EarlyFusion(video_dim=video.project.in_features, audio_dim=audio.front.dim)


def build_model(config: ModelConfig, *, vocab_size: int, answers: int) -> OmniModel:
    """The model of a configuration: vocab_size token ids in, scores for so many answers out."""
    every = (
        all_cross_modal_paths(config.modalities)
        if config.fusion.paths is None
        else [CrossModalPath(*p) for p in config.fusion.paths]
    )
    paths = tuple(path for path in every if {*path} <= {*config.modalities})
    encoders = build_encoders(config, vocab_size=vocab_size)
    return OmniModel(
        encoders=encoders,
        early=_early(encoders) if config.fusion.early else None,
        latent_bits=config.latent_bits,
        fusion=CrossModalFusion(
            paths=paths,
            dim=config.dim,
            depth=config.fusion.depth,
            num_heads=config.fusion.num_heads,
            mlp_ratio=config.fusion.mlp_ratio,
            dropout=config.fusion.dropout,
            gated=config.fusion.gated,
        ),
        space=RouteSpace(
            modalities=config.modalities, paths=paths, depth=config.fusion.depth, encoder_levels=_levels(config)
        ),
        heads={
            "answer": AnswerHead(
                modalities=config.modalities,
                dim=config.dim,
                answers=answers,
                dropout=config.fusion.dropout,
                pool=config.answer_pooling,
                gated=config.fusion.gated,
            )
        },
    )


def add_task_heads(
    model: OmniModel, config: MultitaskConfig, *, codec: DecoderTokenizer, classes: Sequence[str], voices: int
) -> OmniModel:
    """Gives a model, beside its answers, a memory, and the heads that read it: text (in the words of `codec`), boxes
    (of things of these classes), pixels, and speech (in so many voices)."""
    wide: dict[str, Any] = {"dim": config.dim, "mlp_ratio": config.mlp_ratio}
    dim = config.model.dim
    model.context_encoder = ContextEncoder(
        modalities=config.model.modalities, dim=dim, out_dim=config.dim, depth=config.context_depth
    )
    model.heads.update(
        {
            "text": TextHead(
                vocab_size=codec.vocab_size,
                eos_id=codec.eos_id,
                depth=config.text_depth,
                max_length=codec.max_length,
                **wide,
            ),
            "detection": DetectionHead(
                classes=classes, num_queries=config.num_queries, depth=config.detection_depth, **wide
            ),
            "restoration": RestorationHead(
                size=config.model.vision.image_size, widths=config.widths, depth=config.restoration_depth, **wide
            ),
            "tts": TTSHead(
                vocab_size=len(LETTERS),
                separator_ids=[LETTERS.index(mark) for mark in " ,"],
                voices=voices,
                depth=config.tts_depth,
                layers=config.tts_conv_layers,
                **wide,
            ),
        }
    )
    return model
