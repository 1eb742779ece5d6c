"""Nobody answers better than chance without a modality that the question needs, however well the rest is known.

The guesser below knows every fact of the modalities that are left: for each possible answer it counts, on half of the
scenes, how often what it knows of the question and of that answer goes with it, and guesses on the other half.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import pytest

from omni_lab.batch import Modality
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.scene import Scene
from omni_lab.worlds.things import thing_vocabulary

TEXT, IMAGE, AUDIO, VIDEO = Modality
COUNT = 3000
THINGS = thing_vocabulary(8)
NAMES = {name: t.names["en"] for t in THINGS for name in (t.names["en"], t.plural["en"])}


class Asked(NamedTuple):
    scene: Scene
    text: str
    answer: str


@pytest.fixture(scope="module")
def families() -> dict[str, list[Asked]]:
    world = EmojiWorld(things=8, scenes={"train": COUNT, "validation": 1, "test": 1})
    found: dict[str, list[Asked]] = defaultdict(list)
    for scene in world.split_scenes("train"):
        for family, text, answer in scene.questions:
            found[family].append(Asked(scene, text, answer))
    return found


def named(scene: Scene) -> list[str]:
    return [thing.names["en"] for thing in scene.named_things]


def described(scene: Scene, name: str | None, view: set[Modality]) -> Hashable:
    """All that the view tells of one thing."""
    known: list[Hashable] = []
    if IMAGE in view:
        places = [(p.x > 32, p.y > 32) for p in scene.placed_things if p.thing.names["en"] == name]
        known.append(places[0] if len(places) == 1 else len(places))
    if VIDEO in view:
        known += [(a.act, a.axis, a.sign) for a in scene.moving_things if a.thing.names["en"] == name] or [None]
    if AUDIO in view and name in named(scene):
        known.append((named(scene).index(name), len(scene.named_things), scene.midpoints[0] < 1.0))
    return tuple(known)


def context(asked: Asked, view: set[Modality]) -> tuple[str | None, Hashable]:
    """What the view tells of the question: whom it is about, and all else."""
    scene, known = asked.scene, []
    subject = None
    if TEXT in view:
        known.append(re.sub(r"\w+", lambda word: "X" if word[0] in NAMES else word[0], asked.text))
        subject = next((NAMES[word] for word in re.findall(r"\w+", asked.text) if word in NAMES), None)
        if "named" in asked.text and AUDIO in view:
            subject = named(scene)[-1 if "named last" in asked.text else 0]
        known.append(described(scene, subject, view))
        if subject is None and VIDEO in view:
            known.append(sorted((a.act, a.axis) for a in scene.moving_things)[0])
        if subject is None and IMAGE in view:
            known.append(len(scene.placed_things))
    elif AUDIO in view:
        known += [described(scene, name, view) for name in named(scene)]
    elif VIDEO in view:
        known += [(a.act, a.axis) for a in scene.moving_things]
    if AUDIO in view and scene.speech is not None and (TEXT not in view or re.search("speaker|sound", asked.text)):
        known += [scene.speech.voice.group, scene.speech.noisy]
    return subject, tuple(known)


def guesses(asked: list[Asked], view: set[Modality]) -> float:
    """The accuracy on the second half of what was counted on the first."""
    answers = sorted({a.answer for a in asked})
    half = len(asked) // 2

    def clues(a: Asked) -> dict[str, Hashable]:
        subject, known = context(a, view)
        return {
            answer: (known, answer == subject, described(a.scene, answer, view) if answer in NAMES else answer)
            for answer in answers
        }

    seen: Counter[Hashable] = Counter()
    right: Counter[Hashable] = Counter()
    for a in asked[:half]:
        for answer, clue in clues(a).items():
            seen[clue] += 1
            right[clue] += answer == a.answer
    hits = 0.0
    for a in asked[half:]:
        scores = {answer: (right[clue] + 0.1) / (seen[clue] + 0.4) for answer, clue in clues(a).items()}
        best = [answer for answer, score in scores.items() if score == max(scores.values())]
        hits += (a.answer in best) / len(best)
    return hits / (len(asked) - half)


FAMILIES = {name: f for name, f in EmojiWorld(things=8).families().items() if TEXT in f.required_modalities}


def margin(share: float, count: int) -> float:
    """Four standard errors."""
    return 4 * float(np.sqrt(share * (1 - share) / count))


@pytest.mark.parametrize("name", FAMILIES)
def test_whoever_lacks_a_needed_modality_guesses(families: dict[str, list[Asked]], name: str) -> None:
    asked, family = families[name], FAMILIES[name]
    assert family.chance is not None
    bound = margin(family.chance, len({a.scene.key for a in asked}) // 2)  # questions about a scene go together
    accuracies = []
    for lost in family.required_modalities:
        for left in ({*family.required_modalities} - {lost}, {*Modality} - {lost}):
            accuracies.append(guesses(asked, left))
            assert accuracies[-1] <= family.chance + bound, f"{name}: without {lost}, from {left}"
    assert max(accuracies) >= family.chance - bound, "the chance level is one that somebody reaches"


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if len(family.required_modalities) > 1])
def test_whoever_has_them_all_knows(families: dict[str, list[Asked]], name: str) -> None:
    """So that the guesser above is not just a poor one."""
    family = FAMILIES[name]
    assert family.chance is not None
    assert guesses(families[name], {*family.required_modalities}) > 0.5 + family.chance / 2


EVEN = {
    "text_sum": 8,
    "text_letters": 4,
    "text_translate": 8,
    "image_what": 8,
    "image_where": 4,
    "image_relation": 2,
    "audio_voice": 2,
    "audio_noise": 2,
    "video_way": 4,
    "video_what": 8,
    "audio_image_where": 4,
    "audio_video_seen": 2,
    "audio_video_side": 4,
    "all_where": 4,
}


@pytest.mark.parametrize("name", EVEN)
def test_answers_are_even(families: dict[str, list[Asked]], name: str) -> None:
    counts = Counter(a.answer for a in families[name])
    assert len(counts) == EVEN[name]
    for answer, count in counts.items():
        share, even = count / counts.total(), 1 / len(counts)
        assert abs(share - even) < margin(even, counts.total()), answer


def test_as_many_as_are_there(families: dict[str, list[Asked]]) -> None:
    """None, one, or more than one: a third each."""
    for name in ("image_count", "audio_image_count"):
        counts = Counter({"zero": 0, "one": 1}.get(a.answer, 2) for a in families[name])
        for count in counts.values():
            assert abs(count / counts.total() - 1 / 3) < margin(1 / 3, counts.total())
