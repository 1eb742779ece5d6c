"""How a scene of EmojiWorld is drawn, and what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omni_lab.data.speech import Voice
from omni_lab.data.worlds.families import DIGITS, PLACES, SIDES, SPEAKABLE, SPREADS, WAYS
from omni_lab.data.worlds.scenes import CLIP_SECONDS, Acting, Placed, Scene, Sound, draw_voice, say
from omni_lab.data.worlds.things import Thing, vocabulary


class SceneDraw:
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
        """things: size of the vocabulary. spoken_share: chance of a spoken question; None for a scene without sound."""
        self.key = key
        self.split = split
        self.rng = np.random.default_rng([seed, key, 0])
        self.things = vocabulary(things)
        self.picture_size = picture_size
        self.frame_size = frame_size
        self.spoken_share = spoken_share
        self.asked: list[tuple[str, str, str]] = []

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def different(self, count: int, without: Sequence[Thing] = ()) -> list[Thing]:
        free = [t for t in self.things if t not in without]
        return [free[i] for i in self.rng.permutation(len(free))[:count]]

    def ask(self, family: str, text: str, answer: str) -> None:
        self.asked.append((family, text, answer))

    def scene(self) -> Scene:
        kind = self.pick(("places", "counts", "single", "shared"))
        usual = ("way", "way", "move", "appear", "blink")
        clip_act = "way" if kind == "single" and self.rng.random() < 0.6 else self.pick(usual)
        four = self.different(4)
        pair: list[Thing]
        shown = self.pick(("places", "counts", "one")) if kind == "single" else kind
        if shown == "places":
            picture = self.placed(four)
            self.ask_places(picture)
            pair = self.different_of(four, 2)
        elif shown == "counts":
            counts = self.pick(((3, 1, 0), (2, 1, 1), (2, 1, 0)))
            crowd = [thing for thing, n in zip(four, counts, strict=False) for _ in range(n)]
            picture = self.placed(crowd)
            candidates = [four[0], four[1], four[3]]  # two or three, one, none
            asked = self.pick(candidates)
            self.ask("image_count", f"how many {asked.plural['en']} are there?", DIGITS[crowd.count(asked)])
            pair = self.different_of(candidates, 2)
        else:
            picture = self.placed(four[:1] if shown == "one" else four[:2])
            pair = self.different_of(four, 2)
        clip = self.acting(clip_act, [four[0], four[2]] if kind == "shared" else self.different(2))
        self.ask_clip(clip, clip_act)
        if kind == "shared":
            only, other, thing = self.pick((("picture", "clip", four[1]), ("clip", "picture", four[2])))
            self.ask("image_video_missing", f"what is in the {only} but not in the {other}?", thing.names["en"])
        sound, spoken, spoken_sound = None, None, None
        said: tuple[Thing, ...] = ()
        midpoints: tuple[float, ...] = ()
        if self.spoken_share is not None:
            sound, said, midpoints = self.hear(kind, picture, clip, clip_act, four, pair)
        self.ask_words()
        if self.spoken_share is not None and self.rng.random() < self.spoken_share:
            spoken, spoken_sound = self.spoken()
        asked = tuple(self.asked)
        return Scene(self.key, self.split, picture, clip, sound, said, midpoints, asked, spoken, spoken_sound)

    def hear(
        self,
        kind: str,
        picture: Sequence[Placed],
        clip: Sequence[Acting],
        act: str,
        four: Sequence[Thing],
        pair: Sequence[Thing],
    ) -> tuple[Sound, tuple[Thing, ...], tuple[float, ...]]:
        """The scene's sound, what it names, and when; and the questions about it."""
        snr = float(self.rng.uniform(0, 10) if self.rng.random() < 0.5 else self.rng.uniform(25, 40))
        voice = draw_voice(self.split, self.rng)
        if kind == "single":
            sound, said, midpoints = self.single(clip, act, voice, snr)
        else:
            sound, midpoints = self.both_names(pair, voice, snr)
            said = tuple(pair)
            self.ask_pair(kind, picture, four, pair)
        self.ask_sound(sound)
        return sound, said, midpoints

    def different_of(self, things: Sequence[Thing], count: int) -> list[Thing]:
        return [things[i] for i in self.rng.permutation(len(things))[:count]]

    def placed(self, things: Sequence[Thing]) -> tuple[Placed, ...]:
        """Each thing in a quarter of its own, somewhere, of some size, slightly turned."""
        half = self.picture_size / 2
        found = []
        for thing, quarter in zip(things, self.rng.permutation(4), strict=False):
            size = int(self.rng.integers(round(half * 0.62), round(half * 0.9)))
            room = (half - size) / 2
            x, y = self.rng.uniform(-room, room, size=2) + half / 2 + half * np.array([quarter % 2, quarter // 2])
            found.append(Placed(thing, float(x), float(y), size, float(self.rng.uniform(-20, 20))))
        return tuple(found)

    def quarter(self, placed: Placed) -> int:
        half = self.picture_size / 2
        return int(placed.x > half) + 2 * int(placed.y > half)

    def ask_places(self, picture: Sequence[Placed]) -> None:
        """Four different things, one in each quarter."""
        one = self.pick(picture)
        self.ask("image_what", f"what is at the {PLACES[self.quarter(one)]}?", one.thing.names["en"])
        one = self.pick(picture)
        self.ask("image_where", f"where is the {one.thing.names['en']}?", PLACES[self.quarter(one)])
        across = self.rng.random() < 0.5
        bit = 0 if across else 1
        one = self.pick(picture)
        other = self.pick([p for p in picture if (self.quarter(p) >> bit) & 1 != (self.quarter(one) >> bit) & 1])
        side = self.pick((("left of", 0), ("right of", 1)) if across else (("above", 0), ("below", 1)))
        true = (self.quarter(one) >> bit) & 1 == side[1]
        text = f"is the {one.thing.names['en']} {side[0]} the {other.thing.names['en']}?"
        self.ask("image_relation", text, "yes" if true else "no")

    def acting(self, act: str, things: Sequence[Thing]) -> tuple[Acting, Acting]:
        """Two things in lanes of their own, in random order: they move opposite ways, or one acts and one does not."""
        size = self.frame_size
        lanes = self.rng.permutation(2) * size / 2 + size / 4
        axis = self.pick(("x", "y"))
        sign = self.pick((-1, 1))
        acts = {"way": ("move", "move"), "move": ("move", "stay"), "appear": ("appear", "disappear")}.get(
            act, ("blink", "steady")
        )
        found = []
        for thing, lane, does, s in zip(things, lanes, self.shuffled(acts), (sign, -sign), strict=True):
            along = size / 2 if does == "move" else size / 2 + float(self.rng.uniform(-7, 7))
            x, y = (along, lane) if axis == "x" else (lane, along)
            side = int(self.rng.integers(14, 16))
            found.append(Acting(thing, float(x), float(y), side, float(self.rng.uniform(-15, 15)), does, axis, s))
        return found[0], found[1]

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        return [items[i] for i in self.rng.permutation(len(items))]

    def ask_clip(self, clip: Sequence[Acting], act: str) -> None:
        one = self.pick(clip)
        if act == "way":
            way = WAYS[one.axis][one.sign > 0]
            self.ask("video_way", f"which way does the {one.thing.names['en']} move?", way)
        else:
            texts = {
                "move": "what moves?",
                "stay": "what stays still?",
                "appear": "what appears?",
                "disappear": "what disappears?",
                "blink": "what blinks?",
                "steady": "what does not blink?",
            }
            self.ask("video_what", texts[one.act], one.thing.names["en"])

    def both_names(self, pair: Sequence[Thing], voice: Voice, snr: float) -> tuple[Sound, tuple[float, ...]]:
        start, said, midpoints = float(self.rng.uniform(0.03, 0.15)), [], []
        for thing in pair:
            seconds = say(thing.names["en"], voice).seconds
            said.append((thing.names["en"], start))
            midpoints.append(start + seconds / 2)
            start += seconds + float(self.rng.uniform(0.05, 0.2))
        return Sound(tuple(said), voice, snr), tuple(midpoints)

    def single(
        self, clip: Sequence[Acting], act: str, voice: Voice, snr: float
    ) -> tuple[Sound, tuple[Thing, ...], tuple[float, ...]]:
        """One thing is named, early or late: one of the clip's, or another."""
        seen = self.rng.random() < 0.5
        thing = self.pick(clip).thing if seen else self.different(1, [c.thing for c in clip])[0]
        seconds = say(thing.names["en"], voice).seconds
        early = self.rng.random() < 0.5
        slack = float(self.rng.uniform(0.0, 0.25))
        start = slack if early else CLIP_SECONDS - seconds - slack
        negated = self.rng.random() < 0.5
        text = "is the named thing missing from the clip?" if negated else "does the named thing appear in the clip?"
        self.ask("audio_video_seen", text, "yes" if seen != negated else "no")
        midpoint = start + seconds / 2
        if seen and act == "way":
            actor = next(c for c in clip if c.thing is thing)
            place = actor.at(midpoint / CLIP_SECONDS)
            assert place is not None
            far = (place.x if actor.axis == "x" else place.y) > self.frame_size / 2
            other = self.rng.random() < 0.5
            text = f"when a thing is named, on which side is {'the other one' if other else 'it'}?"
            self.ask("audio_video_side", text, SIDES[actor.axis][far != other])
        return Sound(((thing.names["en"], start),), voice, snr, CLIP_SECONDS), (thing,), (midpoint,)

    def ask_pair(self, kind: str, picture: Sequence[Placed], four: Sequence[Thing], pair: Sequence[Thing]) -> None:
        """Two things are named; which of them is meant, the text says."""
        which = self.pick((0, 1))
        word = ("first", "last")[which]
        self.ask("audio_name", f"which thing is named {word}?", pair[which].names["en"])
        which = self.pick((0, 1))
        word, meant = ("first", "last")[which], pair[which]
        if kind == "places":
            place = next(p for p in picture if p.thing is meant)
            self.ask("audio_image_where", f"where is the thing named {word}?", PLACES[self.quarter(place)])
        elif kind == "counts":
            count = sum(p.thing is meant for p in picture)
            self.ask("audio_image_count", f"how many are there of the thing named {word}?", DIGITS[count])
        else:
            answer = ("both", "picture", "clip", "neither")[four.index(meant)]
            self.ask("all_where", f"where does the thing named {word} appear?", answer)

    def ask_sound(self, sound: Sound) -> None:
        group = self.pick(("woman", "man"))
        self.ask("audio_voice", f"is the speaker a {group}?", "yes" if sound.voice.group == group else "no")
        noisy = self.rng.random() < 0.5
        text = "is the sound noisy?" if noisy else "is the sound clean?"
        self.ask("audio_noise", text, "yes" if sound.noisy == noisy else "no")

    def ask_words(self) -> None:
        family = self.pick(("text_sum", "text_letters", "text_translate"))
        if family == "text_sum":
            total = self.pick(SPREADS[family])
            first = int(self.rng.integers(0, total + 1))
            self.ask(family, f"what is {DIGITS[first]} plus {DIGITS[total - first]}?", DIGITS[total])
        elif family == "text_letters":
            length = self.pick(SPREADS[family])
            word = self.pick([t.names["en"] for t in self.things if len(t.names["en"]) == length])
            self.ask(family, f"how many letters does {word} have?", DIGITS[length])
        else:
            thing = self.pick(self.things)
            word = thing.names[self.pick(("de", "zh"))]
            self.ask(family, f"what does {word} mean in English?", thing.names["en"])

    def spoken(self) -> tuple[tuple[str, str, str], Sound] | tuple[None, None]:
        """One of the scene's questions, spoken instead of written; None where none of them can be."""
        possible = [q for q in self.asked if q[0] in SPEAKABLE]
        if not possible:
            return None, None
        question = self.pick(possible)
        snr = float(self.rng.uniform(15, 40))
        return question, Sound(
            ((question[1], float(self.rng.uniform(0.02, 0.1))),), draw_voice(self.split, self.rng), snr
        )
