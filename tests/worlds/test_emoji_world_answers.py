"""Every answer is worked out again, from the facts that the store keeps of picture, clip and sound."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from omni_lab.batch import Modality
from omni_lab.data.store import Store, ensure_store
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.things import thing_vocabulary

SCENES = {"train": 280, "validation": 10, "test": 30}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
THINGS = thing_vocabulary(8)
ENGLISH = {thing.names["en"] for thing in THINGS}
SINGULAR = {thing.plural["en"]: thing.names["en"] for thing in THINGS} | {name: name for name in ENGLISH}


@dataclass(frozen=True)
class Seen:
    """The facts of one question's media."""

    boxes: list[tuple[str, float, float]]  # name, middle of the box
    actors: dict[str, dict[str, Any]]
    words: list[tuple[str, float]]  # word, middle of its time
    group: str
    snr: float

    def place(self, name: str) -> str:
        ((x, y),) = [(x, y) for other, x, y in self.boxes if other == name]
        return f"{'top' if y < 32 else 'bottom'} {'left' if x < 32 else 'right'}"

    def count(self, name: str) -> int:
        return sum(other == name for other, _, _ in self.boxes)


def asked_of(text: str, seen: Seen) -> str:
    """The thing that a question is about, in the text or, where that says so, in the sound."""
    if "named" in text:
        return seen.words[-1 if "named last" in text else 0][0]
    return next(SINGULAR[word] for word in re.findall(r"\w+", text) if word in SINGULAR)


def image_relation(text: str, seen: Seen) -> str:
    first, where, second = re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+)\?", text).groups()  # type: ignore[union-attr]
    middle = {name: (x, y) for name, x, y in seen.boxes}
    axis = 0 if where in ("left of", "right of") else 1
    less = middle[first][axis] < middle[second][axis]
    return "yes" if less == (where in ("left of", "above")) else "no"


def video_way(text: str, seen: Seen) -> str:
    actor = seen.actors[asked_of(text, seen)]
    return {("x", 1): "right", ("x", -1): "left", ("y", 1): "down", ("y", -1): "up"}[actor["axis"], actor["sign"]]


def video_what(text: str, seen: Seen) -> str:
    act = re.search(r"moves|stays|not blink|blinks|disappears|appears", text).group()  # type: ignore[union-attr]
    act = {"stays": "stay", "not blink": "steady"}.get(act, act.removesuffix("s"))
    (name,) = [name for name, actor in seen.actors.items() if actor["act"] == act]
    return name


def audio_video_seen(text: str, seen: Seen) -> str:
    shown = seen.words[0][0] in seen.actors
    return "yes" if shown != ("missing" in text) else "no"


def audio_video_side(text: str, seen: Seen) -> str:
    """Both cross the middle of the clip, which lasts two seconds, in its middle, and in opposite directions."""
    name, time = seen.words[0]
    actor = seen.actors[name]
    assert actor["act"] == "move" and time != 1.0
    far = (time > 1.0) == (actor["sign"] > 0)
    sides = ("left", "right") if actor["axis"] == "x" else ("top", "bottom")
    return sides[far != ("the other one" in text)]


def image_video_missing(text: str, seen: Seen) -> str:
    pictured, filmed = {name for name, _, _ in seen.boxes}, set(seen.actors)
    (name,) = pictured - filmed if "in the picture but" in text else filmed - pictured
    return name


def all_where(text: str, seen: Seen) -> str:
    name = asked_of(text, seen)
    shown = seen.count(name) > 0, name in seen.actors
    return {(True, True): "both", (True, False): "picture", (False, True): "clip", (False, False): "neither"}[shown]


def text_sum(text: str, seen: Seen) -> str:
    first, second = re.fullmatch(r"what is (\w+) plus (\w+)\?", text).groups()  # type: ignore[union-attr]
    return NUMBERS[NUMBERS.index(first) + NUMBERS.index(second)]


def text_translate(text: str, seen: Seen) -> str:
    word = re.fullmatch(r"what does (.+) mean in English\?", text).group(1)  # type: ignore[union-attr]
    (name,) = [thing.names["en"] for thing in THINGS if word in (thing.names["de"], thing.names["zh"])]
    return name


