"""Contrastive views: one thing or two as image, text, speech and video, sampled anew for every index."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from omni_lab.batch import Modality
from omni_lab.data.collate import Sample
from omni_lab.worlds.captions import CONJUNCTIONS, SPEAKERS, phrase
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import Voice, sample_voice, synthesize_cached
from omni_lab.worlds.question_families import DIGITS, MOTION_QUESTIONS, PLACES, QUESTION_TEMPLATES
from omni_lab.worlds.scene import SpeechTrack, mix_audio, pick, render_image, render_video
from omni_lab.worlds.scene_sampler import animate_things, place_things
from omni_lab.worlds.things import LANGUAGES, Thing, background, thing_vocabulary

RNG_STREAMS = {"train": 11, "validation": 12, "test": 13}
ACTS = ("move", "stay", "appear", "disappear", "blink")
SPEAKER_GROUPS = ("woman", "man")
UNNAMED, UNWRITTEN, UNSPOKEN = -2, -1, -3
SENTENCE_ID_OFFSET = 2**20  # larger than the number of any thing or pair of things


@dataclass(eq=False)
class ContrastiveViews(Dataset[Sample]):
    """An endless dataset of views. Sample i depends only on (world.seed, seed, split, i) and the options.

    Sample i is about thing i modulo the vocabulary, after a shuffle in every round, so that each round holds each thing
    once. Speech is English; the voices of the test split are in no other.

    Targets, all int64; equal numbers are positive pairs:
    thing: [], number of the thing or the pair of things.
    written: [], the same number, that of the question, or UNWRITTEN.
    said: [2], number of the things that are named or UNNAMED, and of the question or UNSPOKEN.
    speaker: [2], index in `SPEAKER_GROUPS` of the speaker in the text (or UNWRITTEN) and in the audio.
    """

    world: EmojiWorld
    encode: Callable[[str], Sequence[int]]  # from text to token ids
    split: str
    _: KW_ONLY
    seed: int = 0
    pairs: float = 0.0  # probability of a second thing, so that the model must separate things within each modality
    sentences: float = 0.0  # probability of an English question in place of the names; half of them name the things
    voices: float = 0.0  # probability that the text says who speaks; half of these, if not a question, say nothing else
    languages: Sequence[str] = LANGUAGES  # of the written names
    modalities: Sequence[Modality] = tuple(Modality)

    def __post_init__(self) -> None:
        self.things = thing_vocabulary(self.world.things)

    def __getitem__(self, i: int) -> Sample:
        size = len(self.things)
        stream = [self.world.seed, self.seed, RNG_STREAMS[self.split]]
        index = int(np.random.default_rng([*stream, i // size]).permutation(size)[i % size])
        rng = np.random.default_rng([*stream, i // size, index])
        things, label = [self.things[index]], index
        if rng.random() < self.pairs:
            other = int((index + rng.integers(1, size)) % size)
            things, label = [*things, self.things[other]], size * (1 + min(index, other)) + max(index, other)
        order = rng.permuted(np.tile(np.arange(len(things)), (len(Modality), 1)), axis=1)  # [M, things]
        text, image, audio, video = ([things[k] for k in row] for row in order)
        voice = sample_voice(self.split, rng)
        question, named = sample_question(audio, rng) if rng.random() < self.sentences else (None, True)
        speaker_written = rng.random() < self.voices
        only_speaker = speaker_written and question is None and rng.random() < 0.5
        speaker = SPEAKER_GROUPS.index(voice.group)
        spoken = UNSPOKEN if question is None else SENTENCE_ID_OFFSET + zlib.crc32(question.encode())
        targets = {
            "thing": label,
            "written": UNWRITTEN if only_speaker else label if question is None else spoken,
            "said": [label if named else UNNAMED, spoken],
            "speaker": [speaker if speaker_written else UNWRITTEN, speaker],
        }
        makers: dict[Modality, Callable[[], torch.Tensor]] = {
            Modality.TEXT: lambda: torch.tensor(
                self.encode(self._text([] if only_speaker else text, question, voice if speaker_written else None, rng))
            ),
            Modality.IMAGE: lambda: torch.from_numpy(
                render_image(background(self.world.image_size, rng), place_things(image, self.world.image_size, rng))
            ),
            Modality.AUDIO: lambda: torch.from_numpy(self._audio(audio, question, voice, rng)) / 32768.0,
            Modality.VIDEO: lambda: torch.from_numpy(self._video(video, rng)),
        }
        inputs = {m: make() for m, make in makers.items() if m in self.modalities}
        family = " and ".join(thing.names["en"] for thing in things)
        tensors = {name: torch.tensor(target) for name, target in targets.items()}
        return Sample(f"{self.split}-{i}", "align", family, inputs, targets=tensors)

    def _text(
        self, things: Sequence[Thing], question: str | None, voice: Voice | None, rng: np.random.Generator
    ) -> str:
        """The question or the names, with or without article and colour, after the speaker of the voice if given."""
        language = "en" if question is not None else pick(self.languages, rng)
        names = [
            thing.names[language]
            if rng.random() < 0.5 or not thing.gender
            else phrase(thing, language, colour=rng.random() < 0.5)
            for thing in things
        ]
        speaker = SPEAKERS[voice.group][language] if voice is not None else ""
        return (speaker + (question or CONJUNCTIONS[language].join(names))).strip()

    def _video(self, things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
        """[F, 3, h, w] uint8: each thing acts in one of the `ACTS`."""
        side = self.world.frame_size
        moving = animate_things(things, [pick(ACTS, rng) for _ in things], side, rng)
        return render_video(background(side, rng), moving, self.world.frames)

    def _audio(
        self, things: Sequence[Thing], question: str | None, voice: Voice, rng: np.random.Generator
    ) -> np.ndarray:
        """[S] int16: the question, or the names one after the other, in noise. A single name begins within a second."""
        texts = [question] if question is not None else [thing.names["en"] for thing in things]
        start = float(rng.uniform(0, 0.3 if question is not None or len(texts) > 1 else 1.0))
        times, utterances = [], []
        for text in texts:
            utterances.append(synthesize_cached(text, voice))
            times.append((text, start))
            start += utterances[-1].seconds + float(rng.uniform(0.05, 0.3))
        return mix_audio(SpeechTrack(tuple(times), voice, float(rng.uniform(0, 40))), utterances, rng)


def sample_question(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, bool]:
    """A question in one of the templates of spoken questions, and whether it names the things."""
    words = {
        "name": " and the ".join(thing.names["en"] for thing in things),
        "plural": " and ".join(thing.plural["en"] for thing in things),
        "place": pick(PLACES, rng),
        "first": pick(DIGITS, rng),
        "second": pick(DIGITS, rng),
    }
    motion = pick([*MOTION_QUESTIONS.values()], rng)
    words["here"], words["there"] = pick((("picture", "clip"), ("clip", "picture")), rng)
    named = bool(rng.random() < 0.5)
    naming = [QUESTION_TEMPLATES[family] for family in ("image_where", "image_count", "video_way")]
    what, text_sum, missing = (QUESTION_TEMPLATES[name] for name in ("image_what", "text_sum", "image_video_missing"))
    return pick(naming if named else [what, motion, text_sum, missing], rng).format(**words), named
