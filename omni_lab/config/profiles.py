"""TODO"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omni_lab.batch import Modality
from omni_lab.config.schema import (
    ISOLATED_DATA,
    AudioConfig,
    DataConfig,
    EmojiWorldConfig,
    FusionConfig,
    ModelConfig,
    MultitaskConfig,
    Profile,
    TalkingFaceConfig,
    TextConfig,
    TrainingConfig,
    VideoConfig,
    VisionConfig,
)
from omni_lab.utils.lookup import closest_match

# A Swin small enough for two CPU cores: 64 px -> 16 x 16 patches -> 8 x 8 cells. The "jax" initialisation (Xavier)
# and no stochastic depth matter at this width: with timm's defaults, shapes take several times as long to be learned.
SMALL_SWIN_KWARGS: dict[str, Any] = {
    "embed_dim": 32,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 8,
    "weight_init": "jax",
    "drop_path_rate": 0.0,
}


def get_profile(name: str) -> Profile:
    """The profile of that name. Raises ValueError naming the nearest known one."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; the nearest of {[*PROFILES]} is {closest_match(name, PROFILES)!r}")
    return PROFILES[name]


ALL_MODALITIES = tuple(Modality)
# Swin windows of 4 x 4 fit the 64 px pictures and the 32 px frames alike, so both share their weights.
SHARED_SWIN_KWARGS = SMALL_SWIN_KWARGS | {"window_size": 4, "strict_img_size": False}
_LISTENING = {
    Modality.TEXT: (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO),
    Modality.AUDIO: (Modality.IMAGE, Modality.VIDEO),
}
# The question listens to all else; the sound, which may be the question, to pictures and clips.
QUESTION_PATHS = tuple((query, key) for query, keys in _LISTENING.items() for key in keys)
MODALITY_COSTS = {Modality.TEXT: 0.02, Modality.IMAGE: 0.25, Modality.AUDIO: 0.25, Modality.VIDEO: 0.48}
VISUAL_MODALITIES = (Modality.IMAGE, Modality.VIDEO)
# The encoders are aligned already: only that of text learns on. Questions about a scene speak of left and right.
SCENE_TRAINING = TrainingConfig(
    learning_rate=5e-4,
    warmup_fraction=0.02,
    horizontal_flip=False,
    encoder_lr_scale=0.2,
    frozen_encoders=(*VISUAL_MODALITIES, Modality.AUDIO),
)
DISTRACTOR_TRAINING = replace(SCENE_TRAINING, learning_rate=3e-4, modality_dropout=0.1, distractor_dropout=0.5)
TALKING_FACE_MODEL = ModelConfig(
    modalities=(Modality.AUDIO, Modality.VIDEO),
    dim=96,
    vision=VisionConfig(overrides=SHARED_SWIN_KWARGS | {"embed_dim": 16, "depths": (1, 1)}),
    audio=AudioConfig(dim=64),
    video=VideoConfig(dim=64, depth=2, grid=1),
    fusion=FusionConfig(mlp_ratio=1.0, gated=True),
)
MULTITASK_PATHS = ((Modality.TEXT, Modality.IMAGE), (Modality.IMAGE, Modality.TEXT), (Modality.IMAGE, Modality.AUDIO))
# What is heard is written down from 25 tokens a second; at the eight of other models, letters would be lost.
MULTITASK_MODEL = ModelConfig(
    modalities=(Modality.TEXT, Modality.IMAGE, Modality.AUDIO),
    dim=128,
    vision=VisionConfig(overrides=SHARED_SWIN_KWARGS),
    audio=AudioConfig(num_local_convs=3, seconds_per_token=0.04),
    fusion=FusionConfig(paths=MULTITASK_PATHS, mlp_ratio=1.0),
)
TASK_BATCH_SIZES = {
    "describe": 32,
    "find": 32,
    "answer": 32,
    "restore": 24,
    "translate": 32,
    "transcribe": 30,
    "speak": 24,
}
_DRAWN = {"describe": 60_000, "find": 20_000, "answer": 20_000, "restore": 60_000, "translate": 60_000}
PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            model=ModelConfig(
                dim=256,
                vision=VisionConfig(
                    overrides=SMALL_SWIN_KWARGS | {"patch_size": 8, "embed_dim": 16, "depths": (1, 1), "window_size": 4}
                ),
                text=TextConfig(dim=32, depth=1, num_heads=2),
                fusion=FusionConfig(depth=1, num_heads=4, mlp_ratio=1.0),
            ),
            data=DataConfig(max_batch_cost=8, questions_per_scene=2, max_scenes=32),
            training=TrainingConfig(epochs=2, checkpoint_every=2),
            emoji_world=EmojiWorldConfig(
                things=8,
                scenes={"train": 24, "validation": 8, "test": 8},
                model=ModelConfig(
                    modalities=ALL_MODALITIES,
                    vision=VisionConfig(overrides=SHARED_SWIN_KWARGS | {"embed_dim": 16, "depths": (1, 1)}),
                    text=TextConfig(dim=32, depth=1, num_heads=2),
                    audio=AudioConfig(dim=32, depth=1, num_heads=2),
                    video=VideoConfig(dim=32, num_heads=2),
                    fusion=FusionConfig(paths=QUESTION_PATHS, mlp_ratio=1.0),
                    latent_bits=8,
                ),
                data=DataConfig(max_batch_cost=8, modality_costs=MODALITY_COSTS, questions_per_scene=2),
                contrastive=TrainingConfig(epochs=1, learning_rate=2e-3, horizontal_flip=False),
                no_audio=replace(SCENE_TRAINING, epochs=1, frozen_encoders=VISUAL_MODALITIES),
                isolated=replace(SCENE_TRAINING, epochs=1),
                av_matching=replace(SCENE_TRAINING, epochs=1),
                with_distractors=replace(DISTRACTOR_TRAINING, epochs=1),
                views=32,
                views_per_batch=16,
            ),
            talking_face=TalkingFaceConfig(
                clips={"train": 24, "validation": 8, "test": 8},
                model=replace(
                    TALKING_FACE_MODEL,
                    dim=32,
                    audio=AudioConfig(dim=16, depth=1, num_heads=2),
                    video=replace(TALKING_FACE_MODEL.video, dim=16, num_heads=2),
                ),
                training=TrainingConfig(epochs=1, horizontal_flip=False),
            ),
            multitask=MultitaskConfig(
                things=8,
                model=replace(
                    MULTITASK_MODEL,
                    dim=32,
                    vision=VisionConfig(overrides=SHARED_SWIN_KWARGS | {"embed_dim": 16, "depths": (1, 1)}),
                    text=TextConfig(dim=32, depth=1, num_heads=2),
                    audio=AudioConfig(dim=32, depth=1, num_heads=2, num_local_convs=1, seconds_per_token=0.04),
                ),
                training=TrainingConfig(epochs=1, horizontal_flip=False),
                examples=dict.fromkeys(("train", "validation", "test"), dict.fromkeys(TASK_BATCH_SIZES, 8)),
                batches=14,
                batch_sizes=dict.fromkeys(TASK_BATCH_SIZES, 4),
                dim=32,
                widths=(16,),
                tts_conv_layers=2,
                sentences=50,
            ),
            timing_rounds=2,
            bootstrap_resamples=50,
        ),
        Profile(
            name="quick",
            model=ModelConfig(
                vision=VisionConfig(overrides=SMALL_SWIN_KWARGS),
                fusion=FusionConfig(paths=((Modality.TEXT, Modality.IMAGE),)),
            ),
            data=DataConfig(max_batch_cost=32, questions_per_scene=6),
            training=TrainingConfig(epochs=14),
            emoji_world=EmojiWorldConfig(
                things=32,
                scenes={"train": 10_000, "validation": 1_000, "test": 1_500},
                model=ModelConfig(
                    modalities=ALL_MODALITIES,
                    vision=VisionConfig(overrides=SHARED_SWIN_KWARGS),
                    fusion=FusionConfig(paths=QUESTION_PATHS, depth=2, mlp_ratio=1.0),
                    latent_bits=8,
                ),
                data=DataConfig(max_batch_cost=8, modality_costs=MODALITY_COSTS, questions_per_scene=8),
                contrastive=TrainingConfig(epochs=10, learning_rate=2e-3, horizontal_flip=False),
                no_audio=replace(SCENE_TRAINING, epochs=3, frozen_encoders=VISUAL_MODALITIES),
                isolated=replace(SCENE_TRAINING, epochs=4),
                av_matching=replace(SCENE_TRAINING, epochs=5),
                with_distractors=replace(DISTRACTOR_TRAINING, epochs=3),
            ),
            talking_face=TalkingFaceConfig(
                clips={"train": 3_000, "validation": 300, "test": 1_000},
                model=TALKING_FACE_MODEL,
                training=TrainingConfig(epochs=12, horizontal_flip=False),
            ),
            multitask=MultitaskConfig(
                things=32,
                model=MULTITASK_MODEL,
                training=TrainingConfig(epochs=22, horizontal_flip=False, warmup_fraction=0.02),
                examples={
                    "train": _DRAWN | {"transcribe": 12_000, "speak": 4_000},
                    "validation": dict.fromkeys(TASK_BATCH_SIZES, 96),
                    "test": dict.fromkeys(TASK_BATCH_SIZES, 600) | {"transcribe": 1_000, "speak": 120},
                },
                batches=700,
                batch_sizes=TASK_BATCH_SIZES,
            ),
            timing_rounds=9,
            bootstrap_resamples=2000,
        ),
        Profile(
            name="full",
            model=ModelConfig(
                vision=VisionConfig(overrides=SMALL_SWIN_KWARGS | {"embed_dim": 96, "num_heads": (3, 6)}),
                text=TextConfig(dim=256, depth=4),
                fusion=FusionConfig(depth=2, dropout=0.1),
            ),
            data=DataConfig(max_batch_cost=128, questions_per_scene=8, num_workers=8),
            training=TrainingConfig(epochs=60, learning_rate=1e-3),
            emoji_world=EmojiWorldConfig(
                things=40,
                scenes={"train": 100_000, "validation": 2_000, "test": 4_000},
                model=ModelConfig(
                    modalities=ALL_MODALITIES,
                    vision=VisionConfig(overrides=SHARED_SWIN_KWARGS | {"embed_dim": 96, "num_heads": (3, 6)}),
                    text=TextConfig(dim=256, depth=4),
                    audio=AudioConfig(dim=256, depth=4),
                    video=VideoConfig(dim=256, depth=2),
                    fusion=FusionConfig(paths=QUESTION_PATHS, depth=3),
                    latent_bits=8,
                ),
                data=DataConfig(max_batch_cost=128, modality_costs=MODALITY_COSTS, num_workers=8),
                contrastive=TrainingConfig(epochs=20, learning_rate=2e-3, horizontal_flip=False),
                no_audio=replace(SCENE_TRAINING, epochs=5, frozen_encoders=VISUAL_MODALITIES),
                isolated=replace(SCENE_TRAINING, epochs=10),
                av_matching=replace(SCENE_TRAINING, epochs=6),
                with_distractors=replace(DISTRACTOR_TRAINING, epochs=10),
                isolated_data=replace(ISOLATED_DATA, max_batch_cost=96, num_workers=8),
                views=40_000,
                views_per_batch=256,
            ),
            talking_face=TalkingFaceConfig(
                clips={"train": 20_000, "validation": 1_000, "test": 4_000},
                model=replace(
                    TALKING_FACE_MODEL,
                    dim=256,
                    audio=AudioConfig(depth=4),
                    video=replace(TALKING_FACE_MODEL.video, dim=128, depth=4),
                ),
                training=TrainingConfig(epochs=20, horizontal_flip=False),
            ),
            multitask=MultitaskConfig(
                things=40,
                model=replace(
                    MULTITASK_MODEL,
                    dim=256,
                    vision=VisionConfig(overrides=SHARED_SWIN_KWARGS | {"embed_dim": 96, "num_heads": (3, 6)}),
                    text=TextConfig(dim=256, depth=4),
                    audio=AudioConfig(dim=256, depth=4, num_local_convs=3, seconds_per_token=0.04),
                ),
                training=TrainingConfig(epochs=40, horizontal_flip=False, warmup_fraction=0.02),
                examples={
                    "train": {task: 4 * n for task, n in _DRAWN.items()} | {"transcribe": 30_000, "speak": 10_000},
                    "validation": dict.fromkeys(TASK_BATCH_SIZES, 192),
                    "test": dict.fromkeys(TASK_BATCH_SIZES, 1_200) | {"speak": 240},
                },
                batches=1_000,
                batch_sizes={task: 4 * n for task, n in TASK_BATCH_SIZES.items()},
                dim=256,
                context_depth=2,
                text_depth=4,
                detection_depth=3,
                tts_depth=3,
                tts_conv_layers=6,
            ),
            timing_rounds=30,
            bootstrap_resamples=10_000,
        ),
    )
}
