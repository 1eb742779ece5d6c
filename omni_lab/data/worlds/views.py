"""One thing, four ways: a picture of it, its written name, its spoken name, and a clip; drawn afresh for every
sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from omni_lab.data.samples import Sample
from omni_lab.data.worlds.captions import phrase
from omni_lab.data.worlds.emoji_world import EmojiWorld
from omni_lab.data.worlds.scenes import CLIP_SECONDS, Acting, Placed, Sound, draw_voice, mix, render, say
from omni_lab.data.worlds.things import LANGUAGES, Thing, background, vocabulary
from omni_lab.modalities import Modality

STREAMS = {"train": 11, "validation": 12, "test": 13}


class ThingViews(Dataset[Sample]):
    """As many samples as one likes: sample i is about thing i modulo the vocabulary, after a shuffle of its own in
    every round, so that each round of so many samples holds each thing once. Sample i depends on (world.seed, seed,
    split, i) alone.

    languages: of the written names, drawn per sample. Spoken names are English; the test split's voices are its own.
    targets: "thing" [] int64.
    """

    def __init__(
        self,
        world: EmojiWorld,
        encode: Callable[[str], Sequence[int]],
        split: str,
        *,
        seed: int = 0,
        languages: Sequence[str] = LANGUAGES,
        modalities: Sequence[Modality] = tuple(Modality),
    ) -> None:
        self.world = world
        self.encode = encode
        self.split = split
        self.seed = seed
        self.languages = languages
        self.modalities = modalities
        self.things = vocabulary(world.things)

    def __getitem__(self, i: int) -> Sample:
        size = len(self.things)
        stream = [self.world.seed, self.seed, STREAMS[self.split]]
        index = int(np.random.default_rng([*stream, i // size]).permutation(size)[i % size])
        rng = np.random.default_rng([*stream, i // size, index])
        thing = self.things[index]
        makers = {
            Modality.TEXT: lambda: torch.tensor(self.encode(self.written(thing, rng))),
            Modality.IMAGE: lambda: torch.from_numpy(self.picture(thing, rng)),
            Modality.AUDIO: lambda: torch.from_numpy(self.sound(thing, rng)) / 32768.0,
            Modality.VIDEO: lambda: torch.from_numpy(self.clip(thing, rng)),
        }
        inputs = {m: make() for m, make in makers.items() if m in self.modalities}
        return Sample(f"{self.split}-{i}", "align", thing.names["en"], inputs, targets={"thing": torch.tensor(index)})

    def written(self, thing: Thing, rng: np.random.Generator) -> str:
        language = self.languages[int(rng.integers(len(self.languages)))]
        return thing.names[language] if rng.random() < 0.5 else phrase(thing, language, colour=rng.random() < 0.5)

    def picture(self, thing: Thing, rng: np.random.Generator) -> np.ndarray:
        """[3, H, W] uint8: the thing as large as scenes show it, anywhere."""
        side = self.world.picture_size
        size = int(rng.integers(round(side * 0.31), round(side * 0.45)))
        x, y = rng.uniform(size / 2, side - size / 2, size=2)
        placed = Placed(thing, float(x), float(y), size, float(rng.uniform(-20, 20)))
        return render(background(side, rng), [placed])

    def clip(self, thing: Thing, rng: np.random.Generator) -> np.ndarray:
        """[F, 3, h, w] uint8: the thing moves, appears, blinks or stays."""
        side, frames = self.world.frame_size, self.world.frames
        act = ("move", "stay", "appear", "disappear", "blink")[int(rng.integers(5))]
        x, y = rng.uniform(8, side - 8, size=2)
        axis, sign = ("x", "y")[int(rng.integers(2))], (-1, 1)[int(rng.integers(2))]
        size, angle = int(rng.integers(14, 16)), float(rng.uniform(-15, 15))
        actor = Acting(thing, float(x), float(y), size, angle, act, axis, sign)
        base = background(side, rng)
        moments = [actor.at((f + 0.5) / frames) for f in range(frames)]
        return np.stack([render(base, [m] if m is not None else []) for m in moments])

    def sound(self, thing: Thing, rng: np.random.Generator) -> np.ndarray:
        """[S] int16: its name somewhere in one to two seconds of noise."""
        voice = draw_voice(self.split, rng)
        utterance = say(thing.names["en"], voice)
        start = float(rng.uniform(0, CLIP_SECONDS / 2))
        snr = float(rng.uniform(0, 40))
        return mix(Sound(((thing.names["en"], start),), voice, snr), [utterance], rng)
