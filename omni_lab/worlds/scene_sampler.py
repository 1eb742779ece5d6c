"""How a scene of EmojiWorld is drawn, and what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from omni_lab.worlds.espeak import Voice
from omni_lab.worlds.question_families import (
    ANSWER_RANGES,
    DIGITS,
    MOTION_DIRECTIONS,
    MOTION_QUESTIONS,
    PLACES,
    QUESTION_TEMPLATES,
    SIDES,
    SPEAKABLE,
)
from omni_lab.worlds.scene import (
    CLIP_SECONDS,
    MovingThing,
    PlacedThing,
    Scene,
    SpeechTrack,
    sample_voice,
    synthesize_cached,
)
from omni_lab.worlds.things import Thing, thing_vocabulary

T = TypeVar("T")


def place(things: Sequence[Thing], side: int, rng: np.random.Generator) -> tuple[PlacedThing, ...]:
    """Each of up to four things in a quarter of its own of a picture `side` pixels wide, somewhere, of some size,
    slightly turned."""
    half = side / 2
    found = []
    for thing, quarter in zip(things, rng.permutation(4), strict=False):
        size = int(rng.integers(round(half * 0.62), round(half * 0.9)))
        room = (half - size) / 2
        x, y = rng.uniform(-room, room, size=2) + half / 2 + half * np.array([quarter % 2, quarter // 2])
        found.append(PlacedThing(thing, float(x), float(y), size, float(rng.uniform(-20, 20))))
    return tuple(found)


def act_out(
    things: Sequence[Thing], acts: Sequence[str], side: int, rng: np.random.Generator
) -> tuple[MovingThing, ...]:
    """Up to two things of a clip `side` pixels wide in lanes of their own, the acts dealt out at random; if two move,
    they go opposite ways."""
    lanes = rng.permutation(2) * side / 2 + side / 4
    axis = ("x", "y")[int(rng.integers(2))]
    sign = (-1, 1)[int(rng.integers(2))]
    dealt = [acts[i] for i in rng.permutation(len(acts))]
    found = []
    for thing, lane, act, s in zip(things, lanes, dealt, (sign, -sign), strict=False):
        along = side / 2 if act == "move" else side / 2 + float(rng.uniform(-7, 7))
        x, y = (along, lane) if axis == "x" else (lane, along)
        size = int(rng.integers(14, 16))
        found.append(MovingThing(thing, float(x), float(y), size, float(rng.uniform(-15, 15)), act, axis, s))
    return tuple(found)


class SceneSampler:
    """Draws one scene. Everything that a question depends on is drawn evenly; the rest of the scene knows nothing of
    it."""

    def __init__(
        self,
        key: int,
        split: str,
        *,
        seed: int,
        things: int,
        picture_size: int,
        frame_size: int,
        spoken_share: float | None,
    ) -> None:
        """things: size of the vocabulary. spoken_share: chance of each of two spoken questions; None for a scene
        without sound."""
        self.key = key
        self.split = split
        self.rng = np.random.default_rng([seed, key, 0])
        self.things = thing_vocabulary(things)
        self.picture_size = picture_size
        self.frame_size = frame_size
        self.spoken_share = spoken_share
        self.asked: list[tuple[str, str, str]] = []

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def different(self, count: int, without: Sequence[Thing] = ()) -> list[Thing]:
        return self.different_of([t for t in self.things if t not in without], count)

    def ask(self, family: str, text: str, answer: str) -> None:
        self.asked.append((family, text, answer))

    def scene(self) -> Scene:
        kind = self.pick(("places", "counts", "single", "single", "shared"))
        usual = ("way", "way", "move", "appear", "blink")
        clip_act = "way" if kind == "single" and self.rng.random() < 0.6 else self.pick(usual)
        four = self.different(4)
        pair: list[Thing]
        shown = self.pick(("places", "counts", "one")) if kind == "single" else kind
        if shown == "places":
            picture = place(four, self.picture_size, self.rng)
            self.ask_places(picture)
            pair = self.different_of(four, 2)
        elif shown == "counts":
            counts = self.pick(((3, 1, 0), (2, 1, 1), (2, 1, 0)))
            crowd = [thing for thing, n in zip(four, counts, strict=False) for _ in range(n)]
            picture = place(crowd, self.picture_size, self.rng)
            candidates = [four[0], four[1], four[3]]  # two or three, one, none
            for thing in candidates:
                self.ask(
                    "image_count",
                    QUESTION_TEMPLATES["image_count"].format(plural=thing.plural["en"]),
                    DIGITS[crowd.count(thing)],
                )
            pair = self.different_of(candidates, 2)
        else:
            picture = place(four[:1] if shown == "one" else four[:2], self.picture_size, self.rng)
            pair = self.different_of(four, 2)
        clip = self.acting(clip_act, [four[0], four[2]] if kind == "shared" else self.different(2))
        self.ask_clip(clip, clip_act)
        if kind == "shared":
            for only, other, thing in (("picture", "clip", four[1]), ("clip", "picture", four[2])):
                self.ask(
                    "image_video_missing",
                    QUESTION_TEMPLATES["image_video_missing"].format(here=only, there=other),
                    thing.names["en"],
                )
        sound = None
        said: tuple[Thing, ...] = ()
        midpoints: tuple[float, ...] = ()
        if self.spoken_share is not None:
            sound, said, midpoints = self.hear(kind, picture, clip, clip_act, four, pair)
        self.ask_words()
        spoken = self.spoken(self.spoken_share) if self.spoken_share is not None else []
        spoken_sounds = tuple(self.asking(text) for _, text, _ in spoken)
        asked = tuple(self.asked)
        return Scene(self.key, self.split, picture, clip, sound, said, midpoints, asked, tuple(spoken), spoken_sounds)

    def hear(
        self,
        kind: str,
        picture: Sequence[PlacedThing],
        clip: Sequence[MovingThing],
        act: str,
        four: Sequence[Thing],
        pair: Sequence[Thing],
    ) -> tuple[SpeechTrack, tuple[Thing, ...], tuple[float, ...]]:
        """The scene's sound, what it names, and when; and the questions about it."""
        snr = float(self.rng.uniform(0, 10) if self.rng.random() < 0.5 else self.rng.uniform(25, 40))
        voice = sample_voice(self.split, self.rng)
        if kind == "single":
            sound, said, midpoints = self.single(clip, act, voice, snr)
        else:
            sound, midpoints = self.both_names(pair, voice, snr)
            said = tuple(pair)
            self.ask_pair(kind, picture, four, pair)
        self.ask_sound(sound)
        return sound, said, midpoints

    def different_of(self, items: Sequence[T], count: int) -> list[T]:
        return [items[i] for i in self.rng.permutation(len(items))[:count]]

    def quarter(self, placed: PlacedThing) -> int:
        half = self.picture_size / 2
        return int(placed.x > half) + 2 * int(placed.y > half)

    def ask_places(self, picture: Sequence[PlacedThing]) -> None:
        """Four different things, one in each quarter."""
        for one in self.different_of(picture, 2):
            self.ask(
                "image_what",
                QUESTION_TEMPLATES["image_what"].format(place=PLACES[self.quarter(one)]),
                one.thing.names["en"],
            )
        for one in self.different_of(picture, 2):
            self.ask(
                "image_where",
                QUESTION_TEMPLATES["image_where"].format(name=one.thing.names["en"]),
                PLACES[self.quarter(one)],
            )
        for bit, words in enumerate((("left of", "right of"), ("above", "below"))):
            one = self.pick(picture)
            mine = (self.quarter(one) >> bit) & 1
            other = self.pick([p for p in picture if (self.quarter(p) >> bit) & 1 != mine])
            for side, word in enumerate(words):
                text = f"is the {one.thing.names['en']} {word} the {other.thing.names['en']}?"
                self.ask("image_relation", text, "yes" if mine == side else "no")

    def acting(self, act: str, things: Sequence[Thing]) -> tuple[MovingThing, ...]:
        """Two things that move opposite ways, or one that acts and one that does not."""
        acts = {"way": ("move", "move"), "move": ("move", "stay"), "appear": ("appear", "disappear")}
        return act_out(things, acts.get(act, ("blink", "steady")), self.frame_size, self.rng)

    def ask_clip(self, clip: Sequence[MovingThing], act: str) -> None:
        for one in clip:
            name = one.thing.names["en"]
            if act == "way":
                self.ask(
                    "video_way",
                    QUESTION_TEMPLATES["video_way"].format(name=name),
                    MOTION_DIRECTIONS[one.axis][one.sign > 0],
                )
            else:
                self.ask("video_what", MOTION_QUESTIONS[one.act], name)

    def both_names(self, pair: Sequence[Thing], voice: Voice, snr: float) -> tuple[SpeechTrack, tuple[float, ...]]:
        start, said, midpoints = float(self.rng.uniform(0.03, 0.15)), [], []
        for thing in pair:
            seconds = synthesize_cached(thing.names["en"], voice).seconds
            said.append((thing.names["en"], start))
            midpoints.append(start + seconds / 2)
            start += seconds + float(self.rng.uniform(0.05, 0.2))
        return SpeechTrack(tuple(said), voice, snr), tuple(midpoints)

    def single(
        self, clip: Sequence[MovingThing], act: str, voice: Voice, snr: float
    ) -> tuple[SpeechTrack, tuple[Thing, ...], tuple[float, ...]]:
        """One thing is named, early or late: one of the clip's, or another."""
        seen = self.rng.random() < 0.5
        thing = self.pick(clip).thing if seen else self.different(1, [c.thing for c in clip])[0]
        seconds = synthesize_cached(thing.names["en"], voice).seconds
        early = self.rng.random() < 0.5
        slack = float(self.rng.uniform(0.0, 0.25))
        start = slack if early else CLIP_SECONDS - seconds - slack
        self.ask("audio_video_seen", "does the named thing appear in the clip?", "yes" if seen else "no")
        self.ask("audio_video_seen", "is the named thing missing from the clip?", "no" if seen else "yes")
        midpoint = start + seconds / 2
        if seen and act == "way":
            actor = next(c for c in clip if c.thing is thing)
            then = actor.at(midpoint / CLIP_SECONDS)
            assert then is not None
            far = (then.x if actor.axis == "x" else then.y) > self.frame_size / 2
            for other, meant in enumerate(("it", "the other one")):
                text = f"when a thing is named, on which side is {meant}?"
                self.ask("audio_video_side", text, SIDES[actor.axis][far != bool(other)])
        return SpeechTrack(((thing.names["en"], start),), voice, snr, CLIP_SECONDS), (thing,), (midpoint,)

    def ask_pair(self, kind: str, picture: Sequence[PlacedThing], four: Sequence[Thing], pair: Sequence[Thing]) -> None:
        """Two things are named; which of them is meant, the text says."""
        for word, meant in zip(("first", "last"), pair, strict=True):
            self.ask("audio_name", f"which thing is named {word}?", meant.names["en"])
            if kind == "places":
                found = next(p for p in picture if p.thing is meant)
                self.ask("audio_image_where", f"where is the thing named {word}?", PLACES[self.quarter(found)])
            elif kind == "counts":
                count = sum(p.thing is meant for p in picture)
                self.ask("audio_image_count", f"how many are there of the thing named {word}?", DIGITS[count])
            else:
                answer = ("both", "picture", "clip", "neither")[four.index(meant)]
                self.ask("all_where", f"where does the thing named {word} appear?", answer)

    def ask_sound(self, sound: SpeechTrack) -> None:
        for group in ("woman", "man"):
            self.ask("audio_voice", f"is the speaker a {group}?", "yes" if sound.voice.group == group else "no")
        for noisy, word in enumerate(("clean", "noisy")):
            self.ask("audio_noise", f"is the sound {word}?", "yes" if sound.noisy == bool(noisy) else "no")

    def ask_words(self) -> None:
        family = self.pick(("text_sum", "text_letters", "text_translate"))
        if family == "text_sum":
            total = self.pick(ANSWER_RANGES[family])
            first = int(self.rng.integers(0, total + 1))
            self.ask(
                family,
                QUESTION_TEMPLATES[family].format(first=DIGITS[first], second=DIGITS[total - first]),
                DIGITS[total],
            )
        elif family == "text_letters":
            length = self.pick(ANSWER_RANGES[family])
            word = self.pick([t.names["en"] for t in self.things if len(t.names["en"]) == length])
            self.ask(family, f"how many letters does {word} have?", DIGITS[length])
        else:
            thing = self.pick(self.things)
            word = thing.names[self.pick(("de", "zh"))]
            self.ask(family, f"what does {word} mean in English?", thing.names["en"])

    def spoken(self, share: float) -> list[tuple[str, str, str]]:
        """Up to two of the scene's questions, of different families, to be spoken instead of written."""
        chosen: list[tuple[str, str, str]] = []
        for _ in range(2):
            taken = [family for family, _, _ in chosen]
            possible = [q for q in self.asked if q[0] in SPEAKABLE and q[0] not in taken]
            if possible and self.rng.random() < share:
                family = self.pick(list(dict.fromkeys(q[0] for q in possible)))
                chosen.append(self.pick([q for q in possible if q[0] == family]))
        return chosen

    def asking(self, text: str) -> SpeechTrack:
        start, snr = float(self.rng.uniform(0.02, 0.1)), float(self.rng.uniform(15, 40))
        return SpeechTrack(((text, start),), sample_voice(self.split, self.rng), snr)
