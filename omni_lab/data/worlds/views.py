"""One thing or two, four ways: a picture, the written names, the spoken names, and a clip; drawn afresh for every
sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from omni_lab.data.samples import Sample
from omni_lab.data.speech import Voice
from omni_lab.data.worlds.captions import JOINTS, SPEAKERS, phrase
from omni_lab.data.worlds.drawing import act_out, place
from omni_lab.data.worlds.emoji_world import EmojiWorld
from omni_lab.data.worlds.families import DIGITS, PLACES
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
    found within each modality. sentences: the chance that a question that names the things is said and written, in
    English, in place of their names. voices: the chance that the text says whether a woman or a man speaks. languages:
    of the written names, drawn per sample. Spoken names are English; the test split's voices are its own. targets:
    "thing" [] int64, the same number for the same thing or pair of things.
    """

    def __init__(
        self,
        world: EmojiWorld,
        encode: Callable[[str], Sequence[int]],
        split: str,
        *,
        seed: int = 0,
        pairs: float = 0.0,
        sentences: float = 0.0,
        voices: float = 0.0,
        languages: Sequence[str] = LANGUAGES,
        modalities: Sequence[Modality] = tuple(Modality),
    ) -> None:
        self.world = world
        self.encode = encode
        self.split = split
        self.seed = seed
        self.pairs = pairs
        self.sentences = sentences
        self.voices = voices
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
        order = rng.permuted(np.tile(np.arange(len(shown)), (len(Modality), 1)), axis=1)  # of its own in each modality
        text, picture, sound, clip = ([shown[k] for k in row] for row in order)
        voice = draw_voice(self.split, rng)
        words = question(sound, rng) if rng.random() < self.sentences else None
        makers: dict[Modality, Callable[[], Any]] = {
            Modality.TEXT: lambda: torch.tensor(self.encode(self.written(text, words, voice, rng))),
            Modality.IMAGE: lambda: torch.from_numpy(self.picture(picture, rng)),
            Modality.AUDIO: lambda: torch.from_numpy(self.sound(sound, words, voice, rng)) / 32768.0,
            Modality.VIDEO: lambda: torch.from_numpy(self.clip(clip, rng)),
        }
        inputs = {m: make() for m, make in makers.items() if m in self.modalities}
        family = " and ".join(thing.names["en"] for thing in shown)
        return Sample(f"{self.split}-{i}", "align", family, inputs, targets={"thing": torch.tensor(label)})

    def written(self, things: Sequence[Thing], words: str | None, voice: Voice, rng: np.random.Generator) -> str:
        """The words, or else the names, each with or without article and colour."""
        language = "en" if words is not None else self.languages[int(rng.integers(len(self.languages)))]
        names = [
            thing.names[language] if rng.random() < 0.5 else phrase(thing, language, colour=rng.random() < 0.5)
            for thing in things
        ]
        speaker = SPEAKERS[voice.group][language] if rng.random() < self.voices else ""
        return speaker + (words or JOINTS[language].join(names))

    def picture(self, things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
        """[3, H, W] uint8: each thing as large as scenes show it, in a quarter of its own."""
        side = self.world.picture_size
        return render(background(side, rng), place(things, side, rng))

    def clip(self, things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
        """[F, 3, h, w] uint8: each thing moves, appears, disappears, blinks or stays."""
        side = self.world.frame_size
        actors = act_out(things, [ACTS[int(rng.integers(len(ACTS)))] for _ in things], side, rng)
        return film(background(side, rng), actors, self.world.frames)

    def sound(self, things: Sequence[Thing], words: str | None, voice: Voice, rng: np.random.Generator) -> np.ndarray:
        """[S] int16, in noise: the words, or else the names one after the other; a single one begins within the first
        second."""
        said = [words] if words is not None else [thing.names["en"] for thing in things]
        start = float(rng.uniform(0, 0.3 if words is not None or len(said) > 1 else 1.0))
        times, utterances = [], []
        for text in said:
            utterances.append(say(text, voice))
            times.append((text, start))
            start += utterances[-1].seconds + float(rng.uniform(0.05, 0.3))
        return mix(Sound(tuple(times), voice, float(rng.uniform(0, 40))), utterances, rng)


def question(things: Sequence[Thing], rng: np.random.Generator) -> str:
    """One that names all of the things; its form is drawn from those in which questions about scenes are spoken."""
    the = " and ".join(f"the {thing.names['en']}" for thing in things)
    either = " or ".join(f"the {thing.names['en']}" for thing in things)
    plurals = " and ".join(thing.plural["en"] for thing in things)
    place = PLACES[int(rng.integers(len(PLACES)))]
    first, second = (DIGITS[int(rng.integers(len(DIGITS)))] for _ in range(2))
    deed = ("moves", "stays still", "appears", "disappears", "blinks", "does not blink")[int(rng.integers(6))]
    here, there = (("picture", "clip"), ("clip", "picture"))[int(rng.integers(2))]
    forms = (
        f"where is {the}?",
        f"how many {plurals} are there?",
        f"which way does {the} move?",
        f"what is at the {place}, {either}?",
        f"what {deed}, {either}?",
        f"what is {first} plus {second}, {the}?",
        f"what is in the {here} but not in the {there}, {either}?",
    )
    return forms[int(rng.integers(len(forms)))]
