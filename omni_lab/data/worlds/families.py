"""What can be asked of a scene of EmojiWorld, what each kind of question needs, and what the answers are."""

from __future__ import annotations

from omni_lab.data.sources import Family
from omni_lab.modalities import Modality

TEXT, IMAGE, AUDIO, VIDEO = Modality
PLACES = ("top left", "top right", "bottom left", "bottom right")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDES = {"x": ("left", "right"), "y": ("top", "bottom")}
WAYS = {"x": ("left", "right"), "y": ("up", "down")}
DEEDS = {
    "move": "what moves?",
    "stay": "what stays still?",
    "appear": "what appears?",
    "disappear": "what disappears?",
    "blink": "what blinks?",
    "steady": "what does not blink?",
}
# How questions that can also be spoken are asked; `video_what` is asked by `DEEDS`.
FORMS = {
    "text_sum": "what is {first} plus {second}?",
    "image_what": "what is at the {place}?",
    "image_where": "where is the {name}?",
    "image_count": "how many {plural} are there?",
    "video_way": "which way does the {name} move?",
    "image_video_missing": "what is in the {here} but not in the {there}?",
}
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
SPEAKABLE = ("text_sum", "image_what", "image_where", "image_count", "video_way", "video_what", "image_video_missing")


def spoken_family(family: Family) -> Family:
    """What a kind of question needs if it is spoken instead of written."""
    needs = sorted((AUDIO if m is TEXT else m for m in family.needs), key=lambda m: m.column)
    pairs = [sorted((AUDIO if m is TEXT else m for m in pair), key=lambda m: m.column) for pair in family.interactions]
    return Family(tuple(needs), tuple((first, second) for first, second in pairs), family.chance)
