"""What rules say about things at their places, and template matching."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import Modality, OmniBatch
from omni_lab.evaluation.multitask import iter_examples
from omni_lab.evaluation.multitask_baselines import (
    answer_by_rule,
    detect_things,
    place_detections,
    prior_answers,
    template_captions,
)
from omni_lab.evaluation.template_matching import match_templates
from omni_lab.heads.detection import DetectionHead, DetectionOutput, Detections
from omni_lab.metrics.detection import mean_average_precision
from omni_lab.model import OmniModel
from omni_lab.worlds.scene import PlacedThing
from omni_lab.worlds.task_examples import AskedQuestion
from omni_lab.worlds.tasks import TaskDataset
from omni_lab.worlds.things import thing_vocabulary
from tests.lightning_modules.test_multitask import tiny_recipe

THINGS = thing_vocabulary(8)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskDataset]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI_LAB_ROOT", str(tmp_path_factory.mktemp("heads")))
        yield tiny_recipe().data_module().dataset("test")


def at(number: int, x: float, y: float) -> PlacedThing:
    return PlacedThing(THINGS[number], x, y, 24, 0.0)


class Annotator(OmniModel):
    """Its detection head finds the annotated objects; it records the batches."""

    def __init__(self, labels: Tensor, boxes: Tensor) -> None:
        nn.Module.__init__(self)
        self.seen: list[OmniBatch] = []
        self.logits = nn.functional.one_hot(labels % 9, 9) * 20.0  # -1 is no object
        self.boxes = boxes
        head = object.__new__(DetectionHead)
        self.__dict__["heads"] = {"detection": head}

    def forward(self, batch: OmniBatch, *, heads: Any) -> Any:  # type: ignore[override]
        rows = slice(len(self.seen) * 4, len(self.seen) * 4 + len(batch))
        self.seen.append(batch)
        output = DetectionOutput(self.logits[None, rows], self.boxes[None, rows])
        return SimpleNamespace(head_outputs={"detection": output})


def test_questions_and_answers_are_those_of_the_examples(tasks: TaskDataset) -> None:
    for k in range(6):
        asked, example = tasks.asked_question(k), tasks.batch("answer", [k])
        assert [asked.family] == [*example.kinds] and [asked.answer] == [*example.references[0]]
        ids = example.inputs[Modality.TEXT].values[0]
        assert ids.tolist() == tasks.tokenizer.encode_input(asked.text)


def test_annotated_things_answer_every_question_about_an_image(tasks: TaskDataset) -> None:
    asked = [q for q in map(tasks.asked_question, range(60)) if q.family.startswith("image_")]
    assert {q.family for q in asked} == {"image_what", "image_where", "image_count"}
    assert [answer_by_rule(q.text, q.placed, 64) for q in asked] == [q.answer for q in asked]
    none = [answer_by_rule(q.text, [], 64) for q in asked]
    assert [n for n, q in zip(none, asked, strict=True) if q.family != "image_count"] == [None] * none.count(None)
    assert {n for n, q in zip(none, asked, strict=True) if q.family == "image_count"} == {"zero"}


def test_answers_follow_the_places() -> None:
    placed = [at(0, 10, 12), at(1, 50, 12), at(0, 12, 50)]
    name, plural = THINGS[0].names["en"], THINGS[0].plural["en"]
    assert answer_by_rule("what is at the top right?", placed, 64) == THINGS[1].names["en"]
    assert answer_by_rule("what is at the bottom right?", [at(1, 40, 40), *placed], 64) == THINGS[1].names["en"]
    assert answer_by_rule(f"where is the {name}?", placed, 64) == "top left", "the surest one"
    assert answer_by_rule(f"where is the {name}?", placed[1:], 64) == "bottom left"
    assert answer_by_rule(f"where is the {THINGS[2].names['en']}?", placed, 64) is None
    assert answer_by_rule(f"how many {plural} are there?", placed, 64) == "two"
    assert answer_by_rule(f"how many {THINGS[2].plural['en']} are there?", placed, 64) == "zero"


def test_priors_of_texts_and_of_families() -> None:
    seen = [AskedQuestion((), *row) for row in (("a", "x", "1"), ("a", "x", "1"), ("a", "y", "2"), ("b", "z", "3"))]
    asked = [AskedQuestion((), *row) for row in (("a", "y", ""), ("a", "new", ""), ("c", "new", ""), ("b", "w", ""))]
    assert prior_answers(seen, asked, by_text=True) == ["2", "1", None, "3"]
    assert prior_answers(seen, asked, by_text=False) == ["1", "1", None, "3"]


def test_detections_become_things_at_their_places() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]])
    found = Detections(torch.tensor([3, 1, 1]), torch.tensor([0.9, 0.6, 0.2]), boxes)
    assert place_detections(found, THINGS, 64) == [
        PlacedThing(THINGS[3], 16.0, 8.0, 24, 0.0),
        PlacedThing(THINGS[1], 48.0, 48.0, 32, 0.0),
    ]
    assert len(place_detections(found, THINGS, 64, threshold=0.0)) == 3
    assert [p.thing for p in place_detections(found, THINGS, 64, threshold=1.1)] == [THINGS[3]], "at least the best"
    many = Detections(*(torch.cat([column] * 2) for column in found))
    assert len(place_detections(many, THINGS, 64, threshold=0.0)) == 4, "at most four"


def test_a_right_detector_makes_right_captions_from_images_alone(tasks: TaskDataset) -> None:
    scenes = [tasks.caption_scene(k)[0] for k in range(10)]
    labels, boxes = torch.full((10, 4), -1), torch.zeros(10, 4, 4)
    for i, placed in enumerate(scenes):
        labels[i, : len(placed)] = torch.tensor([tasks.things.index(p.thing) for p in placed])
        boxes[i, : len(placed)] = torch.tensor([p.box for p in placed]) / 64
    batches = list(iter_examples(tasks, "describe"))
    asked = [replace(b, batch=replace(b.batch, inputs=b.inputs | {Modality.TEXT: None})) for b in batches]
    model = Annotator(labels, boxes)
    found = detect_things(model, asked, tasks.things)
    assert [[*b.inputs] for b in model.seen] == [[Modality.IMAGE]] * 3
    kinds = [kind for batch in batches for kind in batch.kinds]
    captions = template_captions(found, kinds)
    for text, kind, example in zip(captions, kinds, (r for b in batches for r in b.references), strict=True):
        assert "begun" in kind or text in [reference.lower() for reference in example]


def test_templates_are_found_where_they_are(tasks: TaskDataset) -> None:
    batches = list(iter_examples(tasks, "find"))
    images = torch.cat([batch.inputs[Modality.IMAGE].values for batch in batches])
    labels, boxes = (torch.cat([batch.targets[name] for batch in batches]) for name in ("labels", "boxes"))
    found = match_templates(images, tasks.things)
    score = mean_average_precision(found, labels, boxes, resamples=1)
    assert score.map50.value > 0.8 and score.map.value > 0.55
    wrong = mean_average_precision(found, labels.roll(1, 0), boxes.roll(1, 0), resamples=1)
    assert wrong.map50.value < 0.3
    for objects in found:
        assert 1 <= len(objects.scores) <= 8 and (objects.scores.diff() <= 0).all() and objects.scores.max() <= 1.001
        assert (objects.boxes >= 0).all() and (objects.boxes <= 1).all()
    turned = match_templates(images.flip(0), tasks.things)
    assert torch.equal(turned[0].boxes, found[-1].boxes), "images do not depend on each other"


def test_templates_need_square_images() -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, 3, side, side\]: got \[2, 3, 64, 32\]"):
        match_templates(torch.zeros(2, 3, 64, 32, dtype=torch.uint8), THINGS)
