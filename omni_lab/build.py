"""From a configuration to modules: encoders, the whole model, and the heads of the multitask model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from omni_lab.batch import Modality
from omni_lab.config.models import Component, ModelConfig
from omni_lab.config.schema import MultitaskConfig
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
from omni_lab.layers.layer_drop import make_droppable
from omni_lab.model import OmniModel
from omni_lab.registry import ANSWER_HEADS, ENCODERS
from omni_lab.routing.route import ComputeLevel, CrossModalPath, RouteSpace, all_cross_modal_paths


def build_encoders(config: ModelConfig, *, vocab_size: int) -> dict[Modality, nn.Module]:
    """One encoder per modality of the configuration; the video encoder shares the weights of the image encoder, unless
    one of the two is registered."""
    vision = VisionEncoder(config.vision, out_dim=config.dim)
    builders: dict[Modality, Callable[[], nn.Module]] = {
        Modality.TEXT: lambda: TextEncoder(config.text, vocab_size=vocab_size, out_dim=config.dim),
        Modality.IMAGE: lambda: vision,
        Modality.AUDIO: lambda: AudioEncoder(config.audio, out_dim=config.dim),
        Modality.VIDEO: lambda: VideoEncoder(config.video, vision=vision, out_dim=config.dim),
    }

    def registered(modality: Modality, component: Component) -> nn.Module:
        words = {"vocab_size": vocab_size} if modality is Modality.TEXT else {}
        return ENCODERS.build(component, out_dim=config.dim, **words)

    own = config.encoders
    return {m: registered(m, own[m]) if m in own else builders[m]() for m in config.modalities}


def component_versions(config: ModelConfig) -> dict[str, str]:
    """What stands for the code of registered parts in the identity of a checkpoint."""
    versions = {str(m): ENCODERS.version(component) for m, component in config.encoders.items()}
    return versions | ({"answer": ANSWER_HEADS.version(config.answer_head)} if config.answer_head else {})


def _build_early_fusion(encoders: Mapping[Modality, nn.Module]) -> EarlyFusion:
    video, audio = (cast(Any, encoders.get(m)) for m in (Modality.VIDEO, Modality.AUDIO))
    if video is None or audio is None or not isinstance(audio.front, MelFrontEnd):
        raise ValueError(f"early fusion needs video, and audio with the mel front end: got modalities {[*encoders]}")
    return EarlyFusion(video_dim=video.project.in_features, audio_dim=audio.front.dim)


def _residual_layers(encoders: Mapping[Modality, nn.Module]) -> list[nn.Sequential]:
    """Those of images and audio, in order."""
    image, audio = (cast(Any, encoders.get(m)) for m in (Modality.IMAGE, Modality.AUDIO))
    if image is None or not image.is_swin or audio is None or not isinstance(audio.front, MelFrontEnd):
        raise ValueError("layer_drop needs a Swin transformer for images, and audio with the mel front end")
    return [*(stage.blocks for stage in image.swin.layers), audio.front.blocks]


def _levels(config: ModelConfig, modality: Modality) -> tuple[ComputeLevel, ...]:
    """What a route may choose of the encoder of a modality; the early exit of video is that of its image encoder."""
    if modality in config.encoders or modality is Modality.TEXT:  # text is the shortest
        return ComputeLevel.SKIP, ComputeLevel.FULL
    encoder: Any = config.audio if modality is Modality.AUDIO else config.vision
    tiny = bool((config.video if modality is Modality.VIDEO else encoder).tiny_channels)
    has = {ComputeLevel.TINY: tiny, ComputeLevel.EARLY_EXIT: encoder.early_exit}
    return tuple(level for level in ComputeLevel if has.get(level, True))


def build_model(config: ModelConfig, *, vocab_size: int, answers: int) -> OmniModel:
    """The model of a configuration, with the answer head alone. answers: number of classes of that head."""
    modalities, dim, paths = config.modalities, config.dim, config.fusion.paths
    every = all_cross_modal_paths(modalities) if paths is None else [CrossModalPath(*path) for path in paths]
    possible = tuple(path for path in every if {*path} <= {*modalities})
    levels = {m: _levels(config, m) for m in modalities}
    # the order of construction decides the weights of a seed
    encoders = build_encoders(config, vocab_size=vocab_size)
    if config.layer_drop:
        for blocks in _residual_layers(encoders):
            make_droppable(blocks, drop=config.layer_drop)
    early_fusion = _build_early_fusion(encoders) if config.fusion.early else None
    fusion = CrossModalFusion(
        paths=possible,
        dim=dim,
        depth=config.fusion.depth,
        num_heads=config.fusion.num_heads,
        mlp_ratio=config.fusion.mlp_ratio,
        dropout=config.fusion.dropout,
        gated=config.fusion.gated,
    )
    sizes: dict[str, Any] = {"modalities": modalities, "dim": dim, "num_answers": answers}
    if config.answer_head is not None:
        answer = ANSWER_HEADS.build(config.answer_head, **sizes)
    else:
        look: dict[str, Any] = {
            "dropout": config.fusion.dropout,
            "pooling": config.answer_pooling,
            "gated": config.fusion.gated,
        }
        answer = AnswerHead(**sizes, **look)
    return OmniModel(
        encoders=encoders,
        early_fusion=early_fusion,
        latent_bits=config.latent_bits,
        fusion=fusion,
        space=RouteSpace(modalities=modalities, paths=possible, depth=config.fusion.depth, encoder_levels=levels),
        heads={"answer": answer},
    )


def add_task_heads(
    model: OmniModel, config: MultitaskConfig, *, tokenizer: DecoderTokenizer, classes: Sequence[str], voices: int
) -> OmniModel:
    """Adds a context encoder and the heads that read it: text, detection, restoration and speech.

    tokenizer: of the text that the model reads and writes.
    classes: that the detection head tells apart.
    voices: number of voices of the speech head.
    """
    shared: dict[str, Any] = {"dim": config.dim, "mlp_ratio": config.mlp_ratio}
    model.context_encoder = ContextEncoder(
        modalities=config.model.modalities, dim=config.model.dim, out_dim=config.dim, depth=config.context_depth
    )
    model.heads["text"] = TextHead(
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        depth=config.text_depth,
        max_length=tokenizer.max_length,
        **shared,
    )
    model.heads["detection"] = DetectionHead(
        classes=classes, num_queries=config.num_queries, depth=config.detection_depth, **shared
    )
    model.heads["restoration"] = RestorationHead(
        size=config.model.vision.image_size, widths=config.widths, depth=config.restoration_depth, **shared
    )
    model.heads["tts"] = TTSHead(
        vocab_size=len(LETTERS),
        separator_ids=[LETTERS.index(mark) for mark in " ,"],
        num_voices=voices,
        depth=config.tts_depth,
        num_conv_layers=config.tts_conv_layers,
        **shared,
    )
    return model
