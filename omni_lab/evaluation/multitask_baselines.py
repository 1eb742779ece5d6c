"""Baselines of the task heads that a rule gives: what detected or annotated things say, and priors without an image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from omni_lab.batch import Modality
from omni_lab.evaluation.multitask import normalize_text
from omni_lab.heads.detection import Detections
from omni_lab.model import OmniModel
from omni_lab.worlds.question_families import DIGITS, PLACES, QUESTION_TEMPLATES
from omni_lab.worlds.scene import PlacedThing, caption
from omni_lab.worlds.task_examples import MAX_THINGS, AskedQuestion
from omni_lab.worlds.tasks import TaskBatch
from omni_lab.worlds.things import Thing


@torch.inference_mode()
def detect_things(
    model: OmniModel, batches: Iterable[TaskBatch], things: Sequence[Thing], *, threshold: float = 0.5
) -> list[list[PlacedThing]]:
    """What the detection head finds in each image, alone: all other inputs of the batches are left out.

    things: of the head's classes, in their order. threshold: see `place_detections`.
    """
    head: Any = model.heads["detection"]
    found = []
    for batch in batches:
        images = batch.batch
        for modality in set(Modality) - {Modality.IMAGE}:
            images = images.without(modality)
        side = batch.inputs[Modality.IMAGE].values.shape[-1]
        output = model(images, heads={"detection": {}}).head_outputs["detection"]
        found += [place_detections(d, things, side, threshold=threshold) for d in head.post_process(output)]
    return found


def place_detections(
    detections: Detections, things: Sequence[Thing], side: int, *, threshold: float = 0.5
) -> list[PlacedThing]:
    """Detections as things at their places: those that score at least `threshold`, at most four, but at least the best,
    as every image shows one to four things. side: of the image in pixels."""
    count = min(MAX_THINGS, max(1, int((detections.scores >= threshold).sum())))
    rows = zip(detections.labels[:count].tolist(), (detections.boxes[:count] * side).tolist(), strict=True)
    return [
        PlacedThing(
            things[label], (left + right) / 2, (top + bottom) / 2, round((right - left + bottom - top) / 2), 0.0
        )
        for label, (left, top, right, bottom) in rows
    ]


def template_captions(found: Sequence[Sequence[PlacedThing]], kinds: Sequence[str]) -> list[str]:
    """A caption of each image by the world's own template. kinds: of the examples; they begin with the language."""
    return [normalize_text(caption(placed, kind[:2])) for placed, kind in zip(found, kinds, strict=True)]


def answer_by_rule(text: str, placed: Sequence[PlacedThing], side: int) -> str | None:
    """The answer that things at their places give to a question about an image; None if they give none.

    text: of the family image_what, image_where or image_count. placed: all things of the image, surest first.
    side: of the image in pixels.
    """
    what, where, count = (QUESTION_TEMPLATES[f"image_{kind}"] for kind in ("what", "where", "count"))
    for i, place in enumerate(PLACES):
        if text == what.format(place=place):
            x, y = side * (0.25 + 0.5 * (i % 2)), side * (0.25 + 0.5 * (i // 2))
            nearest = sorted(placed, key=lambda p: (p.x - x) ** 2 + (p.y - y) ** 2)[:1]
            return nearest[0].thing.names["en"] if nearest else None
    for p in placed:
        if text == where.format(name=p.thing.names["en"]):
            return PLACES[2 * (p.y > side / 2) + (p.x > side / 2)]
    if text.startswith(count.split("{")[0]):
        return DIGITS[sum(text == count.format(plural=p.thing.plural["en"]) for p in placed)]
    return None


def prior_answers(seen: Iterable[AskedQuestion], asked: Iterable[AskedQuestion], *, by_text: bool) -> list[str | None]:
    """The most frequent answer in training, without looking at the image: to the same text if `by_text` and if it was
    asked, else to its family; None for a new family."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in seen:
        for key in (question.family, question.text):
            counts[key][question.answer] += 1
    keys = [[q.text, q.family] if by_text else [q.family] for q in asked]
    return [next((counts[k].most_common(1)[0][0] for k in ks if k in counts), None) for ks in keys]
