"""TalkingFace: a face whose mouth follows the phonemes of what is said, or of something else, or too early or late.

Sound and lips are the strongly associated pair: neither alone says whether they belong together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily
from omni_lab.utils.parallel import parallel_map
from omni_lab.worlds.captions import RELATIONS, relation
from omni_lab.worlds.espeak import Utterance
from omni_lab.worlds.scene import SpeechTrack, mix_audio, sample_voice, synthesize_cached
from omni_lab.worlds.things import background, thing_vocabulary

SECONDS = 2.0
LEAST_SHIFT = 0.25  # seconds between two starts that count as out of step
QUESTION = "do the lips follow the speech?"
# How far the mouth is open, and how wide, for eSpeak's phonemes by their first letters; the longest match counts.
_VISEMES = {
    **dict.fromkeys(("p", "b", "m"), (0.0, 0.5)),
    **dict.fromkeys(("f", "v"), (0.12, 0.6)),
    **dict.fromkeys(("w", "u", "U"), (0.35, 0.15)),
    **dict.fromkeys(("o", "O", "0"), (0.7, 0.3)),
    **dict.fromkeys(("a", "A", "V", "aI", "aU"), (1.0, 0.65)),
    **dict.fromkeys(("e", "E", "3", "@"), (0.6, 0.65)),
    **dict.fromkeys(("i", "I", "j"), (0.35, 1.0)),
    **dict.fromkeys(("t", "d", "n", "s", "z", "l", "T", "D"), (0.25, 0.6)),
    **dict.fromkeys(("k", "g", "N", "h", "r", "S", "Z"), (0.35, 0.5)),
    "_": (0.0, 0.5),
}
_CLOSED = (0.0, 0.5)


def viseme(phoneme: str) -> tuple[float, float]:
    """(open, wide), each in [0, 1], of a phoneme in eSpeak's notation; stress marks do not matter."""
    bare = phoneme.lstrip("',%=")
    return next((_VISEMES[bare[:n]] for n in (2, 1) if bare[:n] in _VISEMES), (0.3, 0.5))


def mouth(utterance: Utterance, times: np.ndarray, *, start: float = 0.0) -> np.ndarray:
    """[T, 2], how open and how wide the mouth is at `times` [T] in seconds if the utterance begins at `start`.

    Each phoneme's viseme holds in the middle of the phoneme; between two the mouth moves evenly, and it is closed
    before and after.
    """
    middles = [start, *(start + (m.start + m.end) / 2 for m in utterance.phonemes), start + utterance.seconds]
    shapes = np.array([_CLOSED, *(viseme(m.label) for m in utterance.phonemes), _CLOSED])
    order = np.argsort(middles, kind="stable")
    clock = np.array(middles)[order]
    return np.stack([np.interp(times, clock, shapes[order, k]) for k in range(2)], axis=1)


@dataclass(frozen=True)
class FaceClip:
    """One pair. kind: matched, shifted or swapped. The sound says `text` from `start`; the lips say `lips` from
    `lips_start`."""

    key: int
    split: str
    kind: str
    text: str
    start: float
    lips: str
    lips_start: float
    sound: SpeechTrack


