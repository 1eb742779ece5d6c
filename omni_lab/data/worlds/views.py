"""One thing or two, four ways: a picture, the written names, the spoken names, and a clip; drawn afresh for every
sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from omni_lab.data.samples import Sample
from omni_lab.data.worlds.captions import JOINTS, phrase
from omni_lab.data.worlds.drawing import act_out, place
from omni_lab.data.worlds.emoji_world import EmojiWorld
from omni_lab.data.worlds.scenes import Sound, draw_voice, film, mix, render, say
from omni_lab.data.worlds.things import LANGUAGES, Thing, background, vocabulary
from omni_lab.modalities import Modality

STREAMS = {"train": 11, "validation": 12, "test": 13}
ACTS = ("move", "stay", "appear", "disappear", "blink")


class ThingViews(Dataset[Sample]):
    """As many samples as one likes: sample i is about thing i modulo the vocabulary, after a shuffle of its own in
    every round, so that each round of so many samples holds each thing once. Sample i depends on (world.seed, seed,
    split, i) and the options alone.

    pairs: the chance that a sample is about a second thing as well, any other: what belongs together must then be
    found within each modality. languages: of the written names, drawn per sample. Spoken names are English; the test
    split's voices are its own. targets: "thing" [] int64, the same number for the same thing or pair of things.
    """

    def __init__(
        self,
        world: EmojiWorld,
        encode: Callable[[str], Sequence[int]],
        split: str,
        *,
        seed: int = 0,
        pairs: float = 0.0,
        languages: Sequence[str] = LANGUAGES,
        modalities: Sequence[Modality] = tuple(Modality),
    ) -> None:
        self.world = world
        self.encode = encode
        self.split = split
        self.seed = seed
        self.pairs = pairs
        self.languages = languages
        self.modalities = modalities
        self.things = vocabulary(world.things)

    def __getitem__(self, i: int) -> Sample:
        size = len(self.things)
        stream = [self.world.seed, self.seed, STREAMS[self.split]]
        index = int(np.random.default_rng([*stream, i // size]).permutation(size)[i % size])
        rng = np.random.default_rng([*stream, i // size, index])
        shown, label = [self.things[index]], index
        if rng.random() < self.pairs:
            other = int((index + rng.integers(1, size)) % size)
            shown, label = [self.things[index], self.things[other]], size * (1 + min(index, other)) + max(index, other)
        makers: dict[Modality, Callable[[list[Thing]], Any]] = {
            Modality.TEXT: lambda things: torch.tensor(self.encode(self.written(things, rng))),
            Modality.IMAGE: lambda things: torch.from_numpy(self.picture(things, rng)),
            Modality.AUDIO: lambda things: torch.from_numpy(self.sound(things, rng)) / 32768.0,
            Modality.VIDEO: lambda things: torch.from_numpy(self.clip(things, rng)),
        }
        order = rng.permuted(np.tile(np.arange(len(shown)), (len(Modality), 1)), axis=1)  # of its own in each modality
        inputs = {m: make([shown[k] for k in order[m.column]]) for m, make in makers.items() if m in self.modalities}
        family = " and ".join(thing.names["en"] for thing in shown)
        return Sample(f"{self.split}-{i}", "align", family, inputs, targets={"thing": torch.tensor(label)})

    def written(self, things: Sequence[Thing], rng: np.random.Generator) -> str:
        """Each with or without article and colour."""
        language = self.languages[int(rng.integers(len(self.languages)))]
        names = [
            thing.names[language] if rng.random() < 0.5 else phrase(thing, language, colour=rng.random() < 0.5)
            for thing in things
        ]
        return JOINTS[language].join(names)

    def picture(self, things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
        """[3, H, W] uint8: each thing as large as scenes show it, in a quarter of its own."""
        side = self.world.picture_size
        return render(background(side, rng), place(things, side, rng))

    def clip(self, things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
        """[F, 3, h, w] uint8: each thing moves, appears, disappears, blinks or stays."""
        side = self.world.frame_size
        actors = act_out(things, [ACTS[int(rng.integers(len(ACTS)))] for _ in things], side, rng)
        return film(background(side, rng), actors, self.world.frames)

    def sound(self, things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
        """[S] int16: the names one after the other in noise; a single one begins within the first second."""
        voice = draw_voice(self.split, rng)
        start = float(rng.uniform(0, 0.3 if len(things) > 1 else 1.0))
        said, utterances = [], []
        for thing in things:
            utterances.append(say(thing.names["en"], voice))
            said.append((thing.names["en"], start))
            start += utterances[-1].seconds + float(rng.uniform(0.05, 0.3))
        return mix(Sound(tuple(said), voice, float(rng.uniform(0, 40))), utterances, rng)
