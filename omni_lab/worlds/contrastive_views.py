"""One thing or two, four ways: a picture, the written names, the spoken names, and a clip; drawn afresh for every
sample."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from omni_lab.batch import Modality
from omni_lab.data.collate import Sample
from omni_lab.worlds.captions import JOINTS, SPEAKERS, phrase
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import Voice
from omni_lab.worlds.question_families import DIGITS, MOTION_QUESTIONS, PLACES, QUESTION_TEMPLATES
from omni_lab.worlds.scene import SpeechTrack, mix_audio, render_image, render_video, sample_voice, synthesize_cached
from omni_lab.worlds.scene_sampler import act_out, place
from omni_lab.worlds.things import LANGUAGES, Thing, background, thing_vocabulary

RNG_STREAMS = {"train": 11, "validation": 12, "test": 13}
ACTS = ("move", "stay", "appear", "disappear", "blink")
SPEAKER_GROUPS = ("woman", "man")
UNNAMED, UNWRITTEN, UNSPOKEN = -2, -1, -3
SENTENCE_ID_OFFSET = 2**20  # no thing has so large a number


class ContrastiveViews(Dataset[Sample]):
    """As many samples as one likes: sample i is about thing i modulo the vocabulary, after a shuffle of its own in
    every round, so that each round of so many samples holds each thing once. Sample i depends on (world.seed, seed,
    split, i) and the options alone.

    pairs: the chance that a sample is about a second thing as well, any other: what belongs together must then be
    found within each modality. sentences: the chance that a question, in English, is said and written in place of the
    names; half of its forms name the things, the others nothing. voices: the chance that the text says whether a woman
    or a man speaks; every other time, unless a question is asked, it says nothing else. languages: of the written
    names, drawn per sample. Spoken names are English; the test split's voices are its own.

    targets, all int64: "thing" [], the same number for the same thing or pair of things. "written" [], that number, or
    one for each question, or UNWRITTEN. "said" [2], the number of the things that are named, or UNNAMED, and that of
    the question, or UNSPOKEN. "speaker" [2], of `GROUPS`, the one that the text names (or UNWRITTEN) and the one heard.
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
        self.things = thing_vocabulary(world.things)

    def __getitem__(self, i: int) -> Sample:
        size = len(self.things)
        stream = [self.world.seed, self.seed, RNG_STREAMS[self.split]]
        index = int(np.random.default_rng([*stream, i // size]).permutation(size)[i % size])
        rng = np.random.default_rng([*stream, i // size, index])
        shown, label = [self.things[index]], index
        if rng.random() < self.pairs:
            other = int((index + rng.integers(1, size)) % size)
            shown, label = [self.things[index], self.things[other]], size * (1 + min(index, other)) + max(index, other)
        order = rng.permuted(np.tile(np.arange(len(shown)), (len(Modality), 1)), axis=1)  # of its own in each modality
        text, picture, sound, clip = ([shown[k] for k in row] for row in order)
        voice = sample_voice(self.split, rng)
        words, named = question(sound, rng) if rng.random() < self.sentences else (None, True)
        told = rng.random() < self.voices
        wordless = told and words is None and rng.random() < 0.5
        speaker = SPEAKER_GROUPS.index(voice.group)
        spoken = UNSPOKEN if words is None else SENTENCE_ID_OFFSET + zlib.crc32(words.encode())
        targets = {
            "thing": label,
            "written": UNWRITTEN if wordless else label if words is None else spoken,
            "said": [label if named else UNNAMED, spoken],
            "speaker": [speaker if told else UNWRITTEN, speaker],
        }
        makers: dict[Modality, Callable[[], Any]] = {
            Modality.TEXT: lambda: torch.tensor(
                self.encode(self.written([] if wordless else text, words, voice if told else None, rng))
            ),
            Modality.IMAGE: lambda: torch.from_numpy(self.picture(picture, rng)),
            Modality.AUDIO: lambda: torch.from_numpy(self.sound(sound, words, voice, rng)) / 32768.0,
            Modality.VIDEO: lambda: torch.from_numpy(self.clip(clip, rng)),
        }
        inputs = {m: make() for m, make in makers.items() if m in self.modalities}
        family = " and ".join(thing.names["en"] for thing in shown)
        tensors = {name: torch.tensor(target) for name, target in targets.items()}
        return Sample(f"{self.split}-{i}", "align", family, inputs, targets=tensors)

    def written(self, things: Sequence[Thing], words: str | None, voice: Voice | None, rng: np.random.Generator) -> str:
        """Who speaks, if a voice is given; then the words, or else the names, with or without article and colour."""
        language = "en" if words is not None else self.languages[int(rng.integers(len(self.languages)))]
        names = [
            thing.names[language]
            if rng.random() < 0.5 or not thing.gender
            else phrase(thing, language, colour=rng.random() < 0.5)
            for thing in things
        ]
        speaker = SPEAKERS[voice.group][language] if voice is not None else ""
        return (speaker + (words or JOINTS[language].join(names))).strip()

    def picture(self, things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
        """[3, H, W] uint8: each thing as large as scenes show it, in a quarter of its own."""
        side = self.world.image_size
        return render_image(background(side, rng), place(things, side, rng))

    def clip(self, things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
        """[F, 3, h, w] uint8: each thing moves, appears, disappears, blinks or stays."""
        side = self.world.frame_size
        actors = act_out(things, [ACTS[int(rng.integers(len(ACTS)))] for _ in things], side, rng)
        return render_video(background(side, rng), actors, self.world.frames)

    def sound(self, things: Sequence[Thing], words: str | None, voice: Voice, rng: np.random.Generator) -> np.ndarray:
        """[S] int16, in noise: the words, or else the names one after the other; a single one begins within the first
        second."""
        said = [words] if words is not None else [thing.names["en"] for thing in things]
        start = float(rng.uniform(0, 0.3 if words is not None or len(said) > 1 else 1.0))
        times, utterances = [], []
        for text in said:
            utterances.append(synthesize_cached(text, voice))
            times.append((text, start))
            start += utterances[-1].seconds + float(rng.uniform(0.05, 0.3))
        return mix_audio(SpeechTrack(tuple(times), voice, float(rng.uniform(0, 40))), utterances, rng)


def question(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, bool]:
    """One in a form in which questions about scenes are spoken, and whether it names the things."""
    names = " and the ".join(thing.names["en"] for thing in things)
    plurals = " and ".join(thing.plural["en"] for thing in things)
    place = PLACES[int(rng.integers(len(PLACES)))]
    first, second = (DIGITS[int(rng.integers(len(DIGITS)))] for _ in range(2))
    deed = [*MOTION_QUESTIONS.values()][int(rng.integers(len(MOTION_QUESTIONS)))]
    here, there = (("picture", "clip"), ("clip", "picture"))[int(rng.integers(2))]
    naming = (
        QUESTION_TEMPLATES["image_where"].format(name=names),
        QUESTION_TEMPLATES["image_count"].format(plural=plurals),
        QUESTION_TEMPLATES["video_way"].format(name=names),
    )
    others = (
        QUESTION_TEMPLATES["image_what"].format(place=place),
        deed,
        QUESTION_TEMPLATES["text_sum"].format(first=first, second=second),
        QUESTION_TEMPLATES["image_video_missing"].format(here=here, there=there),
    )
    named = bool(rng.random() < 0.5)
    forms = naming if named else others
    return forms[int(rng.integers(len(forms)))], named
