"""Samples a scene of EmojiWorld and the questions about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from omni_lab.worlds.espeak import Voice, sample_voice, synthesize_cached
from omni_lab.worlds.question_families import DIGITS, MOTION_QUESTIONS, PLACES, QUESTION_TEMPLATES, SPEAKABLE
from omni_lab.worlds.scene import CLIP_SECONDS, MovingThing, PlacedThing, Scene, SpeechTrack, pick
from omni_lab.worlds.things import Thing, thing_vocabulary

T = TypeVar("T")
SIDES = {"x": ("left", "right"), "y": ("top", "bottom")}
MOTION_DIRECTIONS = {"x": ("left", "right"), "y": ("up", "down")}
ANSWER_RANGES = {"text_letters": (3, 4, 5, 6), "text_sum": tuple(range(2, 10))}


def place_things(
    things: Sequence[Thing], side: int, rng: np.random.Generator, *, quarters: Sequence[int] | None = None
) -> tuple[PlacedThing, ...]:
    """Places up to four things in an image of `side` pixels: each in its own quarter, sized and turned at random.

    quarters: where, as indices of `PLACES`; default at random.
    """
    half = side / 2
    placed = []
    for thing, quarter in zip(things, rng.permutation(4) if quarters is None else quarters, strict=False):
        size = int(rng.integers(round(half * 0.62), round(half * 0.9)))
        room = (half - size) / 2
        x, y = rng.uniform(-room, room, size=2) + half / 2 + half * np.array([quarter % 2, quarter // 2])
        placed.append(PlacedThing(thing, float(x), float(y), size, float(rng.uniform(-20, 20))))
    return tuple(placed)


def animate_things(
    things: Sequence[Thing], acts: Sequence[str], side: int, rng: np.random.Generator
) -> tuple[MovingThing, ...]:
    """Puts up to two things into lanes of a video of `side` pixels and assigns the acts at random.

    If both move, they move in opposite directions.
    """
    lanes = rng.permutation(2) * side / 2 + side / 4
    axis, sign = pick(("x", "y"), rng), pick((-1, 1), rng)
    shuffled = [acts[i] for i in rng.permutation(len(acts))]
    moving = []
    for thing, lane, act, s in zip(things, lanes, shuffled, (sign, -sign), strict=False):
        along = side / 2 if act == "move" else side / 2 + float(rng.uniform(-7, 7))
        x, y = (along, lane) if axis == "x" else (lane, along)
        size = int(rng.integers(14, 16))
        moving.append(MovingThing(thing, float(x), float(y), size, float(rng.uniform(-15, 15)), act, axis, s))
    return tuple(moving)


@dataclass
class SceneSampler:
    """Samples one scene and its questions.

    Everything that an answer depends on is sampled uniformly and independently of the rest of the scene.
    """

    key: int
    split: str
    seed: int
    num_things: int  # size of the vocabulary
    image_size: int  # side in pixels
    frame_size: int  # side of a frame of the video in pixels
    spoken_share: float | None  # probability of each of two spoken questions; None for a scene without speech

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, self.key, 0])
        self.things = thing_vocabulary(self.num_things)
        self.questions: list[tuple[str, str, str]] = []

    def sample(self) -> Scene:
        kind = self._pick(("places", "counts", "single", "single", "shared"))
        motions = ("way", "way", "move", "appear", "blink")
        motion = "way" if kind == "single" and self.rng.random() < 0.6 else self._pick(motions)
        four = self._choose(self.things, 4)
        placed, pair = self._sample_image(kind, four)
        moving = self._sample_video(motion, [four[0], four[2]] if kind == "shared" else self._choose(self.things, 2))
        if kind == "shared":
            self._ask("image_video_missing", four[1].names["en"], here="picture", there="clip")
            self._ask("image_video_missing", four[2].names["en"], here="clip", there="picture")
        speech: SpeechTrack | None = None
        named, midpoints = list[Thing](), list[float]()
        if self.spoken_share is not None:
            snr = float(self.rng.uniform(0, 10) if self.rng.random() < 0.5 else self.rng.uniform(25, 40))
            voice = sample_voice(self.split, self.rng)
            if kind == "single":
                speech, named, midpoints = self._speak_one_name(moving, motion, voice, snr)
            else:
                named = pair
                speech, midpoints = self._speak_two_names(pair, voice, snr)
                self._ask_about_names(kind, placed, four, pair)
            self._ask_about_speech(speech)
        self._ask_about_text()
        spoken = self._choose_spoken(self.spoken_share) if self.spoken_share is not None else []
        tracks = tuple(self._speak_question(text) for _, text, _ in spoken)
        names = tuple(named), tuple(midpoints)
        return Scene(self.key, self.split, placed, moving, speech, *names, tuple(self.questions), tuple(spoken), tracks)

    def _pick(self, items: Sequence[T]) -> T:
        return pick(items, self.rng)

    def _choose(self, items: Sequence[T], count: int) -> list[T]:
        """Different items, in random order."""
        return [items[i] for i in self.rng.permutation(len(items))[:count]]

    def _ask(self, family: str, answer: str, **words: str) -> None:
        """Adds a question. words: fill in its template."""
        self.questions.append((family, QUESTION_TEMPLATES[family].format(**words), answer))

    def _quarter(self, placed: PlacedThing) -> int:
        half = self.image_size / 2
        return int(placed.x > half) + 2 * int(placed.y > half)

    def _sample_image(self, kind: str, four: Sequence[Thing]) -> tuple[tuple[PlacedThing, ...], list[Thing]]:
        """The things of the image, and two things for the speech to name."""
        layout = self._pick(("places", "counts", "one")) if kind == "single" else kind
        candidates = list(four)
        if layout == "places":
            placed = place_things(four, self.image_size, self.rng)
            self._ask_about_places(placed)
        elif layout == "counts":
            counts = self._pick(((3, 1, 0), (2, 1, 1), (2, 1, 0)))
            crowd = [thing for thing, n in zip(four, counts, strict=False) for _ in range(n)]
            placed = place_things(crowd, self.image_size, self.rng)
            candidates = [four[0], four[1], four[3]]  # shown two or three times, once, not at all
            for thing in candidates:
                self._ask("image_count", DIGITS[crowd.count(thing)], plural=thing.plural["en"])
        else:
            placed = place_things(four[: 1 if layout == "one" else 2], self.image_size, self.rng)
        return placed, self._choose(candidates, 2)

    def _ask_about_places(self, placed: Sequence[PlacedThing]) -> None:
        """placed: four different things, one in each quarter."""
        for p in self._choose(placed, 2):
            self._ask("image_what", p.thing.names["en"], place=PLACES[self._quarter(p)])
        for p in self._choose(placed, 2):
            self._ask("image_where", PLACES[self._quarter(p)], name=p.thing.names["en"])
        for bit, relations in enumerate((("left of", "right of"), ("above", "below"))):
            one = self._pick(placed)
            side = (self._quarter(one) >> bit) & 1
            other = self._pick([p for p in placed if (self._quarter(p) >> bit) & 1 != side])
            names = {"name": one.thing.names["en"], "other": other.thing.names["en"]}
            for i, words in enumerate(relations):
                self._ask("image_relation", "yes" if side == i else "no", relation=words, **names)

    def _sample_video(self, motion: str, things: Sequence[Thing]) -> tuple[MovingThing, ...]:
        """Two things that move in opposite directions, or two that act differently."""
        acts = {"way": ("move", "move"), "move": ("move", "stay"), "appear": ("appear", "disappear")}
        moving = animate_things(things, acts.get(motion, ("blink", "steady")), self.frame_size, self.rng)
        for m in moving:
            name = m.thing.names["en"]
            if motion == "way":
                self._ask("video_way", MOTION_DIRECTIONS[m.axis][m.sign > 0], name=name)
            else:
                self._ask("video_what", name, question=MOTION_QUESTIONS[m.act])
        return moving

    def _speak_two_names(self, pair: Sequence[Thing], voice: Voice, snr: float) -> tuple[SpeechTrack, list[float]]:
        """Both names one after the other, and their midpoints."""
        start, utterances, midpoints = float(self.rng.uniform(0.03, 0.15)), [], []
        for thing in pair:
            seconds = synthesize_cached(thing.names["en"], voice).seconds
            utterances.append((thing.names["en"], start))
            midpoints.append(start + seconds / 2)
            start += seconds + float(self.rng.uniform(0.05, 0.2))
        return SpeechTrack(tuple(utterances), voice, snr), midpoints

    def _speak_one_name(
        self, moving: Sequence[MovingThing], motion: str, voice: Voice, snr: float
    ) -> tuple[SpeechTrack, list[Thing], list[float]]:
        """The name of a thing of the video or of another one, early or late; what is named, and the midpoint."""
        shown = self.rng.random() < 0.5
        others = [t for t in self.things if t not in [m.thing for m in moving]]
        thing = self._pick(moving).thing if shown else self._choose(others, 1)[0]
        seconds = synthesize_cached(thing.names["en"], voice).seconds
        early = self.rng.random() < 0.5
        slack = float(self.rng.uniform(0.0, 0.25))
        start = slack if early else CLIP_SECONDS - seconds - slack
        self._ask("audio_video_seen", "yes" if shown else "no", verb="does", state="appear in")
        self._ask("audio_video_seen", "no" if shown else "yes", verb="is", state="missing from")
        midpoint = start + seconds / 2
        if shown and motion == "way":
            m = next(m for m in moving if m.thing is thing)
            then = m.at(midpoint / CLIP_SECONDS)
            assert then is not None
            far = (then.x if m.axis == "x" else then.y) > self.frame_size / 2
            self._ask("audio_video_side", SIDES[m.axis][far], which="it")
            self._ask("audio_video_side", SIDES[m.axis][not far], which="the other one")
        return SpeechTrack(((thing.names["en"], start),), voice, snr, CLIP_SECONDS), [thing], [midpoint]

    def _ask_about_names(
        self, kind: str, placed: Sequence[PlacedThing], four: Sequence[Thing], pair: Sequence[Thing]
    ) -> None:
        """The speech names two things; the question says which of them it is about."""
        for order, thing in zip(("first", "last"), pair, strict=True):
            self._ask("audio_name", thing.names["en"], order=order)
            if kind == "places":
                place = PLACES[self._quarter(next(p for p in placed if p.thing is thing))]
                self._ask("audio_image_where", place, order=order)
            elif kind == "counts":
                self._ask("audio_image_count", DIGITS[sum(p.thing is thing for p in placed)], order=order)
            else:
                answer = ("both", "picture", "clip", "neither")[four.index(thing)]
                self._ask("all_where", answer, order=order)

    def _ask_about_speech(self, speech: SpeechTrack) -> None:
        for group in ("woman", "man"):
            self._ask("audio_voice", "yes" if speech.voice.group == group else "no", group=group)
        for noisy, quality in enumerate(("clean", "noisy")):
            self._ask("audio_noise", "yes" if speech.noisy == bool(noisy) else "no", quality=quality)

    def _ask_about_text(self) -> None:
        family = self._pick(("text_sum", "text_letters", "text_translate"))
        if family == "text_sum":
            total = self._pick(ANSWER_RANGES[family])
            first = int(self.rng.integers(0, total + 1))
            self._ask(family, DIGITS[total], first=DIGITS[first], second=DIGITS[total - first])
        elif family == "text_letters":
            length = self._pick(ANSWER_RANGES[family])
            word = self._pick([t.names["en"] for t in self.things if len(t.names["en"]) == length])
            self._ask(family, DIGITS[length], word=word)
        else:
            thing = self._pick(self.things)
            self._ask(family, thing.names["en"], word=thing.names[self._pick(("de", "zh"))])

    def _choose_spoken(self, probability: float) -> list[tuple[str, str, str]]:
        """Up to two questions, of different families, to be spoken too."""
        chosen: list[tuple[str, str, str]] = []
        for _ in range(2):
            taken = [family for family, _, _ in chosen]
            possible = [q for q in self.questions if q[0] in SPEAKABLE and q[0] not in taken]
            if possible and self.rng.random() < probability:
                family = self._pick(list(dict.fromkeys(q[0] for q in possible)))
                chosen.append(self._pick([q for q in possible if q[0] == family]))
        return chosen

    def _speak_question(self, text: str) -> SpeechTrack:
        start, snr = float(self.rng.uniform(0.02, 0.1)), float(self.rng.uniform(15, 40))
        return SpeechTrack(((text, start),), sample_voice(self.split, self.rng), snr)