@dataclass(frozen=True)
class TalkingFace:
    """clips: per split. frames: evenly over two seconds. snr: of the sound, in dB, from least to most. Half of the
    pairs match; the others are shifted or swapped."""

    clips: Mapping[str, int] = field(default_factory=lambda: {"train": 2000, "validation": 300, "test": 500})
    frames: int = 20
    frame_size: int = 32
    snr: tuple[float, float] = (0.0, 30.0)
    seed: int = 0
    _drawn: dict[str, list[FaceClip]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        low, high = self.snr
        return f"talking_face_{sum(self.clips.values())}_{low:g}_to_{high:g}db_seed{self.seed}"

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]:
        return {Modality.AUDIO: (), Modality.VIDEO: (self.frames, 3, self.frame_size, self.frame_size)}

    def fingerprint(self) -> dict[str, Any]:
        return {
            "rules": 2,
            "clips": dict(self.clips),
            "snr": list(self.snr),
            "frames": self.frames,
            "seed": self.seed,
            "espeakng-loader": version("espeakng-loader"),
        }

    def answers(self) -> Sequence[str]:
        return ["no", "yes"]

    def families(self) -> Mapping[str, QuestionFamily]:
        pair = (Modality.AUDIO, Modality.VIDEO)
        return dict.fromkeys(("in_step",), QuestionFamily(pair, (pair,), 1 / 2))

    def corpus(self) -> Sequence[str]:
        return ()

    def pairs(self, split: str) -> list[FaceClip]:
        """The clips of a split, always the same ones."""
        if split not in self._drawn:
            first = sum(self.clips[s] for s in SPLITS[: SPLITS.index(split)])
            keys = range(first, first + self.clips[split])
            self._drawn[split] = list(parallel_map(partial(replace(self).pair, split), keys))
        return self._drawn[split]

    def pair(self, split: str, key: int) -> FaceClip:
        """Both starts are drawn alike whether or not they are used, so neither stream alone tells the kind."""
        rng = np.random.default_rng([self.seed, key, 0])
        voice = sample_voice(split, rng)
        texts = [_sentence(rng) for _ in range(2)]
        room = SECONDS - max(synthesize_cached(text, voice).seconds for text in texts)
        if room < LEAST_SHIFT + 0.1:  # too long to be shifted: say it shorter
            texts = [" ".join(text.split()[:2]) for text in texts]
            room = SECONDS - max(synthesize_cached(text, voice).seconds for text in texts)
        starts = rng.uniform(0, room, size=2)
        while abs(starts[0] - starts[1]) < LEAST_SHIFT:
            starts = rng.uniform(0, room, size=2)
        kind = ("matched", "matched", "shifted", "swapped")[int(rng.integers(4))]
        lips = texts[1] if kind == "swapped" else texts[0]
        lips_start = starts[1] if kind == "shifted" else starts[0]
        sound = SpeechTrack(((texts[0], float(starts[0])),), voice, float(rng.uniform(*self.snr)), SECONDS)
        return FaceClip(key, split, kind, texts[0], float(starts[0]), lips, float(lips_start), sound)

    def questions(self) -> Mapping[str, Sequence[Question]]:
        return {
            split: [
                Question(
                    str(pair.key),
                    QUESTION,
                    "in_step",
                    pair.key,
                    {"yes" if pair.kind == "matched" else "no": 1.0},
                    dict.fromkeys((Modality.AUDIO, Modality.VIDEO), pair.key),
                )
                for pair in self.pairs(split)
            ]
            for split in SPLITS
        }

    def media(self, modality: Modality) -> Iterator[MediaItem]:
        pairs = [pair for split in SPLITS for pair in self.pairs(split)]
        return parallel_map(partial(replace(self).medium, modality), pairs)  # a copy without the clips it has drawn

    def medium(self, modality: Modality, pair: FaceClip) -> MediaItem:
        """The sound of a clip, or its frames."""
        if modality is Modality.VIDEO:
            return MediaItem(pair.key, self.draw(pair), {"kind": pair.kind, "lips_start": pair.lips_start})
        utterance = synthesize_cached(pair.text, pair.sound.voice)
        samples = mix_audio(pair.sound, [utterance], np.random.default_rng([self.seed, pair.key, 1]))
        words = [[m.label, pair.start + m.start, pair.start + m.end] for m in utterance.words]
        return MediaItem(pair.key, samples, {"words": words, "snr_db": round(pair.sound.snr, 1)})

    def draw(self, pair: FaceClip) -> np.ndarray:
        """[F, 3, h, w] uint8."""
        rng = np.random.default_rng([self.seed, pair.key, 2])
        times = (np.arange(self.frames) + 0.5) * SECONDS / self.frames
        shapes = mouth(synthesize_cached(pair.lips, pair.sound.voice), times, start=pair.lips_start)
        return draw_faces(shapes, self.frame_size, rng)


def draw_faces(shapes: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """One face, a frame for each (open, wide) of `shapes` [F, 2]. [F, 3, size, size] uint8."""
    scale = 4  # drawn larger, then averaged: the mouth's edge moves by less than a pixel
    side = size * scale
    base = background(side, rng)
    skin = tuple(int(c) for c in np.array([205, 160, 130]) * rng.uniform(0.45, 1.15) + rng.uniform(-10, 10, size=3))
    x, y = rng.uniform(-0.04, 0.04, size=2) * side + side / 2
    pen = ImageDraw.Draw(base)
    pen.ellipse((x - 0.42 * side, y - 0.47 * side, x + 0.42 * side, y + 0.47 * side), fill=skin)
    for eye in (-1, 1):
        middle = x + eye * 0.17 * side
        pen.ellipse((middle - 0.05 * side, y - 0.2 * side, middle + 0.05 * side, y - 0.1 * side), fill=(30, 30, 40))
    frames = []
    for openness, width in shapes:
        face = base.copy()
        half_width, half_height = (0.1 + 0.14 * width) * side, (0.012 + 0.13 * openness) * side
        box = (x - half_width, y + 0.22 * side - half_height, x + half_width, y + 0.22 * side + half_height)
        ImageDraw.Draw(face).ellipse(box, fill=(110, 20, 30))
        small = face.resize((size, size), Image.Resampling.BOX)
        frames.append(np.asarray(small)[..., :3].transpose(2, 0, 1))
    return np.stack(frames)


def _sentence(rng: np.random.Generator) -> str:
    things = [thing_vocabulary(32)[i] for i in rng.permutation(32)[:2]]
    where = [*RELATIONS][int(rng.integers(4))]
    return relation(things[0], where, things[1], "en")
