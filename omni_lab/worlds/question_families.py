"""What can be asked of a scene of EmojiWorld, what each kind of question needs, and what the answers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni_lab.batch import Modality
from omni_lab.data.sources.base import QuestionFamily

TEXT, IMAGE, AUDIO, VIDEO = Modality
PLACES = ("top left", "top right", "bottom left", "bottom right")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDES = {"x": ("left", "right"), "y": ("top", "bottom")}
MOTION_DIRECTIONS = {"x": ("left", "right"), "y": ("up", "down")}
MOTION_QUESTIONS = {
    "move": "what moves?",
    "stay": "what stays still?",
    "appear": "what appears?",
    "disappear": "what disappears?",
    "blink": "what blinks?",
    "steady": "what does not blink?",
}
# How questions that can also be spoken are asked; `video_what` is asked by `DEEDS`.
QUESTION_TEMPLATES = {
    "text_sum": "what is {first} plus {second}?",
    "image_what": "what is at the {place}?",
    "image_where": "where is the {name}?",
    "image_count": "how many {plural} are there?",
    "video_way": "which way does the {name} move?",
    "image_video_missing": "what is in the {here} but not in the {there}?",
}
ANSWER_RANGES = {"text_letters": (3, 4, 5, 6), "text_sum": tuple(range(2, 10))}
_TA, _TI, _TV, _AI, _AV, _IV = (
    (TEXT, AUDIO),
    (TEXT, IMAGE),
    (TEXT, VIDEO),
    (IMAGE, AUDIO),
    (AUDIO, VIDEO),
    (IMAGE, VIDEO),
)
WRITTEN = {
    "text_sum": QuestionFamily((TEXT,), (), 1 / 8),
    "text_letters": QuestionFamily((TEXT,), (), 1 / 4),
    "text_translate": QuestionFamily((TEXT,), (), None),  # one over the vocabulary: depends on its size
    "image_what": QuestionFamily((TEXT, IMAGE), (_TI,), 1 / 4),  # one of the four things in view
    "image_where": QuestionFamily((TEXT, IMAGE), (_TI,), 1 / 4),
    "image_count": QuestionFamily((TEXT, IMAGE), (_TI,), 1 / 3),
    "image_relation": QuestionFamily((TEXT, IMAGE), (_TI,), 1 / 2),
    "audio_name": QuestionFamily((TEXT, AUDIO), (_TA,), 1 / 2),  # one of the two things named
    "audio_voice": QuestionFamily((TEXT, AUDIO), (_TA,), 1 / 2),
    "audio_noise": QuestionFamily((TEXT, AUDIO), (_TA,), 1 / 2),
    "video_way": QuestionFamily((TEXT, VIDEO), (_TV,), 1 / 2),  # one of the two movements
    "video_what": QuestionFamily((TEXT, VIDEO), (_TV,), 1 / 2),
    "audio_image_count": QuestionFamily((TEXT, IMAGE, AUDIO), (_TA, _AI), 1 / 2),
    "audio_image_where": QuestionFamily((TEXT, IMAGE, AUDIO), (_TA, _AI), 1 / 2),
    "audio_video_seen": QuestionFamily((TEXT, AUDIO, VIDEO), (_TA, _AV), 1 / 2),
    "audio_video_side": QuestionFamily((TEXT, AUDIO, VIDEO), (_TA, _AV), 1 / 2),
    "image_video_missing": QuestionFamily((TEXT, IMAGE, VIDEO), (_TI, _TV, _IV), 1 / 2),
    "all_where": QuestionFamily((TEXT, IMAGE, AUDIO, VIDEO), (_TA, _AI, _AV, _IV), 1 / 2),
}
SPEAKABLE = ("text_sum", "image_what", "image_where", "image_count", "video_way", "video_what", "image_video_missing")


def spoken_family(family: QuestionFamily) -> QuestionFamily:
    """What a kind of question needs if it is spoken instead of written."""
    needs = sorted((AUDIO if m is TEXT else m for m in family.required_modalities), key=lambda m: m.column)
    pairs = [
        sorted((AUDIO if m is TEXT else m for m in pair), key=lambda m: m.column)
        for pair in family.required_interactions
    ]
    return QuestionFamily(tuple(needs), tuple((first, second) for first, second in pairs), family.chance)


def evidence_box(family: str, text: str, facts: Mapping[str, Any], *, size: int) -> list[float] | None:
    """The box (left, top, right, bottom, in pixels) of the one thing that a question about a picture is about: "where
    is the drum?", "what is at the top left?". None for other kinds, and where several things fit.

    facts: of the picture (see `Store.facts`). size: its side in pixels.
    """
    if family == "image_where":
        found = [o for o in facts["objects"] if text == f"where is the {o['thing']}?"]
    elif family == "image_what":
        found = [o for o in facts["objects"] if text == f"what is at the {PLACES[_quarter(o['box'], size)]}?"]
    else:
        return None
    return found[0]["box"] if len(found) == 1 else None


def _quarter(box: list[float], size: int) -> int:
    left, top, right, bottom = box
    return 2 * (top + bottom > size) + (left + right > size)


def evidence_span(family: str, text: str, answer: str, facts: Mapping[str, Any]) -> tuple[float, float] | None:
    """From when to when, in seconds, the word is spoken that answers "which thing is named first?" or "last?". None for
    other kinds.

    facts: of the sound. answer: the right one, as many words as are spoken.
    """
    if family != "audio_name":
        return None
    count = len(answer.split())
    said = facts["words"][:count] if "first" in text else facts["words"][-count:]
    return said[0][1], said[-1][2]
