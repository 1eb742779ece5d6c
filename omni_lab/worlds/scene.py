"""A scene: what stands where, what acts, who says what when; and its picture, its sound and its captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from omni_lab.batch import SAMPLE_RATE
from omni_lab.worlds.captions import listing, relation
from omni_lab.worlds.espeak import HELD_OUT_VOICES, MEN, WOMEN, Utterance, Voice, synthesize
from omni_lab.worlds.things import LANGUAGES, Thing, sprite

CLIP_SECONDS = 2.0


@dataclass(frozen=True)
class PlacedThing:
    """A thing in a picture or clip. x, y: its centre, and size: its side, in pixels. angle: degrees."""

    thing: Thing
    x: float
    y: float
    size: int
    angle: float

    @property
    def box(self) -> list[float]:
        """Left, top, right, bottom in pixels."""
        return [self.x - self.size / 2, self.y - self.size / 2, self.x + self.size / 2, self.y + self.size / 2]


@dataclass(frozen=True)
class MovingThing(PlacedThing):
    """A thing in a clip. act: move, stay, appear, disappear, blink or steady. axis and sign: which way it moves."""

    act: str = "stay"
    axis: str = "x"
    sign: int = 1

    def at(self, progress: float) -> PlacedThing | None:
        """Where it is when that share of the clip has passed, None while it cannot be seen."""
        if (self.act == "appear" and progress < 0.5) or (self.act == "disappear" and progress > 0.5):
            return None
        if self.act == "blink" and int(progress * 4) % 2:
            return None
        along = self.sign * (progress - 0.5) * 18 if self.act == "move" else 0.0
        dx, dy = (along, 0.0) if self.axis == "x" else (0.0, along)
        return PlacedThing(self.thing, self.x + dx, self.y + dy, self.size, self.angle)


@dataclass(frozen=True)
class SpeechTrack:
    """said: (words, start in seconds) each. snr: signal over noise in dB. seconds: the least it lasts."""

    utterances: tuple[tuple[str, float], ...]
    voice: Voice
    snr: float
    seconds: float = 1.0

    @property
    def noisy(self) -> bool:
        return self.snr < 15


@dataclass(frozen=True)
class Scene:
    """key: of its picture, clip and sound. said: the things named in the sound, in order; midpoints: when, in seconds.

    asked, spoken: questions, as (family, text, answer); each of the latter is asked by one of `spoken_sounds`, a sound
    of its own.
    """

    key: int
    split: str
    picture: tuple[PlacedThing, ...]
    clip: tuple[MovingThing, ...]
    sound: SpeechTrack | None
    named_things: tuple[Thing, ...]
    midpoints: tuple[float, ...]
    questions: tuple[tuple[str, str, str], ...] = ()
    spoken: tuple[tuple[str, str, str], ...] = ()
    spoken_sounds: tuple[SpeechTrack, ...] = ()


def render_image(base: Image.Image, placed: Sequence[PlacedThing]) -> np.ndarray:
    """The things over a background, [3, H, W] uint8."""
    picture = base.copy()
    for p in placed:
        art = sprite(p.thing.emoji, p.size, round(p.angle))
        left, top = round(p.x - p.size / 2), round(p.y - p.size / 2)
        picture.alpha_composite(art, (max(left, 0), max(top, 0)), (max(-left, 0), max(-top, 0)))
    return np.ascontiguousarray(np.asarray(picture)[..., :3].transpose(2, 0, 1))


def render_video(base: Image.Image, actors: Sequence[MovingThing], frames: int) -> np.ndarray:
    """The actors over a background, [F, 3, h, w] uint8; frame f shows the middle of its span of time."""
    moments = [[actor.at((f + 0.5) / frames) for actor in actors] for f in range(frames)]
    return np.stack([render_image(base, [p for p in placed if p is not None]) for placed in moments])


@lru_cache(maxsize=4096)  # about all names by all voices: they come up again and again
def synthesize_cached(words: str, voice: Voice) -> Utterance:
    """The words in English."""
    return synthesize(words, "en", voice)


def sample_voice(split: str, rng: np.random.Generator) -> Voice:
    """A woman's or a man's, evenly; one of the held-out ones in the test split, of the others elsewhere."""
    group = WOMEN if rng.random() < 0.5 else MEN
    known = [v for v in group if (v in HELD_OUT_VOICES) == (split == "test")]
    return Voice(known[int(rng.integers(len(known)))], int(rng.choice((195, 225))), int(rng.choice((40, 55))))


def mix_audio(sound: SpeechTrack, utterances: Sequence[Utterance], rng: np.random.Generator) -> np.ndarray:
    """[S] int16: the utterances at their times, over noise, at some loudness."""
    end = max(start + u.seconds for u, (_, start) in zip(utterances, sound.utterances, strict=True))
    speech = np.zeros(round(max(end + 0.02, sound.seconds) * SAMPLE_RATE), dtype=np.float32)
    for utterance, (_, start) in zip(utterances, sound.utterances, strict=True):
        first = round(start * SAMPLE_RATE)
        speech[first : first + len(utterance.waveform)] += utterance.waveform
    noise = coloured_noise(len(speech), rng)
    power = float((speech**2).mean()) / 10 ** (sound.snr / 10)
    mixed = speech + noise * np.sqrt(power / float((noise**2).mean()))
    mixed *= rng.uniform(0.3, 0.9) / float(np.abs(mixed).max())
    return (mixed * 32767).astype(np.int16)


def coloured_noise(length: int, rng: np.random.Generator, *, slope: float | None = None) -> np.ndarray:
    """[length] float32: white noise (slope 0), or noise that falls with frequency (pink, 0.5, or brown, 1); any of them
    by chance if not given."""
    size = -(-length // 4096) * 4096  # transforms of awkward lengths take several times as long
    spectrum = np.fft.rfft(rng.standard_normal(size).astype(np.float32))
    slope = rng.choice([0.0, 0.5, 1.0]) if slope is None else slope
    spectrum *= np.arange(1, len(spectrum) + 1) ** -slope
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32)


def image_annotations(scene: Scene) -> dict[str, Any]:
    return {
        "objects": [{"thing": p.thing.names["en"], "box": p.box} for p in scene.picture],
        "captions": {language: caption(scene.picture, language) for language in LANGUAGES},
    }


def video_annotations(scene: Scene) -> dict[str, Any]:
    return {
        "seconds": CLIP_SECONDS,
        "objects": [{"thing": a.thing.names["en"], "act": a.act, "axis": a.axis, "sign": a.sign} for a in scene.clip],
    }


def caption(picture: Sequence[PlacedThing], language: str) -> str:
    """How many there are of what, or, for two different things, how they stand to each other."""
    counts: dict[Thing, int] = {}
    for p in picture:
        counts[p.thing] = counts.get(p.thing, 0) + 1
    if len(picture) == 2 and len(counts) == 2:
        first, second = picture
        horizontal = abs(first.x - second.x) > abs(first.y - second.y)
        nearer = first.x < second.x if horizontal else first.y < second.y
        where = ("left" if nearer else "right") if horizontal else ("above" if nearer else "below")
        return relation(first.thing, where, second.thing, language, colour=True)
    return listing(counts, language)
