"""What heads are trained on and tested with: batches that are drawn afresh, each of one task.

`describe`: a picture and its caption, in one of three languages; some are begun already. `find`: a picture, and what
stands where in it. (In training some of these pictures are damaged; if a thing is gone, it is named.) `answer`: a
picture, and a written question, about it or about words alone. `restore`: a damaged picture, with or without words,
written or spoken, that say what is missing. `translate`: a sentence, and a picture of what it speaks of; in most, a
word means two things, and only the picture says which. `transcribe`: a sound, and what is said in it. `speak`: a
sentence, and how it sounds in one of several voices.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from omni_lab.batch import SAMPLE_RATE, Modality, OmniBatch
from omni_lab.data.collate import Sample, collate
from omni_lab.data.sources.base import SPLITS
from omni_lab.data.tokenizer import DecoderTokenizer, encode_letters
from omni_lab.layers.mel import HOP_LENGTH
from omni_lab.worlds.captions import phrase
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.scene import PlacedThing, caption, coloured_noise, render_image, sample_voice, synthesize_cached
from omni_lab.worlds.sentence_sampler import RNG_STREAMS, TRANSCRIPTION_KINDS, TTS_VOICES, SentenceSampler
from omni_lab.worlds.things import LANGUAGES, Thing, background
from omni_lab.worlds.utterances import Utterances, ensure_utterances, letter_durations

TASKS = ("describe", "find", "answer", "restore", "translate", "transcribe", "speak")
DAMAGES = ("hole", "noise", "coarse")
DAMAGE_CYCLE = (
    "hole",
    "noise",
    "hole",
    "coarse",
)  # in which batches are damaged: what stood in a hole is learned slowest
HINTS = ("untold", "written", "spoken")
_CHOICES = {"damage": DAMAGES, "hint": HINTS}
_WANTED = {"restore": ("damage", "hint"), "describe": ("damage",), "find": ("damage",)}
MAX_THINGS = 4  # things in a picture
RULES_VERSION = (
    1  # raise it when the same example of a split is drawn otherwise: models of before are then trained anew
)
PREFIX_PROB, NO_IMAGE_PROB = (
    1 / 6,
    1 / 8,
)  # of captions begun; in training, of captions and translations without the picture
DAMAGE_PROB = 1 / 6  # of the pictures to be described or searched, damaged, in training
VQA_FAMILIES = ("image_what", "image_where", "image_count", "text_sum", "text_letters", "text_translate")


@dataclass(frozen=True)
class TaskBatch:
    """One batch of one task. batch: what the model is given, kinds of samples as its families, and as targets "prompt",
    "target" (token ids), "answer_scores", "labels" [B, 4] (-1 where there is nothing), "boxes" [B, 4, 4] as shares of
    the sides, "picture" (whole), "damaged", "kept", "ids" (letters), "voice", "durations" (frames), "wave" [B, S], as
    the task has them. references: of each text, all that would be right."""

    task: str
    batch: OmniBatch
    references: Sequence[Sequence[str]] = ()

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def inputs(self) -> Mapping[Modality, Any]:
        return self.batch.inputs

    @property
    def targets(self) -> Mapping[str, Tensor]:
        return self.batch.targets

    @property
    def kinds(self) -> Sequence[str]:
        return self.batch.families

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TaskBatch:
        return replace(self, batch=self.batch.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class TaskExample:
    """One sample before it is put in a batch. written: of its text, the mark, the beginning if there is one, and the
    rest. references: all that would be right."""

    kind: str
    inputs: Mapping[Modality, Tensor]
    targets: Mapping[str, Tensor]
    written: tuple[str, str | None, str] | None = None
    references: Sequence[str] = ()


class TaskDataset(Dataset[TaskBatch]):
    """Sample k of a task depends on (world.seed, seed, split, task, k), on how its batch is damaged, and, in the noise
    over what is heard, on the batch's number. A task has so many `examples`; a batch is of `sizes` of one task. In
    training, batch i is of a task drawn by `mix`, how often each comes, and of samples drawn from its examples; else
    batches go through the examples of each task in turn.

    folder: where what is spoken is kept.
    """

    def __init__(
        self,
        world: EmojiWorld,
        codec: DecoderTokenizer,
        split: str,
        *,
        sizes: Mapping[str, int],
        examples: Mapping[str, int],
        folder: Path,
        mix: Mapping[str, float],
        seed: int = 0,
    ) -> None:
        unknown = [task for task in mix if task not in TASKS]
        if unknown or not mix:
            raise ValueError(f"tasks must be of {TASKS}: got {[*mix]}")
        self.sayings = SentenceSampler(world, split)
        self.world = world
        self.tokenizer = codec
        self.split = split
        self.sizes = sizes
        self.examples = examples
        self.folder = folder
        self.mix = mix
        self.seed = seed
        self.answers = list(world.answers())
        self.things = self.sayings.things
        self.index = {thing.names["en"]: i for i, thing in enumerate(self.things)}
        self.batches = [(t, k) for t in mix for k in range(-(-examples[t] // sizes[t]))]

    @cached_property
    def transcription_utterances(self) -> Utterances:
        return ensure_utterances(
            self.sayings.transcription_lines(self.examples["transcribe"], seed=self.seed), self.folder
        )

    @cached_property
    def tts_utterances(self) -> Utterances:
        return ensure_utterances(self.sayings.tts_lines(self.examples["speak"], seed=self.seed), self.folder)

    def prepare(self) -> None:
        """Speaks what is to be spoken, if it has not been."""
        for task, lines in (("transcribe", "transcription_utterances"), ("speak", "tts_utterances")):
            if task in self.mix:
                getattr(self, lines)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> TaskBatch:
        if self.split != "train":
            task, k = self.batches[i]
            first = k * self.sizes[task]
            return self.batch(task, range(first, min(first + self.sizes[task], self.examples[task])))
        rng = np.random.default_rng([self.world.seed, self.seed, RNG_STREAMS[self.split], i])
        weights = np.array([*self.mix.values()])
        task = str(rng.choice([*self.mix], p=weights / weights.sum()))
        return self.batch(task, rng.integers(self.examples[task], size=self.sizes[task]).tolist(), take=i)

    def batch(self, task: str, examples: Sequence[int], *, take: int = 0, **wanted: Any) -> TaskBatch:
        """Some examples of a task. take: the noise over what is to be transcribed differs between takes. wanted: of
        what is to be restored, the "damage" (of `DAMAGES`; else they take turns) and the "hint" (of `HINTS`; else each
        is drawn); of what is to be described or searched, a "damage". Raises ValueError for anything else."""
        if task not in TASKS:
            raise ValueError(f"task must be of {TASKS}: got {task!r}")
        for name, value in wanted.items():
            if name not in _WANTED.get(task, ()) or value not in _CHOICES[name]:
                known = {name: _CHOICES[name] for name in _WANTED.get(task, ())}
                raise ValueError(f"{task}: of its examples can be wanted {known or 'nothing'}: got {name}={value!r}")
        maker: Callable[..., TaskExample] = getattr(self, f"_{task}")
        if task == "restore":
            turn = take if self.split == "train" else examples[0] // self.sizes[task]
            wanted = {"damage": DAMAGE_CYCLE[turn % len(DAMAGE_CYCLE)], **wanted}
        drawn = []
        for k in examples:
            drawn.append(maker(k, self._rng(task, k), self._rng(task, k, take), **wanted))
        names = [f"{self.split}-{task}-{k}" for k in examples]
        samples = [Sample(name, task, d.kind, d.inputs) for name, d in zip(names, drawn, strict=True)]
        batch = collate(samples)
        targets = {name: _padded(name, [d.targets[name] for d in drawn]) for name in drawn[0].targets}
        written = [d.written for d in drawn if d.written is not None]
        if written:
            marks, begun, rest = zip(*written, strict=True)
            targets |= {
                "prompt": self.tokenizer.encode_prompts(marks, begun),
                "target": self.tokenizer.encode_targets(rest),
            }
        return TaskBatch(task, replace(batch, targets=targets), [d.references for d in drawn] if written else ())

    def caption_scene(self, k: int) -> tuple[Sequence[PlacedThing], UInt8[Tensor, "3 h w"]]:
        """What stands in the picture of example k of `describe`, and a picture of it that is whole."""
        rng = self._rng("describe", k)
        placed = self.sayings.scene(rng).picture
        return placed, self._shown(placed, rng)

    def inpainting_candidates(self, k: int) -> tuple[UInt8[Tensor, "n 3 h w"], Float[Tensor, " n"]]:
        """Example k of `restore` with each of the things in the place of that which is gone, and how likely each is, to
        one who knows this world, but not which sets of things belong to which split: whether a thing that is still to
        be seen comes again depends on what else is seen."""
        base, picture, which = self._torn(self._rng("restore", k))
        gone, seen = picture[which], _numbers(picture, which)
        alike = Counter(seen[thing] for thing in self.things)
        often = self._repeats[tuple(sorted(seen.values()))] or Counter({0: 1})
        chances = [often[seen[thing]] / alike[seen[thing]] / often.total() for thing in self.things]
        others = [[*picture[:which], replace(gone, thing=t), *picture[which + 1 :]] for t in self.things]
        return torch.from_numpy(np.stack([render_image(base, placed) for placed in others])), torch.tensor(chances)

    @cached_property
    def _repeats(self) -> Mapping[tuple[int, ...], Counter[int]]:
        """By how many of each thing are seen, how often so many are seen of the one gone: in scenes drawn anew."""
        rng = np.random.default_rng([self.world.seed, self.seed, RNG_STREAMS[self.split], 4 + len(TASKS)])
        found: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for _ in range(2000):
            picture = self.sayings.scene(rng).picture
            which = int(rng.integers(len(picture)))
            seen = _numbers(picture, which)
            found[tuple(sorted(seen.values()))][seen[picture[which].thing]] += 1
        return found

    def _torn(self, rng: np.random.Generator) -> tuple[Image.Image, Sequence[PlacedThing], int]:
        """A background, what stands before it, and which of that will be gone."""
        picture = self.sayings.scene(rng).picture
        base = background(self.world.image_size, rng)
        return base, picture, int(rng.integers(len(picture)))

    def _describe(
        self, k: int, rng: np.random.Generator, noise: np.random.Generator, *, damage: str | None = None
    ) -> TaskExample:
        picture = self.sayings.scene(rng).picture
        language = str(rng.choice(LANGUAGES))
        every = valid_captions(picture, language)
        chosen, begun = every[int(rng.integers(len(every)))], None
        kind = language
        words = re.findall(r"\S+\s*" if language != "zh" else r".", chosen)
        if rng.random() < PREFIX_PROB and len(words) > 2:
            cut = int(rng.integers(1, len(words) - 1))
            begun, chosen = "".join(words[:cut]).rstrip(), "".join(words[cut:])
            space = "" if language == "zh" else " "  # "ein" does not begin "eine"
            every = [c.removeprefix(begun + space) for c in every if c.startswith(begun + space)]
            kind = f"{language}, begun"
        inputs = self._given(picture, damage, rng)
        if self.split == "train" and k % round(1 / NO_IMAGE_PROB) == 0:
            inputs = {}
        return TaskExample(kind, inputs, {}, (language, begun, chosen), every)

    def _find(
        self, k: int, rng: np.random.Generator, noise: np.random.Generator, *, damage: str | None = None
    ) -> TaskExample:
        picture = self.sayings.scene(rng).picture
        labels, boxes = torch.full((MAX_THINGS,), -1), torch.zeros(MAX_THINGS, 4)
        for i, placed in enumerate(picture):
            labels[i] = self.index[placed.thing.names["en"]]
            boxes[i] = torch.tensor(placed.box) / self.world.image_size
        targets = {"labels": labels, "boxes": boxes.clamp(0, 1)}
        return TaskExample(str(len(picture)), self._given(picture, damage, rng), targets)

    def _answer(self, k: int, rng: np.random.Generator, noise: np.random.Generator) -> TaskExample:
        """The kinds of question that a scene allows come equally often, and so do the questions of one kind."""
        scene = self.sayings.scene(rng)
        family = str(rng.choice([*dict.fromkeys(family for family, _, _ in scene.questions if family in VQA_FAMILIES)]))
        asked = [(text, answer) for kind, text, answer in scene.questions if kind == family]
        text, answer = asked[int(rng.integers(len(asked)))]
        scores = torch.zeros(len(self.answers))
        scores[self.answers.index(answer)] = 1.0
        inputs = {Modality.TEXT: self._read(text), Modality.IMAGE: self._shown(scene.picture, rng)}
        return TaskExample(family, inputs, {"answer_scores": scores}, ("answer", None, answer), [answer])

    def _restore(
        self, k: int, rng: np.random.Generator, noise: np.random.Generator, *, damage: str, hint: str = ""
    ) -> TaskExample:
        base, picture, which = self._torn(rng)
        whole, gone = torch.from_numpy(render_image(base, picture)), picture[which]
        damaged, kept = damage_image(whole, gone, damage, rng)
        language, drawn = str(rng.choice(LANGUAGES)), str(rng.choice(HINTS, p=(0.4, 0.4, 0.2)))
        hint = hint or drawn
        words = phrase(gone.thing, language, colour=True) if damage == "hole" else caption(picture, language)
        inputs = {Modality.IMAGE: damaged} | self._hint(hint, words, gone.thing, rng)
        targets = {"picture": whole, "damaged": damaged} | ({} if kept is None else {"kept": kept})
        return TaskExample(f"{damage}, {hint}", inputs, targets)

    def _translate(self, k: int, rng: np.random.Generator, noise: np.random.Generator) -> TaskExample:
        saying = self.sayings.sample_translation(rng)
        inputs = {Modality.TEXT: self._read(saying.source)}
        if saying.placed and not (self.split == "train" and k % round(1 / NO_IMAGE_PROB) == 0):
            inputs[Modality.IMAGE] = self._shown(saying.placed, rng)
        return TaskExample(saying.kind, inputs, {}, (saying.direction[1], None, saying.target), [saying.target])

    def _transcribe(self, k: int, rng: np.random.Generator, noise: np.random.Generator) -> TaskExample:
        """In training noise is anywhere from 5 to 40 dB below the voice, and drawn anew every time; else every other
        batch of kinds has noise of 10 dB, the rest next to none."""
        line = self.transcription_utterances.lines[k]
        clean = bool(k // len(TRANSCRIPTION_KINDS) % 2)
        ratio = float(noise.uniform(5, 40)) if self.split == "train" else 40.0 if clean else 10.0
        kind = line.kind if self.split == "train" else f"{line.kind}, {'clean' if clean else '10 dB'}"
        text = strip_punctuation(line.text)
        sound = _in_noise(self.transcription_utterances.sound(k), ratio, noise, self.split)
        return TaskExample(kind, {Modality.AUDIO: sound}, {}, ("transcript", None, text), [text])

    def _speak(self, k: int, rng: np.random.Generator, noise: np.random.Generator) -> TaskExample:
        line, sound = self.tts_utterances.lines[k], self.tts_utterances.sound(k)
        frames = -(-len(sound) // HOP_LENGTH)
        wave = np.zeros(frames * HOP_LENGTH, dtype=np.float32)
        wave[: len(sound)] = sound
        durations = letter_durations(line.text, self.tts_utterances.words(k), frames)
        targets = {
            "ids": encode_letters([line.text])[0],
            "voice": torch.tensor(TTS_VOICES.index(line.voice)),
            "durations": torch.tensor(durations),
            "wave": torch.from_numpy(wave),
        }
        return TaskExample(line.kind, {Modality.TEXT: self._read(line.text)}, targets)

    def _rng(self, task: str, k: int, *take: int) -> np.random.Generator:
        key = [self.world.seed, self.seed, RNG_STREAMS[self.split], 4 + TASKS.index(task), k, *take]
        return np.random.default_rng(key)

    def _given(
        self, picture: Sequence[PlacedThing], damage: str | None, rng: np.random.Generator
    ) -> dict[Modality, Tensor]:
        """A picture as it is, or with the damage; in training `TORN` of them have any. If one of the things is gone,
        it is named, written or spoken."""
        shown = self._shown(picture, rng)
        if damage is None and self.split == "train" and rng.random() < DAMAGE_PROB:
            damage = str(rng.choice(DAMAGE_CYCLE))
        if damage is None:
            return {Modality.IMAGE: shown}
        gone = picture[int(rng.integers(len(picture)))]
        damaged, _ = damage_image(shown, gone, damage, rng)
        hint = str(rng.choice(HINTS[1:])) if damage == "hole" else "untold"
        words = phrase(gone.thing, str(rng.choice(LANGUAGES)), colour=True)
        return {Modality.IMAGE: damaged} | self._hint(hint, words, gone.thing, rng)

    def _hint(self, hint: str, words: str, thing: Thing, rng: np.random.Generator) -> dict[Modality, Tensor]:
        """The words, if they are to be "written"; the thing's English name, if it is to be "spoken"."""
        if hint == "written":
            return {Modality.TEXT: self._read(words)}
        if hint == "spoken":
            voice = replace(sample_voice(self.split, rng), rate=195, pitch=40)
            return {
                Modality.AUDIO: _in_noise(synthesize_cached(thing.names["en"], voice).waveform, 30.0, rng, self.split)
            }
        return {}

    def _read(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode_input(text))

    def _shown(self, placed: Sequence[PlacedThing], rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(render_image(background(self.world.image_size, rng), placed))


def _numbers(picture: Sequence[PlacedThing], without: int) -> Counter[Thing]:
    return Counter(placed.thing for i, placed in enumerate(picture) if i != without)


def _padded(name: str, values: Sequence[Tensor]) -> Tensor:
    """Stacked; where lengths differ, filled up behind: letters with -1, all else with 0."""
    if values[0].ndim == 0 or len({len(v) for v in values}) == 1:
        return torch.stack([*values])
    return torch.nn.utils.rnn.pad_sequence([*values], batch_first=True, padding_value=-1 if name == "ids" else 0)


def _in_noise(samples: np.ndarray, ratio: float, rng: np.random.Generator, split: str) -> Tensor:
    """[S] float32 at some loudness, with noise so many dB below the voice."""
    noises = _noises(split)[int(rng.integers(3))]
    start = int(rng.integers(len(noises) - len(samples)))
    noise = noises[start : start + len(samples)]
    heard = samples + noise * np.float32(samples.std() / noise.std() / 10 ** (ratio / 20))
    return torch.from_numpy(heard * np.float32(rng.uniform(0.3, 0.9)) / np.abs(heard).max())


@cache
def _noises(split: str) -> np.ndarray:
    """[3, S] float32: half a minute of white, pink and brown noise, which no other split hears."""
    rng = np.random.default_rng(SPLITS.index(split))
    return np.stack([coloured_noise(30 * SAMPLE_RATE, rng, slope=slope) for slope in (0.0, 0.5, 1.0)])


@lru_cache(maxsize=65536)
def strip_punctuation(text: str) -> str:
    """What can be heard of a text."""
    return re.sub(r"[^\w\s'-]", "", text)


def valid_captions(scene: Sequence[PlacedThing], language: str) -> list[str]:
    """All that the grammar can say of a picture: whatever stands there may be named in any order."""
    return list(dict.fromkeys(caption(order, language) for order in itertools.permutations(scene)))


def damage_image(
    picture: Tensor, gone: PlacedThing, damage: str, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """A damaged picture [3, H, W] uint8, and which of its pixels [H, W] are as they were, where any are. "hole": where
    one of the things stands it is black. "noise": normal, 60 of 255. "coarse": every 4 x 4 pixels are one colour."""
    size = picture.shape[-1]
    if damage == "hole":
        kept = torch.ones(size, size, dtype=torch.bool)
        left, top, right, bottom = (round(min(max(edge, 0), size)) for edge in gone.box)
        kept[top:bottom, left:right] = False
        return picture * kept, kept
    if damage == "noise":
        noise = torch.from_numpy(rng.normal(0, 60, tuple(picture.shape)).astype(np.float32))
        return (picture + noise).clamp(0, 255).to(torch.uint8), None
    few = torch.nn.functional.avg_pool2d(picture.float(), 4)
    return few.repeat_interleave(4, 1).repeat_interleave(4, 2).round().to(torch.uint8), None
