"""Words that mean two things: only who sees which of them is meant can translate them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from omni_lab.data.worlds.things import Thing

# The language in which both are called alike; then for each of them emoji, English, German with its gender, Chinese
# with its measure word. What is alike is alike in gender and measure word too.
_TABLE = """
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
class Ambiguous:
    """language: in which `senses` are called alike."""

    language: str
    senses: tuple[Thing, Thing]


@cache
def ambiguous_words() -> tuple[Ambiguous, ...]:
    """The whole table, in its fixed order."""
    words = []
    for line in _TABLE.strip().splitlines():
        language, *cells = line.split()
        first, second = (
            Thing(symbol, {"en": en, "de": de, "zh": zh}, {}, gender, measure, None)
            for symbol, en, de, gender, zh, measure in (cells[:6], cells[6:])
        )
        words.append(Ambiguous(language, (first, second)))
    return tuple(words)
