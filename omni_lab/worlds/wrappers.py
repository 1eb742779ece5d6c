"""Sources that wrap another source: with distracting audio and video, or with its questions spoken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily, VQASource
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import sample_voice, synthesize_cached
from omni_lab.worlds.question_families import spoken_family
from omni_lab.worlds.scene import SpeechTrack, mix_audio


class WithDistractors:
    """The questions of `source`, each scene with the audio and video of a random scene of EmojiWorld of the same split.

    What a question requires does not change.
    Raises ValueError if the source has audio or video that the distractors would replace.
    """

    def __init__(self, source: VQASource, world: EmojiWorld, *, seed: int = 0) -> None:
        self.source = source
        self.world = replace(world, spoken_share=0.0)
        self.seed = seed
        self.name = f"{source.name}_amid_{self.world.name}"
        self.added = {**self.world.shapes}
        del self.added[Modality.IMAGE]
        replaced = [m for m in self.added if m in source.shapes]
        if replaced:
            raise ValueError(f"{source.name} already comes with {replaced[0]}: distractors would replace it")
        self.shapes: Mapping[Modality, tuple[int, ...]] = {**source.shapes, **self.added}
        self.answers, self.families, self.corpus = source.answers, source.families, source.corpus

    def fingerprint(self) -> dict[str, Any]:
        return {"distracted": self.source.fingerprint(), "world": self.world.fingerprint(), "seed": self.seed}

    def questions(self) -> Mapping[str, Sequence[Question]]:
        rng = np.random.default_rng(self.seed)
        found: dict[str, Sequence[Question]] = {}
        for split, questions in self.source.questions().items():
            keys = [scene.key for scene in self.world.split_scenes(split)]
            distractors: dict[int, int] = {}
            for q in questions:
                distractors.setdefault(q.scene, keys[int(rng.integers(len(keys)))])
            found[split] = [
                replace(q, media={**q.media_keys, **dict.fromkeys(self.added, distractors[q.scene])}) for q in questions
            ]
        return found

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        return (self.world if modality in self.added else self.source).media(modality, keys)


class SpokenQuestions:
    """The questions of `source`, spoken instead of written.

    Each distinct text is spoken `takes` times per split, by random voices at 15 to 40 dB above noise. A question gets
    one of the takes.
    """

    def __init__(self, source: VQASource, *, takes: int = 4, seed: int = 0) -> None:
        if takes < 1:
            raise ValueError(f"takes must be at least 1: got {takes}")
        self.source = source
        self.takes = takes
        self.seed = seed
        self.name = f"{source.name}_spoken"
        self.shapes: Mapping[Modality, tuple[int, ...]] = {**source.shapes, Modality.AUDIO: ()}
        self.answers = source.answers

    def fingerprint(self) -> dict[str, Any]:
        options = {"takes": self.takes, "seed": self.seed}
        return {"spoken": self.source.fingerprint(), **options, "espeakng-loader": version("espeakng-loader")}

    def families(self) -> Mapping[str, QuestionFamily]:
        return {name: spoken_family(family) for name, family in self.source.families().items()}

    def corpus(self) -> Iterable[str]:
        return [text for split, text in self._first_takes() if split == "train"]

    def _first_takes(self) -> dict[tuple[str, str], int]:
        """The key of the first take of each (split, text)."""
        questions = self.source.questions()
        texts = dict.fromkeys((split, q.text) for split in SPLITS for q in questions[split] if q.text)
        return {pair: i * self.takes for i, pair in enumerate(texts)}

    def questions(self) -> Mapping[str, Sequence[Question]]:
        first, rng = self._first_takes(), np.random.default_rng(self.seed)
        spoken: dict[str, list[Question]] = {}
        for split, questions in self.source.questions().items():
            takes = rng.integers(self.takes, size=len(questions)).tolist()
            spoken[split] = [
                replace(q, text=None, media={**q.media_keys, Modality.AUDIO: first[split, q.text or ""] + take})
                for q, take in zip(questions, takes, strict=True)
            ]
        return spoken

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        if modality is not Modality.AUDIO:
            yield from self.source.media(modality, keys)
            return
        texts = [*self._first_takes()]
        for key in keys:
            split, text = texts[key // self.takes]
            rng = np.random.default_rng([self.seed, key])
            track = SpeechTrack(((text, 0.05),), sample_voice(split, rng), float(rng.uniform(15, 40)))
            samples = mix_audio(track, [synthesize_cached(text, track.voice)], rng)
            yield MediaItem(key, samples, {"transcript": text, "voice": track.voice.variant})
