"""What can be said of a scene, in English, German and Chinese: a small grammar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from omni_lab.worlds.things import Thing

RELATIONS = {
    "left": {"en": "left of", "de": "links von", "zh": "左边"},
    "right": {"en": "right of", "de": "rechts von", "zh": "右边"},
    "above": {"en": "above", "de": "über", "zh": "上面"},
    "below": {"en": "below", "de": "unter", "zh": "下面"},
}
NUMBER_WORDS = {
    "en": ("no", "one", "two", "three", "four"),
    "de": ("kein", "ein", "zwei", "drei", "vier"),
    "zh": ("没有", "一", "两", "三", "四"),
}
JOINTS = {"en": " and ", "de": " und ", "zh": "和"}
SPEAKERS = {
    "woman": {"en": "a woman says: ", "de": "eine Frau sagt: ", "zh": "女人说："},
    "man": {"en": "a man says: ", "de": "ein Mann sagt: ", "zh": "男人说："},
}
COLOURS = {
    "green": ("grün", "绿色"),
    "yellow": ("gelb", "黄色"),
    "red": ("rot", "红色"),
    "blue": ("blau", "蓝色"),
}
# German indefinite articles and adjective endings by gender, in the nominative and the dative.
_ARTICLES = {"m": ("ein", "einem"), "f": ("eine", "einer"), "n": ("ein", "einem")}
_ENDINGS = {"m": "er", "f": "e", "n": "es"}
_WEAK = {"Elefant": "Elefanten", "Löwe": "Löwen"}  # nouns that end in -(e)n in every case but the first


def phrase(thing: Thing, language: str, *, count: int = 1, colour: bool = False, dative: bool = False) -> str:
    """So many of a thing: "a green frog", "zwei Frösche", "一只青蛙". colour: say it, where the thing has one.

    dative: in German, as "links von" and "über" want it.
    """
    german, chinese = COLOURS[thing.colour] if colour and thing.colour else ("", "")
    if language == "zh":
        return f"{NUMBER_WORDS['zh'][count]}{thing.measure}{chinese and chinese + '的'}{thing.names['zh']}"
    if language == "de":
        return _german(thing, count, german, dative)
    shade = f"{thing.colour} " if german else ""
    if count > 1:
        return f"{NUMBER_WORDS['en'][count]} {shade}{thing.plural['en']}"
    noun = f"{shade}{thing.names['en']}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _german(thing: Thing, count: int, shade: str, dative: bool) -> str:
    if count > 1:
        noun = thing.plural["de"] + ("n" if dative and thing.plural["de"][-1] not in "ns" else "")
        return " ".join(
            filter(None, (NUMBER_WORDS["de"][count], shade and shade + "en" * dative + "e" * (not dative), noun))
        )
    ending = "en" if dative else _ENDINGS[thing.gender]
    noun = thing.names["de"]
    noun = _WEAK.get(noun, noun) if dative else noun
    return " ".join(filter(None, (_ARTICLES[thing.gender][dative], shade and shade + ending, noun)))


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
    return comma.join(others) + JOINTS[language] + last if others else last


def caption_grammar(things: Iterable[Thing]) -> str:
    """JSGF: every English caption of a picture (`omni_lab.data.worlds.captions`) of these things, and more: anything
    may have any colour, and stand anywhere in any number. Commas are not heard."""
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
