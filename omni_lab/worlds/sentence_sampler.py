"""Samples sentences about things: captions, translation pairs, lines to transcribe or to speak, and a corpus."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import cycle
from typing import NamedTuple

import numpy as np

from omni_lab.data.sources.base import SPLITS
from omni_lab.data.sources.hsk import SPLIT_FRACTIONS, SentencePair, hsk_sentences, split_of
from omni_lab.worlds.captions import RELATIONS, listing, phrase, relation
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import Voice, sample_voice
from omni_lab.worlds.scene import PlacedThing, Scene, caption, pick
from omni_lab.worlds.scene_sampler import place_things
from omni_lab.worlds.things import LANGUAGES, AmbiguousWord, Thing, ambiguous_words, thing_vocabulary
from omni_lab.worlds.utterances import SpeechLine

DIRECTIONS = (("en", "de"), ("en", "zh"), ("de", "en"), ("zh", "en"))
TRANSCRIPTION_KINDS = (*("en", "zh", "mixed") * 3, "hsk")  # kinds of lines to transcribe, in turn
SINGLE_NAME_PROB = 0.3  # of a line being one name, in training: short lines show sooner which sound is which word
TTS_VOICES = (Voice("f1"), Voice("m1"), Voice("f5"))  # the voices that the TTS head learns
RNG_STREAMS = {"train": 21, "validation": 22, "test": 23}
AMBIGUOUS_PROB, HSK_PROB = 0.6, 0.15  # of the sentences to translate; the others are plain


class TranslationPair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str
    direction: tuple[str, str]  # languages of source and target
    kind: str  # label in tables of results
    placed: tuple[PlacedThing, ...] = ()  # things of the image that goes with the sentence, if there is one


class SentenceSampler:
    """Samples scenes and sentences of one split.

    Every set of two or more things belongs to one split: no image or sentence of another split is about exactly these
    things, though some may include them. Both senses of an ambiguous word count as one thing.
    """

    def __init__(self, world: EmojiWorld, split: str) -> None:
        if split not in RNG_STREAMS:
            raise ValueError(f"split must be one of {[*RNG_STREAMS]}: got {split!r}")
        self.world = world
        self.split = split
        self.things = thing_vocabulary(world.things)
        self.ambiguous_words = ambiguous_words()
        self._all_things = [*self.things, *(sense for word in self.ambiguous_words for sense in word.senses)]
        self._split_keys = {s.emoji: w.senses[0].emoji for w in self.ambiguous_words for s in w.senses}
        self._mute_world = replace(world, seed=world.seed + RNG_STREAMS[split], speech=False)

    def rng(self, seed: int, *key: int) -> np.random.Generator:
        """A random generator that depends on the world, the seed, the split and the key."""
        return np.random.default_rng([self.world.seed, seed, RNG_STREAMS[self.split], *key])

    @cached_property
    def hsk_pairs(self) -> list[SentencePair]:
        """Sentences of everyday life, in Chinese and English."""
        return hsk_sentences()[self.split]

    def belongs_to_split(self, things: Collection[Thing], rng: np.random.Generator) -> bool:
        """Whether a set of things belongs to this split. A single thing belongs to all, as often as any set."""
        keys = sorted({self._split_keys.get(thing.emoji, thing.emoji) for thing in things})
        if len(keys) < 2:
            return bool(rng.random() < SPLIT_FRACTIONS[SPLITS.index(self.split)])
        return split_of(" ".join(keys)) == self.split

    def sample_scene(self, rng: np.random.Generator) -> Scene:
        """A scene without speech."""
        while True:
            scene = self._mute_world.scene(self.split, int(rng.integers(2**40)))
            if self.belongs_to_split([p.thing for p in scene.placed_things], rng):
                return scene

    def sample_pair(self, rng: np.random.Generator, words: Sequence[AmbiguousWord] = ()) -> list[Thing]:
        """Two things in random order; if words are given, one is a sense of one of them.

        Not every word has a partner in every split.
        """
        while True:
            pair = [self.things[int(k)] for k in rng.permutation(len(self.things))[:2]]
            if words:
                pair[int(rng.integers(2))] = pick(pick(words, rng).senses, rng)
            if self.belongs_to_split(pair, rng):
                return pair

    def sample_translation(self, rng: np.random.Generator, *, kind: str | None = None) -> TranslationPair:
        """kind: "ambiguous", "plain" or "hsk"; sampled if None."""
        chance = rng.random()
        sampled = "ambiguous" if chance < AMBIGUOUS_PROB else "hsk" if chance < AMBIGUOUS_PROB + HSK_PROB else "plain"
        kind = kind or sampled
        if kind == "hsk":
            pair = pick(self.hsk_pairs, rng)
            if rng.random() < 0.5:
                return TranslationPair(pair.english, pair.chinese, ("en", "zh"), "en-zh, hsk")
            return TranslationPair(pair.chinese, pair.english, ("zh", "en"), "zh-en, hsk")
        direction = pick(DIRECTIONS, rng)
        words = [w for w in self.ambiguous_words if w.language == direction[0] and kind == "ambiguous"]
        things = self.sample_pair(rng, words)
        source, target = self.describe_pair(things, rng, direction)
        placed = place_things(things, self.world.image_size, rng)
        return TranslationPair(source, target, direction, f"{'-'.join(direction)}, {kind}", placed)

    def describe_pair(self, pair: Sequence[Thing], rng: np.random.Generator, languages: Sequence[str]) -> list[str]:
        """The same sentence about two things in each language."""
        if rng.random() < 0.5:
            return [listing(dict.fromkeys(pair, 1), language) for language in languages]
        where = str(rng.choice([*RELATIONS]))  # need not hold in the image: it is in the source sentence
        return [relation(pair[0], where, pair[1], language) for language in languages]

    def sample_sentence(self, rng: np.random.Generator, language: str) -> str:
        """A caption, or a sentence about two things; half of these sentences have an ambiguous word."""
        if rng.random() < 0.5:
            return caption(self.sample_scene(rng).placed_things, language)
        words = self.ambiguous_words if rng.random() < 0.5 else ()
        return self.describe_pair(self.sample_pair(rng, words), rng, [language])[0]

    def sample_mixed(self, rng: np.random.Generator) -> str:
        """A Chinese sentence in which one thing has its English name."""
        pair = self.sample_pair(rng)
        pair[0] = replace(pair[0], names={**pair[0].names, "zh": pair[0].names["en"]})
        if rng.random() < 0.5:
            pair.reverse()
        return self.describe_pair(pair, rng, ["zh"])[0]

    def transcription_lines(self, count: int, *, seed: int) -> list[SpeechLine]:
        """Lines to transcribe, of the kinds in turn, each by a voice of the split."""
        lines = []
        for i in range(count):
            rng, kind = self.rng(seed, 1, i), TRANSCRIPTION_KINDS[i % len(TRANSCRIPTION_KINDS)]
            short = kind != "hsk" and self.split == "train" and rng.random() < SINGLE_NAME_PROB
            if kind == "hsk":
                text = pick(self.hsk_pairs, rng).chinese
            elif kind == "mixed":
                text = self.sample_mixed(rng)
            elif short:
                text = phrase(pick(self._all_things, rng), kind, colour=rng.random() < 0.5)
            else:
                text = self.sample_sentence(rng, kind)
            voice = replace(sample_voice(self.split, rng), rate=int(rng.choice((175, 195, 225))))
            lines.append(SpeechLine(text, "en" if kind == "en" else "zh", voice, kind))
        return lines

    def tts_lines(self, count: int, *, seed: int) -> list[SpeechLine]:
        """English captions to speak, by the voices of `TTS_VOICES` in turn."""
        scenes = [self.sample_scene(self.rng(seed, 2, i)) for i in range(count)]
        texts = zip((caption(scene.placed_things, "en") for scene in scenes), cycle(TTS_VOICES), strict=False)
        return [SpeechLine(text, "en", voice, voice.variant) for text, voice in texts]

    def corpus(self, count: int, *, seed: int) -> Iterator[str]:
        """Text for a tokenizer: names, captions and sentences in three languages, questions, and everyday sentences.

        Spaces separate Chinese characters, as the tokenizer encodes them one by one.
        """
        rng = self.rng(seed, 3)
        for language in LANGUAGES:
            names = [thing.names[language] for thing in self._all_things]
            texts = [*names, *(self.sample_sentence(rng, language) for _ in range(count))]
            yield from (" ".join(text) for text in texts) if language == "zh" else texts
        for _ in range(count):
            yield from (text for _, text, _ in self.sample_scene(rng).questions)
        for pair in self.hsk_pairs:
            yield pair.english
            yield " ".join(pair.chinese)
