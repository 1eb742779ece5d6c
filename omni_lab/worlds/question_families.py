"""The families of questions about a scene: what each requires, its texts, and where in the media the evidence lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omni_lab.batch import Modality
from omni_lab.data.sources.base import QuestionFamily
from omni_lab.worlds.things import load_table

TEXT, IMAGE, AUDIO, VIDEO = Modality
PLACES = ("top left", "top right", "bottom left", "bottom right")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TABLE = load_table("questions.yaml")
QUESTION_TEMPLATES: dict[str, str] = {name: row["template"] for name, row in _TABLE["families"].items()}
MOTION_QUESTIONS: dict[str, str] = _TABLE["motions"]
SPEAKABLE = tuple(name for name, row in _TABLE["families"].items() if row["speakable"])


def _family(interactions: Sequence[str], one_in: int | None) -> QuestionFamily:
    pairs = [pair.split("-") for pair in interactions]
    required = tuple(m for m in Modality if m is TEXT or any(m.value in pair for pair in pairs))
    return QuestionFamily(required, tuple((Modality(a), Modality(b)) for a, b in pairs), one_in and 1 / one_in)


WRITTEN = {name: _family(row["interactions"], row["one_in"]) for name, row in _TABLE["families"].items()}


def spoken_family(family: QuestionFamily) -> QuestionFamily:
    """The family of the same questions when they are spoken: audio takes the place of text."""

    def with_audio(modalities: Iterable[Modality]) -> list[Modality]:
        return sorted((AUDIO if m is TEXT else m for m in modalities), key=lambda m: m.column)

    pairs = tuple((a, b) for a, b in map(with_audio, family.required_interactions))
    return QuestionFamily(tuple(with_audio(family.required_modalities)), pairs, family.chance)


def evidence_box(family: str, text: str, annotations: Mapping[str, Any], *, size: int) -> list[float] | None:
    """The box (left, top, right, bottom, in pixels) of the one thing that a question about an image is about.

    None for other families than `image_where` and `image_what`, and where several things fit.
    annotations: of the image (see `Store.annotations`).
    size: side of the image in pixels.
    """

    def question(thing: str, box: list[float]) -> str:
        left, top, right, bottom = box
        place = PLACES[2 * (top + bottom > size) + (left + right > size)]
        return QUESTION_TEMPLATES[family].format(name=thing, place=place)

    if family not in ("image_where", "image_what"):
        return None
    boxes = [o["box"] for o in annotations["objects"] if text == question(o["thing"], o["box"])]
    return boxes[0] if len(boxes) == 1 else None


def evidence_span(family: str, text: str, answer: str, annotations: Mapping[str, Any]) -> tuple[float, float] | None:
    """The start and end, in seconds, of the spoken answer to "which thing is named first?" or "last?".

    None for other families than `audio_name`.
    answer: the right one; it has as many words as are spoken.
    annotations: of the audio.
    """
    if family != "audio_name":
        return None
    count = len(answer.split())
    words = annotations["words"][:count] if "first" in text else annotations["words"][-count:]
    return words[0][1], words[-1][2]
