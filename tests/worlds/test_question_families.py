from __future__ import annotations

import pytest

from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.question_families import PLACES, evidence_box, evidence_span

OBJECTS = [{"thing": "drum", "box": [4.0, 4.0, 24.0, 24.0]}, {"thing": "hot dog", "box": [40.0, 36.0, 60.0, 56.0]}]


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("image_where", "where is the drum?", OBJECTS[0]["box"]),
        ("image_where", "where is the hot dog?", OBJECTS[1]["box"]),
        ("image_where", "where is the dog?", None),
        ("image_what", "what is at the top left?", OBJECTS[0]["box"]),
        ("image_what", "what is at the bottom right?", OBJECTS[1]["box"]),
        ("image_what", "what is at the top right?", None),
        ("image_count", "how many drums are there?", None),
    ],
)
def test_the_box_of_what_is_asked_about(family: str, text: str, expected: list[float] | None) -> None:
    assert evidence_box(family, text, {"objects": OBJECTS}, size=64) == expected
    assert evidence_box(family, text, {"objects": OBJECTS * 2}, size=64) is None, "several fit"


def test_the_span_of_the_word_that_answers() -> None:
    facts = {"words": [["hot", 0.1, 0.3], ["dog", 0.3, 0.6], ["drum", 0.9, 1.2]]}
    assert evidence_span("audio_name", "which thing is named first?", "hot dog", facts) == (0.1, 0.6)
    assert evidence_span("audio_name", "which thing is named last?", "drum", facts) == (0.9, 1.2)
    assert evidence_span("audio_voice", "is the speaker a man?", "yes", facts) is None


def test_it_agrees_with_the_worlds_own_answers() -> None:
    world = EmojiWorld(things=8, scenes={"train": 40, "validation": 1, "test": 1}, speech=False)
    found = 0
    for scene in world.split_scenes("train"):
        facts = scene.image_annotations()
        for family, text, answer in scene.questions:
            box = evidence_box(family, text, facts, size=world.image_size)
            if box is None:
                continue
            found += 1
            if family == "image_what":
                assert next(o["thing"] for o in facts["objects"] if o["box"] == box) == answer
            else:
                down, right = box[1] + box[3] > world.image_size, box[0] + box[2] > world.image_size
                assert PLACES[2 * down + right] == answer
    assert found > 5
