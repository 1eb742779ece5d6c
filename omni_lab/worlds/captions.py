"""Captions in English, German and Chinese: phrases about things, and the JSGF grammar of the English ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from omni_lab.worlds.things import Thing, load_table

_TABLE = load_table("captions.yaml")
RELATIONS: dict[str, dict[str, str]] = _TABLE["relations"]
NUMBER_WORDS: dict[str, tuple[str, ...]] = {
    language: tuple(words) for language, words in _TABLE["number_words"].items()
}
CONJUNCTIONS: dict[str, str] = _TABLE["conjunctions"]
SPEAKERS: dict[str, dict[str, str]] = _TABLE["speakers"]
COLOURS: dict[str, tuple[str, str]] = {colour: tuple(words) for colour, words in _TABLE["colours"].items()}
# German indefinite articles and adjective endings by gender, in the nominative and the dative.
_ARTICLES = {"m": ("ein", "einem"), "f": ("eine", "einer"), "n": ("ein", "einem")}
_ENDINGS = {"m": "er", "f": "e", "n": "es"}
_WEAK_NOUNS = {"Elefant": "Elefanten", "Löwe": "Löwen"}  # end in -(e)n in every case but the nominative


def phrase(thing: Thing, language: str, *, count: int = 1, colour: bool = False, dative: bool = False) -> str:
    """A number of things of one kind: "a green frog", "zwei Frösche", "一只青蛙".

    colour: name it, if the thing has one.
    dative: the German case that "links von" and "über" take.
    """
    german, chinese = COLOURS[thing.colour] if colour and thing.colour else ("", "")
    if language == "zh":
        return f"{NUMBER_WORDS['zh'][count]}{thing.measure}{chinese and chinese + '的'}{thing.names['zh']}"
    if language == "de":
        return _german_phrase(thing, count, german, dative)
    adjective = f"{thing.colour} " if german else ""
    if count > 1:
        return f"{NUMBER_WORDS['en'][count]} {adjective}{thing.plural['en']}"
    noun = f"{adjective}{thing.names['en']}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _german_phrase(thing: Thing, count: int, colour: str, dative: bool) -> str:
    if count > 1:
        noun, number = thing.plural["de"], NUMBER_WORDS["de"][count]
        noun += "n" if dative and noun[-1] not in "ns" else ""
        ending = "en" if dative else "e"
    else:
        noun, number = thing.names["de"], _ARTICLES[thing.gender][dative]
        noun = _WEAK_NOUNS.get(noun, noun) if dative else noun
        ending = "en" if dative else _ENDINGS[thing.gender]
    return " ".join(filter(None, (number, colour and colour + ending, noun)))


def relation(first: Thing, where: str, second: Thing, language: str, *, colour: bool = False) -> str:
    """ "a frog left of a key", "ein Frosch links von einem Schlüssel", "一只青蛙在一把钥匙的左边"."""
    words = RELATIONS[where][language]
    if language == "zh":
        return f"{phrase(first, 'zh', colour=colour)}在{phrase(second, 'zh', colour=colour)}的{words}"
    other = phrase(second, language, colour=colour, dative=True)
    return f"{phrase(first, language, colour=colour)} {words} {other}"


def listing(counts: Mapping[Thing, int], language: str) -> str:
    """ "three frogs and a key"."""
    *others, last = [phrase(thing, language, count=count) for thing, count in counts.items()]
    comma = "、" if language == "zh" else ", "
    return comma.join(others) + CONJUNCTIONS[language] + last if others else last


def caption_grammar(things: Iterable[Thing]) -> str:
    """A JSGF grammar that accepts every English caption of these things (see `scene.caption`), without commas.

    It accepts more: any thing in any colour, at any place, in any number. Raises ValueError if there are no things.
    """
    nouns = sorted((thing.names["en"], thing.plural["en"]) for thing in things)
    if not nouns:
        raise ValueError("things must hold at least one thing: got none")
    vowels = [noun for noun, _ in nouns if noun[0] in "aeiou"]
    others = [noun for noun, _ in nouns if noun[0] not in "aeiou"]
    one = [f"a [<colour>] ({' | '.join(others)})"] if others else []
    one += [f"(an | a <colour>) ({' | '.join(vowels)})"] if vowels else []
    return f"""#JSGF V1.0;
grammar captions;
<colour> = {" | ".join(COLOURS)};
<one> = {" | ".join(one)};
<many> = ({" | ".join(NUMBER_WORDS["en"][2:])}) [<colour>] ({" | ".join(many for _, many in nouns)});
<phrase> = <one> | <many>;
<where> = {" | ".join(words["en"] for words in RELATIONS.values())};
public <caption> = <phrase> [<where> <phrase> | [[<phrase>] <phrase>] and <phrase>];
"""
