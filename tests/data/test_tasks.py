"""What heads are trained on: batches that say what is true of their pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from omni_lab.data import EmojiWorld
from omni_lab.data.tokenizer import Codec, train_tokenizer
from omni_lab.data.worlds.ambiguous import ambiguous_words
from omni_lab.data.worlds.captions import relation
from omni_lab.data.worlds.scenes import Placed
from omni_lab.data.worlds.tasks import DAMAGES, TASKS, HeadTasks, captions, damage_pictures
from omni_lab.data.worlds.things import LANGUAGES, artwork, vocabulary
from omni_lab.modalities import Modality

TEXT, IMAGE = Modality.TEXT, Modality.IMAGE
WORLD = EmojiWorld(things=8, scenes={"train": 4, "validation": 2, "test": 2}, speech=False)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(train_tokenizer(WORLD.corpus(), vocab_size=500), max_length=120)


def tasks(codec: Codec, task: str, *, split: str = "train", size: int = 12, seed: int = 0) -> HeadTasks:
    return HeadTasks(WORLD, codec, split, size=size, batches=4, mix={task: 1.0}, seed=seed)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_depends_on_its_number_alone(codec: Codec, task: str) -> None:
    one, two, other = tasks(codec, task)[2], tasks(codec, task)[2], tasks(codec, task, seed=1)[2]
    assert one.task == task and one.kinds == two.kinds
    for name, values in one.inputs.targets.items():
        assert torch.equal(values, two.inputs.targets[name])
    assert torch.equal(one.inputs.inputs[IMAGE].values, two.inputs.inputs[IMAGE].values)
    assert not torch.equal(one.inputs.inputs[IMAGE].values, other.inputs.inputs[IMAGE].values)
    assert not torch.equal(
        one.inputs.inputs[IMAGE].values, tasks(codec, task, split="test")[2].inputs.inputs[IMAGE].values
    )


def test_tasks_come_as_often_as_they_are_to(codec: Codec) -> None:
    mix = {"see": 3.0, "translate": 1.0}
    drawn = HeadTasks(WORLD, codec, "train", size=1, batches=200, mix=mix)
    found = Counter(drawn[i].task for i in range(200))
    assert 0.65 < found["see"] / 200 < 0.85 and set(found) == {*mix}
    assert [HeadTasks(WORLD, codec, "test", size=1, batches=4, mix=mix)[i].task for i in range(4)] == [*mix] * 2


def test_what_is_seen_is_said_and_where(codec: Codec) -> None:
    batch = tasks(codec, "see")[0]
    targets, names = batch.inputs.targets, [t.names["en"] for t in vocabulary(8)]
    said = codec.texts(targets["target"])
    for text, right, labels, boxes, language in zip(
        said, batch.references, targets["labels"], targets["boxes"], batch.kinds, strict=True
    ):
        assert text in [r.lower() for r in right]
        there = labels >= 0
        assert 1 <= int(there.sum()) <= 4 and (boxes[there] >= 0).all() and (boxes[there] <= 1).all()
        assert (boxes[there, 2:] > boxes[there, :2]).all() and (boxes[~there] == 0).all()
        if language == "en":
            assert all(names[i].split()[0] in text or names[i][:3] in text for i in labels[there].tolist())


def test_a_caption_may_begin_with_either(codec: Codec) -> None:
    frog, key = vocabulary(8)[0], vocabulary(8)[5]
    two = [Placed(frog, 16, 16, 20, 0), Placed(key, 48, 18, 20, 0)]
    assert captions(two, "en") == ["a green frog left of a key", "a key right of a green frog"]
    three = [*two, Placed(frog, 16, 48, 20, 0)]
    assert captions(three, "de") == ["zwei Frösche und ein Schlüssel", "ein Schlüssel und zwei Frösche"]
    assert captions(two[:1], "zh") == ["一只青蛙"]


def test_each_word_means_two_things_in_one_language_and_one_in_the_others() -> None:
    frog = vocabulary(8)[0]
    words = ambiguous_words()
    assert len({s.emoji for w in words for s in w.senses}) == 2 * len(words) == 44
    assert not {s.emoji for w in words for s in w.senses} & {t.emoji for t in vocabulary(32)}
    for word in words:
        for sense in word.senses:
            assert artwork(sense.emoji).size == (72, 72)
        for language in LANGUAGES:
            sentences = [
                (relation(s, "left", frog, language), relation(frog, "above", s, language)) for s in word.senses
            ]
            assert (sentences[0] == sentences[1]) is (language == word.language), (word.senses[0].names, language)


def test_who_cannot_see_is_right_half_of_the_time(codec: Codec) -> None:
    """The same source sentence is translated either way equally often."""
    drawn = HeadTasks(WORLD, codec, "train", size=400, batches=1, mix={"translate": 1.0})[0]
    senses = {s.names["zh"]: k for w in ambiguous_words() if w.language == "en" for k, s in enumerate(w.senses)}
    found = Counter(
        k
        for (target,), kind in zip(drawn.references, drawn.kinds, strict=True)
        for name, k in senses.items()
        if kind == "en-zh, ambiguous" and name in target
    )
    assert sum(found.values()) > 50 and abs(found[0] - found[1]) < 4 * sum(found.values()) ** 0.5
    plain = sum("plain" in kind for kind in drawn.kinds) / 400
    assert 0.15 < plain < 0.35
    assert drawn.inputs.present[:, [TEXT.column, IMAGE.column]].all()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_what_it_says(codec: Codec, damage: str) -> None:
    world_tasks = tasks(codec, "restore")
    rng = np.random.default_rng(0)
    scenes = [world_tasks.scene(rng) for _ in range(6)]
    pictures = torch.stack([world_tasks._drawn(scene, rng) for scene in scenes])
    damaged, kept = damage_pictures(pictures, scenes, damage, rng)
    assert damaged.shape == pictures.shape and damaged.dtype == torch.uint8 and not torch.equal(damaged, pictures)
    if damage == "hole":
        assert kept is not None
        share = 1 - kept.float().mean((1, 2))
        assert (share > 0.05).all() and (share < 0.3).all()
        assert torch.equal(damaged[kept[:, None].expand_as(damaged)], pictures[kept[:, None].expand_as(damaged)])
        assert (damaged[~kept[:, None].expand_as(damaged)] == 0).all()
    else:
        assert kept is None
    if damage == "coarse":
        assert torch.equal(damaged[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), damaged)
    if damage == "noise":
        off = damaged.float() - pictures.float()
        assert 30 < off.std() < 60 and off.mean().abs() < 8


def test_every_other_damaged_picture_comes_with_words(codec: Codec) -> None:
    batch = HeadTasks(WORLD, codec, "test", size=6, batches=1, mix={"restore": 1.0})[0]
    assert batch.inputs.present[:, TEXT.column].tolist() == [False, True] * 3
    assert [kind.split(", ")[1] for kind in batch.kinds] == ["untold", "told"] * 3
    assert torch.equal(batch.inputs.inputs[IMAGE].values, batch.inputs.targets["damaged"])


def test_an_unknown_task_is_named(codec: Codec) -> None:
    with pytest.raises(ValueError, match=r"tasks must be of .*'translate'.* got \['sing'\] and 'train'"):
        HeadTasks(WORLD, codec, "train", size=1, batches=1, mix={"sing": 1.0})
