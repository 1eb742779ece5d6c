"""A scene, its captions, and how its image, video and audio are rendered."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from omni_lab.batch import SAMPLE_RATE
from omni_lab.data.sources.base import SPLITS
from omni_lab.worlds.captions import listing, relation
from omni_lab.worlds.espeak import Utterance, Voice
from omni_lab.worlds.things import LANGUAGES, Thing, sprite

T = TypeVar("T")
CLIP_SECONDS = 2.0  # length of every video


@dataclass(frozen=True)
class PlacedThing:
    """A thing at its place in an image or a frame."""

    thing: Thing
    x: float  # centre in pixels
    y: float
    size: int  # side in pixels
    angle: float  # degrees, counter-clockwise

    @property
    def box(self) -> list[float]:
        """Left, top, right and bottom in pixels."""
        return [self.x - self.size / 2, self.y - self.size / 2, self.x + self.size / 2, self.y + self.size / 2]


@dataclass(frozen=True)
class MovingThing(PlacedThing):
    """A thing in a video."""

    act: str = "stay"  # or "move", "appear", "disappear", "blink", "steady"
    axis: str = "x"  # or "y"
    sign: int = 1  # direction along the axis, 1 or -1

    def at(self, progress: float) -> PlacedThing | None:
        """Its place when a fraction `progress` of the video has passed; None while it is invisible."""
        if (self.act == "appear" and progress < 0.5) or (self.act == "disappear" and progress > 0.5):
            return None
        if self.act == "blink" and int(progress * 4) % 2:
            return None
        offset = self.sign * (progress - 0.5) * 18 if self.act == "move" else 0.0
        dx, dy = (offset, 0.0) if self.axis == "x" else (0.0, offset)
        return PlacedThing(self.thing, self.x + dx, self.y + dy, self.size, self.angle)


@dataclass(frozen=True)
class SpeechTrack:
    """What one voice says when, and in how much noise."""

    utterances: tuple[tuple[str, float], ...]  # words, start in seconds
    voice: Voice
    snr: float  # signal-to-noise ratio in dB
    seconds: float = 1.0  # minimum length

    @property
    def noisy(self) -> bool:
        return self.snr < 15


@dataclass(frozen=True)
class Scene:
    """Everything that the media and the questions of one scene are made from."""

    key: int  # of its image, its video and its audio
    split: str
    placed_things: tuple[PlacedThing, ...]
    moving_things: tuple[MovingThing, ...]
    speech: SpeechTrack | None
    named_things: tuple[Thing, ...]  # in the speech, in order
    midpoints: tuple[float, ...]  # of these names, in seconds
    questions: tuple[tuple[str, str, str], ...] = ()  # family, text, answer
    spoken_questions: tuple[tuple[str, str, str], ...] = ()  # each spoken in one of the spoken tracks
    spoken_tracks: tuple[SpeechTrack, ...] = ()

    def image_annotations(self) -> dict[str, Any]:
        return {
            "objects": [{"thing": p.thing.names["en"], "box": p.box} for p in self.placed_things],
            "captions": {language: caption(self.placed_things, language) for language in LANGUAGES},
        }

    def video_annotations(self) -> dict[str, Any]:
        moving = self.moving_things
        objects = [{"thing": m.thing.names["en"], "act": m.act, "axis": m.axis, "sign": m.sign} for m in moving]
        return {"seconds": CLIP_SECONDS, "objects": objects}


def render_image(background: Image.Image, placed: Sequence[PlacedThing]) -> np.ndarray:
    """The things over a background, [3, H, W] uint8."""
    image = background.copy()
    for p in placed:
        art = sprite(p.thing.emoji, p.size, round(p.angle))
        left, top = round(p.x - p.size / 2), round(p.y - p.size / 2)
        image.alpha_composite(art, (max(left, 0), max(top, 0)), (max(-left, 0), max(-top, 0)))
    return np.ascontiguousarray(np.asarray(image)[..., :3].transpose(2, 0, 1))


def render_video(background: Image.Image, moving: Sequence[MovingThing], frames: int) -> np.ndarray:
    """The moving things over a background, [F, 3, h, w] uint8; a frame shows the middle of its time span."""
    moments = [tuple(m.at((f + 0.5) / frames) for m in moving) for f in range(frames)]
    images = {m: render_image(background, [p for p in m if p is not None]) for m in dict.fromkeys(moments)}
    return np.stack([images[m] for m in moments])


def pick(items: Sequence[T], rng: np.random.Generator) -> T:
    """One of the items, uniformly."""
    return items[int(rng.integers(len(items)))]


def mix_audio(track: SpeechTrack, utterances: Sequence[Utterance], rng: np.random.Generator) -> np.ndarray:
    """[S] int16: the utterances of a speech track at their times, in noise, at a random loudness."""
    end = max(start + u.seconds for u, (_, start) in zip(utterances, track.utterances, strict=True))
    speech = np.zeros(round(max(end + 0.02, track.seconds) * SAMPLE_RATE), dtype=np.float32)
    for utterance, (_, start) in zip(utterances, track.utterances, strict=True):
        first = round(start * SAMPLE_RATE)
        speech[first : first + len(utterance.waveform)] += utterance.waveform
    noise = coloured_noise(len(speech), rng)
    power = float((speech**2).mean()) / 10 ** (track.snr / 10)
    mixed = speech + noise * np.sqrt(power / float((noise**2).mean()))
    mixed *= rng.uniform(0.3, 0.9) / float(np.abs(mixed).max())
    return (mixed * 32767).astype(np.int16)


def coloured_noise(length: int, rng: np.random.Generator, *, slope: float | None = None) -> np.ndarray:
    """[length] float32: white (slope 0), pink (0.5) or brown (1) noise; a random one of these if `slope` is None."""
    size = -(-length // 4096) * 4096  # an FFT of a length with large prime factors takes several times as long
    spectrum = np.fft.rfft(rng.standard_normal(size).astype(np.float32))
    slope = rng.choice([0.0, 0.5, 1.0]) if slope is None else slope
    spectrum *= _spectral_weights(len(spectrum), float(slope))
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32)


@lru_cache(maxsize=64)
def _spectral_weights(size: int, slope: float) -> np.ndarray:
    return np.arange(1, size + 1) ** -slope


def add_noise(speech: np.ndarray, snr: float, rng: np.random.Generator, split: str) -> Float[Tensor, " s"]:
    """Speech [S] in noise of its split, at a random loudness. snr: signal-to-noise ratio in dB."""
    noises = _noises(split)[int(rng.integers(3))]
    start = int(rng.integers(len(noises) - len(speech)))
    noise = noises[start : start + len(speech)]
    noisy = speech + noise * np.float32(speech.std() / noise.std() / 10 ** (snr / 20))
    return torch.from_numpy(noisy * np.float32(rng.uniform(0.3, 0.9)) / np.abs(noisy).max())


@cache
def _noises(split: str) -> np.ndarray:
    """[3, S] float32: half a minute of white, pink and brown noise, which is in no other split."""
    rng = np.random.default_rng(SPLITS.index(split))
    return np.stack([coloured_noise(30 * SAMPLE_RATE, rng, slope=slope) for slope in (0.0, 0.5, 1.0)])


def caption(placed: Sequence[PlacedThing], language: str) -> str:
    """How many things of each kind there are or, for two different things, their relation."""
    counts = Counter(p.thing for p in placed)
    if len(placed) == len(counts) == 2:
        first, second = placed
        horizontal = abs(first.x - second.x) > abs(first.y - second.y)
        nearer = first.x < second.x if horizontal else first.y < second.y
        where = ("left" if nearer else "right") if horizontal else ("above" if nearer else "below")
        return relation(first.thing, where, second.thing, language, colour=True)
    return listing(counts, language)


def valid_captions(placed: Sequence[PlacedThing], language: str) -> list[str]:
    """Every caption that is correct for an image: the things may be named in any order."""
    return list(dict.fromkeys(caption(order, language) for order in itertools.permutations(placed)))
