"""Samples the examples of each task of the multitask model.

`describe`: an image; its caption in one of three languages, sometimes continued from a given prefix.
`find`: an image; the labels and boxes of the things in it.
`answer`: an image and a written question, about it or about words alone; the answer.
`restore`: a damaged image, with or without a hint in text or speech; the original image.
`translate`: a sentence and an image of what it is about; its translation. Most sentences have an ambiguous word, whose
    meaning only the image tells.
`transcribe`: speech in noise; its text without punctuation.
`speak`: a sentence; its speech in one of several voices.

In training some images of `describe` and `find` are damaged; if a thing is removed, a hint names it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from omni_lab.batch import Modality
from omni_lab.data.tokenizer import DecoderTokenizer, encode_letters
from omni_lab.layers.mel import HOP_LENGTH
from omni_lab.worlds.captions import phrase
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import sample_voice, synthesize_cached
from omni_lab.worlds.scene import PlacedThing, add_noise, caption, pick, render_image, valid_captions
from omni_lab.worlds.sentence_sampler import TRANSCRIPTION_KINDS, TTS_VOICES, SentenceSampler
from omni_lab.worlds.things import LANGUAGES, Thing, background
from omni_lab.worlds.utterances import Utterances, ensure_utterances, letter_durations

TASKS = ("describe", "find", "answer", "restore", "translate", "transcribe", "speak")
DAMAGES = ("hole", "noise", "coarse")
DAMAGE_CYCLE = ("hole", "noise", "hole", "coarse")  # of consecutive batches: holes are learned slowest
HINTS = ("untold", "written", "spoken")
MAX_THINGS = 4  # in an image
PREFIX_PROB = 1 / 6  # of captions that are continued from a prefix
NO_IMAGE_PROB = 1 / 8  # in training, of captions and translations without the image
DAMAGE_PROB = 1 / 6  # in training, of damaged images in `describe` and `find`
VQA_FAMILIES = ("image_what", "image_where", "image_count", "text_sum", "text_letters", "text_translate")


@dataclass(frozen=True)
class TaskExample:
    """One example of a task; texts and references if a text is to be generated."""

    kind: str  # label in tables of results
    inputs: Mapping[Modality, Tensor]
    targets: Mapping[str, Tensor]
    text: tuple[str, str | None, str] | None = None  # control token, prefix if there is one, target
    references: Sequence[str] = ()  # all correct texts


class AskedQuestion(NamedTuple):
    """The question of an example of `answer`, and what its image shows."""

    placed: Sequence[PlacedThing]
    family: str
    text: str
    answer: str


@dataclass(eq=False)
class ExampleSampler:
    """Samples examples: example k of a task depends only on (world.seed, seed, split, task, k) and on the options."""

    world: EmojiWorld
    tokenizer: DecoderTokenizer
    split: str
    _: KW_ONLY
    examples: Mapping[str, int]  # number per task
    folder: Path  # caches synthesized speech
    seed: int = 0

    def __post_init__(self) -> None:
        self.sentences = SentenceSampler(self.world, self.split)
        self.things = self.sentences.things
        self.answers = list(self.world.answers())

    @cached_property
    def transcription_utterances(self) -> Utterances:
        lines = self.sentences.transcription_lines(self.examples["transcribe"], seed=self.seed)
        return ensure_utterances(lines, self.folder)

    @cached_property
    def tts_utterances(self) -> Utterances:
        return ensure_utterances(self.sentences.tts_lines(self.examples["speak"], seed=self.seed), self.folder)

    def caption_scene(self, k: int) -> tuple[Sequence[PlacedThing], UInt8[Tensor, "3 h w"]]:
        """The things in the image of example k of `describe`, and an undamaged image of them."""
        rng = self._rng("describe", k)
        placed = self.sentences.sample_scene(rng).placed_things
        return placed, self._render(placed, rng)

    def asked_question(self, k: int) -> AskedQuestion:
        """The question of example k of `answer`; its image is not rendered."""
        return self._ask(self._rng("answer", k))

    def inpainting_candidates(self, k: int) -> tuple[UInt8[Tensor, "n 3 h w"], Float[Tensor, " n"]]:
        """Example k of `restore` with each of the N things in place of the removed one, and their probabilities.

        The probabilities are those given the world, but not the split that a set of things belongs to: whether a thing
        that is still visible occurs once more depends on what else is visible.
        """
        base, placed, index = self._sample_damaged(self._rng("restore", k))
        visible = _count_others(placed, index)
        multiplicities = Counter(visible[thing] for thing in self.things)
        repeats = self._repeats[tuple(sorted(visible.values()))] or Counter({0: 1})
        chances = [repeats[visible[t]] / multiplicities[visible[t]] / repeats.total() for t in self.things]
        candidates = [[*placed[:index], replace(placed[index], thing=t), *placed[index + 1 :]] for t in self.things]
        return torch.from_numpy(np.stack([render_image(base, c) for c in candidates])), torch.tensor(chances)

    @cached_property
    def _repeats(self) -> Mapping[tuple[int, ...], Counter[int]]:
        """How often each number of the removed thing stays visible, by the sorted numbers of all visible things."""
        rng = self.sentences.rng(self.seed, 11)  # fixed, so that a new task does not move it
        found: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for _ in range(2000):
            placed = self.sentences.sample_scene(rng).placed_things
            index = int(rng.integers(len(placed)))
            visible = _count_others(placed, index)
            found[tuple(sorted(visible.values()))][visible[placed[index].thing]] += 1
        return found

    def _sample_damaged(self, rng: np.random.Generator) -> tuple[Image.Image, Sequence[PlacedThing], int]:
        """A background, the things on it, and the index of the one that a hole removes."""
        placed = self.sentences.sample_scene(rng).placed_things
        base = background(self.world.image_size, rng)
        return base, placed, int(rng.integers(len(placed)))

    def _describe(self, k: int, rng: np.random.Generator, damage: str | None = None) -> TaskExample:
        placed = self.sentences.sample_scene(rng).placed_things
        kind = language = str(rng.choice(LANGUAGES))
        captions = valid_captions(placed, language)
        target, prefix = pick(captions, rng), None
        words = re.findall(r"." if language == "zh" else r"\S+\s*", target)
        if rng.random() < PREFIX_PROB and len(words) > 2:
            cut = int(rng.integers(1, len(words) - 1))
            prefix, target = "".join(words[:cut]).rstrip(), "".join(words[cut:])
            start = prefix + ("" if language == "zh" else " ")  # "ein" is no prefix of "eine"
            captions = [c.removeprefix(start) for c in captions if c.startswith(start)]
            kind = f"{language}, begun"
        inputs = {} if self._without_image(k) else self._image_inputs(placed, damage, rng)
        return TaskExample(kind, inputs, {}, (language, prefix, target), captions)

    def _find(self, k: int, rng: np.random.Generator, damage: str | None = None) -> TaskExample:
        placed = self.sentences.sample_scene(rng).placed_things
        labels, boxes = torch.full((MAX_THINGS,), -1), torch.zeros(MAX_THINGS, 4)
        labels[: len(placed)] = torch.tensor([self.things.index(p.thing) for p in placed])
        boxes[: len(placed)] = torch.tensor([p.box for p in placed]) / self.world.image_size
        targets = {"labels": labels, "boxes": boxes.clamp(0, 1)}
        return TaskExample(str(len(placed)), self._image_inputs(placed, damage, rng), targets)

    def _ask(self, rng: np.random.Generator) -> AskedQuestion:
        """The question families that a scene allows are equally likely, and so are the questions of one family."""
        scene = self.sentences.sample_scene(rng)
        family = str(rng.choice([*dict.fromkeys(name for name, _, _ in scene.questions if name in VQA_FAMILIES)]))
        text, answer = pick([(text, answer) for name, text, answer in scene.questions if name == family], rng)
        return AskedQuestion(scene.placed_things, family, text, answer)

    def _answer(self, k: int, rng: np.random.Generator) -> TaskExample:
        placed, family, text, answer = self._ask(rng)
        scores = torch.zeros(len(self.answers))
        scores[self.answers.index(answer)] = 1.0
        inputs = {Modality.TEXT: self._encode(text), Modality.IMAGE: self._render(placed, rng)}
        return TaskExample(family, inputs, {"answer_scores": scores}, ("answer", None, answer), [answer])

    def _restore(self, k: int, rng: np.random.Generator, damage: str, hint: str | None = None) -> TaskExample:
        base, placed, index = self._sample_damaged(rng)
        original, removed = torch.from_numpy(render_image(base, placed)), placed[index]
        damaged, mask = damage_image(original, removed, damage, rng)
        language, sampled = str(rng.choice(LANGUAGES)), str(rng.choice(HINTS, p=(0.4, 0.4, 0.2)))
        hint = hint or sampled
        words = phrase(removed.thing, language, colour=True) if damage == "hole" else caption(placed, language)
        inputs = {Modality.IMAGE: damaged} | self._hint_inputs(hint, words, removed.thing, rng)
        targets = {"picture": original, "damaged": damaged} | ({} if mask is None else {"kept": mask})
        return TaskExample(f"{damage}, {hint}", inputs, targets)

    def _translate(self, k: int, rng: np.random.Generator) -> TaskExample:
        pair = self.sentences.sample_translation(rng)
        inputs = {Modality.TEXT: self._encode(pair.source)}
        if pair.placed and not self._without_image(k):
            inputs[Modality.IMAGE] = self._render(pair.placed, rng)
        return TaskExample(pair.kind, inputs, {}, (pair.direction[1], None, pair.target), [pair.target])

    def _transcribe(self, k: int, rng: np.random.Generator) -> TaskExample:
        """In training the SNR is anywhere from 5 to 40 dB; else it is 10 dB for one round of kinds, 40 for the next."""
        line = self.transcription_utterances.lines[k]
        clean = bool(k // len(TRANSCRIPTION_KINDS) % 2)
        snr = float(rng.uniform(5, 40)) if self.split == "train" else 40.0 if clean else 10.0
        kind = line.kind if self.split == "train" else f"{line.kind}, {'clean' if clean else '10 dB'}"
        text = strip_punctuation(line.text)
        audio = add_noise(self.transcription_utterances.waveform(k), snr, rng, self.split)
        return TaskExample(kind, {Modality.AUDIO: audio}, {}, ("transcript", None, text), [text])

    def _speak(self, k: int, rng: np.random.Generator) -> TaskExample:
        line, waveform = self.tts_utterances.lines[k], self.tts_utterances.waveform(k)
        frames = -(-len(waveform) // HOP_LENGTH)
        targets = {
            "ids": encode_letters([line.text])[0],
            "voice": torch.tensor(TTS_VOICES.index(line.voice)),
            "durations": torch.tensor(letter_durations(line.text, self.tts_utterances.words(k), frames)),
            "wave": torch.from_numpy(np.pad(waveform, (0, frames * HOP_LENGTH - len(waveform)))),
        }
        return TaskExample(line.kind, {Modality.TEXT: self._encode(line.text)}, targets)

    def _rng(self, task: str, *key: int) -> np.random.Generator:
        return self.sentences.rng(self.seed, 4 + TASKS.index(task), *key)

    def _without_image(self, k: int) -> bool:
        return self.split == "train" and k % round(1 / NO_IMAGE_PROB) == 0

    def _image_inputs(
        self, placed: Sequence[PlacedThing], damage: str | None, rng: np.random.Generator
    ) -> dict[Modality, Tensor]:
        """An image, damaged if `damage` is given or, sometimes, in training; a hole comes with a hint."""
        image = self._render(placed, rng)
        if damage is None and self.split == "train" and rng.random() < DAMAGE_PROB:
            damage = str(rng.choice(DAMAGE_CYCLE))
        if damage is None:
            return {Modality.IMAGE: image}
        removed = pick(placed, rng)
        damaged, _ = damage_image(image, removed, damage, rng)
        hint = str(rng.choice(HINTS[1:])) if damage == "hole" else "untold"
        words = phrase(removed.thing, str(rng.choice(LANGUAGES)), colour=True)
        return {Modality.IMAGE: damaged} | self._hint_inputs(hint, words, removed.thing, rng)

    def _hint_inputs(self, hint: str, words: str, thing: Thing, rng: np.random.Generator) -> dict[Modality, Tensor]:
        """The words for "written", the English name of the thing for "spoken"."""
        if hint == "written":
            return {Modality.TEXT: self._encode(words)}
        if hint == "spoken":
            voice = replace(sample_voice(self.split, rng), rate=195, pitch=40)
            name = synthesize_cached(thing.names["en"], voice)
            return {Modality.AUDIO: add_noise(name.waveform, 30.0, rng, self.split)}
        return {}

    def _encode(self, text: str) -> Int[Tensor, " t"]:
        return torch.tensor(self.tokenizer.encode_input(text))

    def _render(self, placed: Sequence[PlacedThing], rng: np.random.Generator) -> UInt8[Tensor, "3 h w"]:
        return torch.from_numpy(render_image(background(self.world.image_size, rng), placed))


def _count_others(placed: Sequence[PlacedThing], index: int) -> Counter[Thing]:
    return Counter(p.thing for i, p in enumerate(placed) if i != index)


@lru_cache(maxsize=65536)
def strip_punctuation(text: str) -> str:
    """Removes what cannot be heard."""
    return re.sub(r"[^\w\s'-]", "", text)


def damage_image(
    image: UInt8[Tensor, "3 h w"], removed: PlacedThing, damage: str, rng: np.random.Generator
) -> tuple[UInt8[Tensor, "3 h w"], Bool[Tensor, "h w"] | None]:
    """The damaged image and, for a hole, a mask of the pixels outside it.

    damage: "hole" blackens the box of `removed`; "noise" adds normal noise with standard deviation 60 of 255; "coarse"
        averages every 4 x 4 pixels.
    """
    size = image.shape[-1]
    if damage == "hole":
        mask = torch.ones(size, size, dtype=torch.bool)
        left, top, right, bottom = (round(min(max(edge, 0), size)) for edge in removed.box)
        mask[top:bottom, left:right] = False
        return image * mask, mask
    if damage == "noise":
        noise = torch.from_numpy(rng.normal(0, 60, tuple(image.shape)).astype(np.float32))
        return (image + noise).clamp(0, 255).to(torch.uint8), None
    coarse = torch.nn.functional.avg_pool2d(image.float(), 4)
    return coarse.repeat_interleave(4, 1).repeat_interleave(4, 2).round().to(torch.uint8), None
