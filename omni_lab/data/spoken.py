"""Any set of written questions, spoken: by some voices for training, by held-out ones for testing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from omni_lab.data.sources import SPLITS, Family, Medium, Question, VqaSource
from omni_lab.data.worlds.families import spoken_family
from omni_lab.data.worlds.scenes import Sound, draw_voice, mix, say
from omni_lab.modalities import Modality


class Spoken:
    """The questions of `source` without their text: each distinct one is spoken `takes` times per split, by voices and
    at noise levels (15 to 40 dB) drawn from the seed, and each question gets one of the takes."""

    def __init__(self, source: VqaSource, *, takes: int = 4, seed: int = 0) -> None:
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

    def families(self) -> Mapping[str, Family]:
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
                    {**q.keys, Modality.AUDIO: keys[split, q.text or ""] + int(take)},
                )
                for q, take in zip(questions, takes, strict=True)
            ]
        return spoken

    def media(self, modality: Modality) -> Iterator[Medium]:
        if modality is not Modality.AUDIO:
            yield from self.source.media(modality)
            return
        asked = {q.keys[Modality.AUDIO] for questions in self.questions().values() for q in questions}
        for (split, text), first in self._keys().items():
            for key in range(first, first + self.takes):
                if key in asked:
                    rng = np.random.default_rng([self.seed, key])
                    sound = Sound(((text, 0.05),), draw_voice(split, rng), float(rng.uniform(15, 40)))
                    samples = mix(sound, [say(text, sound.voice)], rng)
                    yield Medium(key, samples, {"transcript": text, "voice": sound.voice.variant})