RULES = {
    "text_sum": text_sum,
    "text_letters": lambda text, seen: NUMBERS[len(asked_of(text, seen))],
    "text_translate": text_translate,
    "image_what": lambda text, seen: next(n for n, _, _ in seen.boxes if seen.place(n) in text),
    "image_where": lambda text, seen: seen.place(asked_of(text, seen)),
    "image_count": lambda text, seen: NUMBERS[seen.count(asked_of(text, seen))],
    "image_relation": image_relation,
    "audio_name": asked_of,
    "audio_voice": lambda text, seen: "yes" if f"a {seen.group}?" in text else "no",
    "audio_noise": lambda text, seen: "yes" if ("noisy" in text) == (seen.snr < 15) else "no",
    "video_way": video_way,
    "video_what": video_what,
    "audio_image_count": lambda text, seen: NUMBERS[seen.count(asked_of(text, seen))],
    "audio_image_where": lambda text, seen: seen.place(asked_of(text, seen)),
    "audio_video_seen": audio_video_seen,
    "audio_video_side": audio_video_side,
    "image_video_missing": image_video_missing,
    "all_where": all_where,
}


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld(things=8, scenes=SCENES)


@pytest.fixture(scope="module")
def store(world: EmojiWorld, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return ensure_store(world, tmp_path_factory.mktemp("truth"))


def see(store: Store, row: dict[str, Any]) -> Seen:
    picture, sound, clip = (
        store.annotations(m, row[m.value]) for m in (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)
    )
    return Seen(
        boxes=[
            (o["thing"], (o["box"][0] + o["box"][2]) / 2, (o["box"][1] + o["box"][3]) / 2) for o in picture["objects"]
        ],
        actors={o["thing"]: o for o in clip["objects"]},
        words=[(word, (start + end) / 2) for word, start, end in sound["words"]],
        group=sound["group"],
        snr=sound["snr_db"],
    )


def rows(store: Store) -> list[dict[str, Any]]:
    return [row for split in SCENES for row in store.questions(split).to_pylist()]


@pytest.mark.parametrize("family", RULES)
def test_answers_are_true(store: Store, family: str) -> None:
    asked = [row for row in rows(store) if row["family"] == family]
    assert len(asked) > 20
    for row in asked:
        assert row["answers"] == [RULES[family](row["text"], see(store, row))], row
        assert row["scores"] == [1.0]


def test_spoken_questions_have_the_answers_of_the_written_ones(world: EmojiWorld, store: Store) -> None:
    scenes = [scene for split in SCENES for scene in world.split_scenes(split)]
    texts = {f"{s.key}-spoken{i}": text for s in scenes for i, (_, text, _) in enumerate(s.spoken_questions, start=1)}
    assert all(
        len({family for family, _, _ in scene.spoken_questions}) == len(scene.spoken_questions) for scene in scenes
    )
    spoken = [row for row in rows(store) if row["text"] is None]
    assert len(spoken) == len(texts) > 100
    for row in spoken:
        family = row["family"].removeprefix("spoken_")
        seen, text = see(store, row), texts[row["id"]]
        assert row["answers"] == [RULES[family](text, seen)], row
        said = [word for word, _ in seen.words]
        assert " ".join(said).lower() == text.rstrip("?"), "the sound says the question"
        assert seen.snr >= 15


def test_nobody_is_left_out(world: EmojiWorld, store: Store) -> None:
    assert set(RULES) == {name for name in world.families() if not name.startswith("spoken_")}
    counts = Counter(row["family"] for row in rows(store))
    assert set(counts) == set(world.families())


def test_every_answer_is_in_the_list(world: EmojiWorld, store: Store) -> None:
    answers = set(world.answers())
    assert len(answers) == len(world.answers())
    given = {answer for row in rows(store) for answer in row["answers"]}
    assert given <= answers
    assert {"yes", "no", "both", "neither", "left", "up", "top left", "zero", "three", "frog"} <= given
