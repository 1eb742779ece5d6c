"""Where the evidence lies: what a question of EmojiWorld is about, in its picture or its sound. Known because the world
is ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni_lab.data.worlds.families import PLACES


def asked_box(family: str, text: str, facts: Mapping[str, Any], *, size: int) -> list[float] | None:
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


def asked_span(family: str, text: str, answer: str, facts: Mapping[str, Any]) -> tuple[float, float] | None:
    """From when to when, in seconds, the word is spoken that answers "which thing is named first?" or "last?". None for
    other kinds.

    facts: of the sound. answer: the right one, as many words as are spoken.
    """
    if family != "audio_name":
        return None
    count = len(answer.split())
    said = facts["words"][:count] if "first" in text else facts["words"][-count:]
    return said[0][1], said[-1][2]
