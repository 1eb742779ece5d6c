"""Any set of questions, amid sounds and clips that have nothing to do with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily, VQASource
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.question_families import spoken_family
from omni_lab.worlds.scene import SpeechTrack, mix_audio, sample_voice, synthesize_cached


class WithDistractors:
    """The questions of `source`; with each scene comes the sound and the clip of a scene of EmojiWorld, drawn from the
    seed, of the same split. What a question needs stays what it was.

    world: where sounds and clips come from. Raises ValueError if the source has a medium of its own that they would
    replace.
    """

    def __init__(self, source: VQASource, world: EmojiWorld, *, seed: int = 0) -> None:
        self.source = source
        self.world = replace(world, spoken_share=0.0)
        self.seed = seed
        self.name = f"{source.name}_amid_{self.world.name}"
        added: dict[Modality, tuple[int, ...]] = {
            m: shape for m, shape in self.world.shapes.items() if m is not Modality.IMAGE
        }
        for modality in added:
            if modality in source.shapes:
                raise ValueError(f"{source.name} already comes with {modality}: distractors would replace it")
        self.shapes: Mapping[Modality, tuple[int, ...]] = {**source.shapes, **added}

    def fingerprint(self) -> dict[str, Any]:
        return {"distracted": self.source.fingerprint(), "world": self.world.fingerprint(), "seed": self.seed}

    def answers(self) -> Sequence[str]:
        return self.source.answers()

    def families(self) -> Mapping[str, QuestionFamily]:
        return self.source.families()

    def corpus(self) -> Iterable[str]:
        return self.source.corpus()

    def questions(self) -> Mapping[str, Sequence[Question]]:
        rng = np.random.default_rng(self.seed)
        found: dict[str, Sequence[Question]] = {}
        for split, questions in self.source.questions().items():
            keys = [scene.key for scene in self.world.split_scenes(split)]
            drawn: dict[int, int] = {}
            for q in questions:
                drawn.setdefault(q.scene, keys[int(rng.integers(len(keys)))])
            found[split] = [
                replace(
                    q, media={**q.media_keys, **{m: drawn[q.scene] for m in self.shapes if m not in self.source.shapes}}
                )
                for q in questions
            ]
        return found

    def media(self, modality: Modality) -> Iterator[MediaItem]:
        yield from (self.source if modality in self.source.shapes else self.world).media(modality)


class SpokenQuestions:
    """The questions of `source` without their text: each distinct one is spoken `takes` times per split, by voices and
    at noise levels (15 to 40 dB) drawn from the seed, and each question gets one of the takes."""

    def __init__(self, source: VQASource, *, takes: int = 4, seed: int = 0) -> None:
        if takes < 1:
            raise ValueError(f"takes must be at least 1: got {takes}")
        self.source = source
        self.takes = takes
        self.seed = seed
        self.name = f"{source.name}_spoken"
        self.shapes: Mapping[Modality, tuple[int, ...]] = {**source.shapes, Modality.AUDIO: ()}

    def fingerprint(self) -> dict[str, Any]:
        return {
            "spoken": self.source.fingerprint(),
            "takes": self.takes,
            "seed": self.seed,
            "espeakng-loader": version("espeakng-loader"),
        }

    def answers(self) -> Sequence[str]:
        return self.source.answers()

    def families(self) -> Mapping[str, QuestionFamily]:
        return {name: spoken_family(family) for name, family in self.source.families().items()}

    def corpus(self) -> Iterator[str]:
        yield from self._texts()["train"]

    def _texts(self) -> dict[str, list[str]]:
        questions = self.source.questions()
        return {split: list(dict.fromkeys(q.text for q in questions[split] if q.text)) for split in SPLITS}

    def _keys(self) -> dict[tuple[str, str], int]:
        """The key of the first take of each (split, text)."""
        pairs = [(split, text) for split, texts in self._texts().items() for text in texts]
        return {pair: i * self.takes for i, pair in enumerate(pairs)}

    def questions(self) -> Mapping[str, Sequence[Question]]:
        keys, rng = self._keys(), np.random.default_rng(self.seed)
        spoken: dict[str, list[Question]] = {}
        for split, questions in self.source.questions().items():
            takes = rng.integers(self.takes, size=len(questions))
            spoken[split] = [
                Question(
                    q.id,
                    None,
                    q.family,
                    q.scene,
                    q.scores,
                    {**q.media_keys, Modality.AUDIO: keys[split, q.text or ""] + int(take)},
                )
                for q, take in zip(questions, takes, strict=True)
            ]
        return spoken

    def media(self, modality: Modality) -> Iterator[MediaItem]:
        if modality is not Modality.AUDIO:
            yield from self.source.media(modality)
            return
        asked = {q.media_keys[Modality.AUDIO] for questions in self.questions().values() for q in questions}
        for (split, text), first in self._keys().items():
            for key in range(first, first + self.takes):
                if key in asked:
                    rng = np.random.default_rng([self.seed, key])
                    sound = SpeechTrack(((text, 0.05),), sample_voice(split, rng), float(rng.uniform(15, 40)))
                    samples = mix_audio(sound, [synthesize_cached(text, sound.voice)], rng)
                    yield MediaItem(key, samples, {"transcript": text, "voice": sound.voice.variant})
