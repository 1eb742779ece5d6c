"""Any set of questions, amid sounds and clips that have nothing to do with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from omni_lab.data.sources import Family, Medium, Question, VqaSource
from omni_lab.data.worlds.emoji_world import EmojiWorld
from omni_lab.modalities import Modality


class Distracted:
    """The questions of `source`; with each scene comes the sound and the clip of a scene of EmojiWorld, drawn from the
    seed, of the same split. What a question needs stays what it was.

    world: where sounds and clips come from. Raises ValueError if the source has a medium of its own that they would
    replace.
    """

    def __init__(self, source: VqaSource, world: EmojiWorld, *, seed: int = 0) -> None:
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

    def families(self) -> Mapping[str, Family]:
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
                replace(q, media={**q.keys, **{m: drawn[q.scene] for m in self.shapes if m not in self.source.shapes}})
                for q in questions
            ]
        return found

    def media(self, modality: Modality) -> Iterator[Medium]:
        yield from (self.source if modality in self.source.shapes else self.world).media(modality)
