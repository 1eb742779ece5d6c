"""What is said of a few things, by whom, and what of it belongs to which split."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from omni_lab.data.sources.base import SPLITS
from omni_lab.data.sources.hsk import SPLIT_FRACTIONS, SentencePair, hsk_sentences, split_of
from omni_lab.worlds.captions import RELATIONS, listing, phrase, relation
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import Voice
from omni_lab.worlds.scene import PlacedThing, Scene, caption, sample_voice
from omni_lab.worlds.scene_sampler import SceneSampler, place
from omni_lab.worlds.things import LANGUAGES, AmbiguousWord, Thing, ambiguous_words, thing_vocabulary
from omni_lab.worlds.utterances import SpeechLine

DIRECTIONS = (("en", "de"), ("en", "zh"), ("de", "en"), ("zh", "en"))
TRANSCRIPTION_KINDS = (*("en", "zh", "mixed") * 3, "hsk")  # kinds of what is to be written down, in turn
SINGLE_NAME_PROB = 0.3  # of it, in training, a single thing: what is short shows sooner which sound is which word
TTS_VOICES = (Voice("f1"), Voice("m1"), Voice("f5"))  # the voices that are learned
RNG_STREAMS = {"train": 21, "validation": 22, "test": 23}
AMBIGUOUS, HSK = 0.6, 0.15  # of the sentences to be translated; the others are plain


class TranslationPair(NamedTuple):
    """A sentence and what it means in another language; the picture that goes with it, if there is one. kind: for
    tables."""

    source: str
    target: str
    direction: tuple[str, str]
    kind: str
    placed: tuple[PlacedThing, ...] = ()


class SentenceSampler:
    """Draws scenes and sentences of one split. A set of two things or more belongs to one split, whatever is said of
    it: no picture or sentence of exactly these things has been trained on, though some with more things may hold them
    too. Both senses of a word with two of them count as one thing."""

    def __init__(self, world: EmojiWorld, split: str) -> None:
        if split not in RNG_STREAMS:
            raise ValueError(f"split must be one of {[*RNG_STREAMS]}: got {split!r}")
        self.world = world
        self.split = split
        self.things = thing_vocabulary(world.things)
        self.words = ambiguous_words()
        self._key = {s.emoji: w.senses[0].emoji for w in self.words for s in w.senses}

    @cached_property
    def pairs(self) -> list[SentencePair]:
        """Sentences of everyday life, in Chinese and English."""
        return hsk_sentences()[self.split]

    def belongs_to_split(self, things: Collection[Thing], rng: np.random.Generator) -> bool:
        """Whether a set belongs to this split. One thing alone belongs to all, and is taken as often as any set."""
        keys = sorted({self._key.get(thing.emoji, thing.emoji) for thing in things})
        if len(keys) < 2:
            return bool(rng.random() < SPLIT_FRACTIONS[SPLITS.index(self.split)])
        return split_of(" ".join(keys)) == self.split

    def scene(self, rng: np.random.Generator) -> Scene:
        """A scene of the world, without its sound."""
        while True:
            drawn = SceneSampler(
                int(rng.integers(2**40)),
                self.split,
                seed=self.world.seed + RNG_STREAMS[self.split],
                things=self.world.things,
                picture_size=self.world.image_size,
                frame_size=self.world.frame_size,
                spoken_share=None,
            ).scene()
            if self.belongs_to_split([p.thing for p in drawn.picture], rng):
                return drawn

    def two(self, rng: np.random.Generator, words: Sequence[AmbiguousWord] = ()) -> list[Thing]:
        """Two things in some order; one of them means one of the words, if any are given. Not every word has a partner
        in every split."""
        while True:
            pair = [self.things[int(k)] for k in rng.permutation(len(self.things))[:2]]
            if words:
                pair[int(rng.integers(2))] = words[int(rng.integers(len(words)))].senses[int(rng.integers(2))]
            if self.belongs_to_split(pair, rng):
                return pair

    def sample_translation(self, rng: np.random.Generator, *, kind: str | None = None) -> TranslationPair:
        """kind: "ambiguous", "plain" or "hsk"; drawn if not given."""
        chance = rng.random()
        kind = kind or ("ambiguous" if chance < AMBIGUOUS else "hsk" if chance < AMBIGUOUS + HSK else "plain")
        if kind == "hsk":
            pair = self.pairs[int(rng.integers(len(self.pairs)))]
            if rng.random() < 0.5:
                return TranslationPair(pair.english, pair.chinese, ("en", "zh"), "en-zh, hsk")
            return TranslationPair(pair.chinese, pair.english, ("zh", "en"), "zh-en, hsk")
        direction = DIRECTIONS[int(rng.integers(len(DIRECTIONS)))]
        words = [w for w in self.words if w.language == direction[0] and kind == "ambiguous"]
        pair_of = self.two(rng, words)
        source, target = self.said(pair_of, rng, direction)
        placed = place(pair_of, self.world.image_size, rng)
        return TranslationPair(source, target, direction, f"{'-'.join(direction)}, {kind}", placed)

    def said(self, pair: Sequence[Thing], rng: np.random.Generator, languages: Sequence[str]) -> list[str]:
        """The same of two things, in each of the languages."""
        if rng.random() < 0.5:
            counts = dict.fromkeys(pair, 1)
            return [listing(counts, language) for language in languages]
        where = str(rng.choice([*RELATIONS]))  # what the words say need not be what is seen: it can be read
        return [relation(pair[0], where, pair[1], language) for language in languages]

    def texts(self, rng: np.random.Generator, language: str) -> str:
        """A caption, or a sentence about two of all things, those of words with two meanings included."""
        if rng.random() < 0.5:
            return caption(self.scene(rng).picture, language)
        return self.said(self.two(rng, self.words if rng.random() < 0.5 else ()), rng, [language])[0]

    def name(self, rng: np.random.Generator, language: str) -> str:
        """One of all things."""
        every = [*self.things, *(sense for word in self.words for sense in word.senses)]
        return phrase(every[int(rng.integers(len(every)))], language, colour=rng.random() < 0.5)

    def mixed(self, rng: np.random.Generator) -> str:
        """A Chinese sentence in which one thing is called as in English."""
        pair = self.two(rng)
        pair[0] = replace(pair[0], names={**pair[0].names, "zh": pair[0].names["en"]})
        if rng.random() < 0.5:
            pair.reverse()
        return self.said(pair, rng, ["zh"])[0]

    def transcription_lines(self, count: int, *, seed: int) -> list[SpeechLine]:
        """Lines to be written down, the kinds in turn, each by a voice of the split's own."""
        lines = []
        for i in range(count):
            rng = np.random.default_rng([self.world.seed, seed, RNG_STREAMS[self.split], 1, i])
            kind = TRANSCRIPTION_KINDS[i % len(TRANSCRIPTION_KINDS)]
            if kind == "hsk":
                text = self.pairs[int(rng.integers(len(self.pairs)))].chinese
            else:
                short = self.split == "train" and rng.random() < SINGLE_NAME_PROB
                text = self.mixed(rng) if kind == "mixed" else self.name(rng, kind) if short else self.texts(rng, kind)
            voice = replace(sample_voice(self.split, rng), rate=int(rng.choice((175, 195, 225))))
            lines.append(SpeechLine(text, "en" if kind == "en" else "zh", voice, kind))
        return lines

    def tts_lines(self, count: int, *, seed: int) -> list[SpeechLine]:
        """Captions in English to be spoken, by the `SPEAKERS` in turn."""
        lines = []
        for i in range(count):
            rng = np.random.default_rng([self.world.seed, seed, RNG_STREAMS[self.split], 2, i])
            voice = TTS_VOICES[i % len(TTS_VOICES)]
            lines.append(SpeechLine(caption(self.scene(rng).picture, "en"), "en", voice, voice.variant))
        return lines

    def corpus(self, count: int, *, seed: int) -> Iterator[str]:
        """What a tokenizer learns from: captions, sentences, questions and names in three languages, and everyday ones;
        Chinese characters one by one, as a codec writes them."""
        rng = np.random.default_rng([self.world.seed, seed, RNG_STREAMS[self.split], 3])
        every = [*self.things, *(sense for word in self.words for sense in word.senses)]
        for language in LANGUAGES:
            names = [thing.names[language] for thing in every]
            found = [*names, *(self.texts(rng, language) for _ in range(count))]
            yield from (" ".join(text) for text in found) if language == "zh" else found
        for _ in range(count):
            yield from (text for _, text, _ in self.scene(rng).questions)
        for pair in self.pairs:
            yield pair.english
            yield " ".join(pair.chinese)
