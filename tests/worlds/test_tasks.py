"""The tasks of the multitask model: targets agree with the images and the audio of each example."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS
from omni_lab.data.tokenizer import LETTERS, DecoderTokenizer, train_tokenizer
from omni_lab.layers.mel import HOP_LENGTH
from omni_lab.worlds import task_examples
from omni_lab.worlds.captions import phrase, relation
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import HELD_OUT_VOICES
from omni_lab.worlds.scene import PlacedThing, Scene, _noises, caption, valid_captions
from omni_lab.worlds.sentence_sampler import DIRECTIONS, TRANSCRIPTION_KINDS, TTS_VOICES, SentenceSampler
from omni_lab.worlds.task_examples import DAMAGE_CYCLE, DAMAGES, TASKS, strip_punctuation
from omni_lab.worlds.tasks import TaskBatch, TaskDataset
from omni_lab.worlds.things import LANGUAGES, Thing, ambiguous_words, artwork, sprite, thing_vocabulary

TEXT, IMAGE, AUDIO = Modality.TEXT, Modality.IMAGE, Modality.AUDIO
WORLD = EmojiWorld(things=8)
LARGE = EmojiWorld(things=32)
Make = Callable[..., TaskDataset]


@pytest.fixture(scope="module")
def tokenizer() -> DecoderTokenizer:
    return DecoderTokenizer(
        train_tokenizer(SentenceSampler(WORLD, "train").corpus(20, seed=0), vocab_size=1000), max_length=120
    )


@pytest.fixture(scope="module")
def make(tokenizer: DecoderTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Tasks of a split; all of the module share one folder of sounds."""
    folder = tmp_path_factory.mktemp("utterances")

    def made(split: str = "train", *, seed: int = 0, mix: dict[str, float] | None = None, size: int = 6) -> TaskDataset:
        examples = dict.fromkeys(TASKS, 400) | {"transcribe": 24, "speak": 9}
        mix = mix or dict.fromkeys(TASKS, 1.0)
        sizes = dict.fromkeys(TASKS, size)
        return TaskDataset(WORLD, tokenizer, split, sizes=sizes, examples=examples, folder=folder, mix=mix, seed=seed)

    return made


def alone(batch: TaskBatch, i: int) -> dict[str, Tensor]:
    """All that one sample of a batch consists of, without the padding."""
    found = {}
    for modality, given in batch.inputs.items():
        row = int(given.entry_index[i])
        if row >= 0:
            found[modality.value] = given.values[row] if modality is IMAGE else given.values[row][given.mask[row]]
    for name, values in batch.targets.items():
        if name in ("prompt", "target", "ids"):
            found[name] = values[i][values[i] >= 0]
        elif name == "wave":
            found[name] = values[i, : HOP_LENGTH * int(batch.targets["durations"][i].sum())]
        else:
            found[name] = values[i][values[i] > 0] if name == "durations" else values[i]
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def read(tokenizer: DecoderTokenizer, batch: TaskBatch) -> list[str]:
    return [tokenizer.decode(alone(batch, i)["text"].tolist()).strip() for i in range(len(batch))]


def watched(tasks: TaskDataset, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[PlacedThing]]:
    """What stands in each picture that is drawn from here on."""
    seen: list[Sequence[PlacedThing]] = []
    render, sample_damaged = tasks._render, tasks._sample_damaged

    def watch(placed: Sequence[PlacedThing], rng: np.random.Generator) -> Tensor:
        seen.append(placed)
        return render(placed, rng)

    def watch_damaged(rng: np.random.Generator) -> tuple[Image.Image, Sequence[PlacedThing], int]:
        base, placed, which = sample_damaged(rng)
        seen.append(placed)
        return base, placed, which

    monkeypatch.setattr(tasks, "_render", watch)
    monkeypatch.setattr(tasks, "_sample_damaged", watch_damaged)
    return seen


def keys_of(things: Sequence[Thing]) -> frozenset[str]:
    """A set of things; both senses of a word count as one."""
    words = {s.emoji: f"word {i}" for i, w in enumerate(ambiguous_words()) for s in w.senses}
    return frozenset(words.get(t.emoji, t.emoji) for t in things)


@pytest.mark.parametrize("task", TASKS)
def test_an_example_depends_on_its_number_alone(make: Make, task: str) -> None:
    wanted = {"damage": "hole"} if task == "restore" else {}
    one, two = make().batch(task, [3, 7], **wanted), make().batch(task, [7, 5, 6], **wanted)
    assert one.task == task and one.kinds[1] == two.kinds[0] and one.batch.ids[1] == two.batch.ids[0]
    assert same(alone(one, 1), alone(two, 0)), "whatever it is batched with"
    assert not same(alone(one, 0), alone(one, 1))
    for other in (make(seed=1), make("test")):
        assert not same(alone(one, 1), alone(other.batch(task, [7, 5], **wanted), 0))


def test_a_training_batch_depends_on_its_number_alone(make: Make) -> None:
    mix = {"find": 1.0, "transcribe": 1.0}
    for number in (4, 5, 6, 7):
        one, two = make(mix=mix)[number], make(mix=mix)[number]
        assert one.batch.ids == two.batch.ids
        assert all(same(alone(one, i), alone(two, i)) for i in range(len(one)))
        assert one.batch.ids != make(mix=mix, seed=1)[number].batch.ids


def test_tasks_come_as_often_as_they_are_to(make: Make) -> None:
    mix = {"find": 3.0, "translate": 1.0}
    drawn = make(mix=mix, size=1)
    found = Counter(drawn[i].task for i in range(200))
    assert 0.65 < found["find"] / 200 < 0.85 and set(found) == {*mix}


def test_outside_training_every_example_comes_once(make: Make) -> None:
    drawn = make("validation", mix={"transcribe": 1.0, "speak": 3.0}, size=7)
    batches = [drawn[i] for i in range(len(drawn))]
    expected = [f"validation-{task}-{k}" for task, n in (("transcribe", 24), ("speak", 9)) for k in range(n)]
    assert [name for batch in batches for name in batch.batch.ids] == expected
    assert all({*batch.batch.tasks} == {batch.task} and len(batch) <= 7 for batch in batches)


def test_what_is_seen_is_said(make: Make, tokenizer: DecoderTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = make("test")
    seen = watched(tasks, monkeypatch)
    batch = tasks.batch("describe", range(200))
    begun = tokenizer.batch_decode(batch.targets["prompt"])
    rest = tokenizer.batch_decode(batch.targets["target"])
    for i, (placed, kind, known) in enumerate(zip(seen, batch.kinds, batch.references, strict=True)):
        language, *how = kind.split(", ")
        said = {c.lower() for c in valid_captions(placed, language)}
        assert how == (["begun"] if begun[i] else [])
        assert batch.targets["prompt"][i].max() == tokenizer.control_token_id(language)
        space = " " if begun[i] and language != "zh" else ""
        assert begun[i] + space + rest[i] in said
        assert rest[i] in [r.lower() for r in known] and all(known)
        assert {begun[i] + space + r.lower() for r in known} == {c for c in said if c.startswith(begun[i] + space)}
    assert {kind.split(",")[0] for kind in batch.kinds} == {*LANGUAGES}
    assert 0.06 < sum(map(bool, begun)) / 200 < 0.2, "of those long enough, one in six"
    assert batch.batch.present[:, IMAGE.column].all()


def test_what_is_found_stands_where_it_is_said_to(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = make()
    seen = watched(tasks, monkeypatch)
    batch = tasks.batch("find", range(60))
    labels, boxes = batch.targets["labels"], batch.targets["boxes"]
    assert labels.shape == (60, 4) and boxes.shape == (60, 4, 4)
    for placed, names, places, kind in zip(seen, labels, boxes, batch.kinds, strict=True):
        there = names >= 0
        assert int(there.sum()) == len(placed) == int(kind)
        assert [thing_vocabulary(8)[i] for i in names[there].tolist()] == [p.thing for p in placed]
        assert torch.allclose(places[there], torch.tensor([p.box for p in placed]).clamp(0, 64) / 64)
        assert (places[there, 2:] > places[there, :2]).all() and (places[~there] == 0).all()
    assert (boxes >= 0).all() and (boxes <= 1).all()


def test_the_pixels_are_those_of_the_thing_that_is_named(make: Make) -> None:
    batch = make("test").batch("find", range(40))
    right = []
    for i in range(40):
        for name, box in zip(batch.targets["labels"][i], batch.targets["boxes"][i], strict=True):
            left, top, end, _ = (64 * box).round().int().tolist()
            if name < 0:
                continue
            patch = alone(batch, i)["image"][:, top : top + end - left, left:end].float()
            off = []
            for thing in thing_vocabulary(8):
                art = torch.tensor(np.asarray(sprite(thing.emoji, end - left, 0))).permute(2, 0, 1).float()
                art = art[:, : patch.shape[1], : patch.shape[2]]
                off.append(float((patch - art[:3]).abs().mean(0)[art[3] > 128].mean()))
            right.append(int(np.argmin(off)) == int(name))
    assert len(right) > 80 and np.mean(right) > 0.9, "though it is turned a little"


@pytest.mark.parametrize("task", ["describe", "find"])
def test_of_a_hole_in_what_is_described_or_searched_the_thing_is_named(
    make: Make, tokenizer: DecoderTokenizer, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    tasks = make("test")
    seen, said = watched(tasks, monkeypatch), []
    say = task_examples.synthesize_cached
    monkeypatch.setattr(
        task_examples, "synthesize_cached", lambda words, voice: said.append(words) or say(words, voice)
    )
    whole, damaged_batch = tasks.batch(task, range(40)), tasks.batch(task, range(40), damage="hole")
    assert all(torch.equal(values, damaged_batch.targets[name]) for name, values in whole.targets.items())
    assert damaged_batch.references == whole.references and damaged_batch.kinds == whole.kinds, (
        "it is still asked for all of them"
    )
    pictures, damaged = whole.inputs[IMAGE].values, damaged_batch.inputs[IMAGE].values
    spoken = iter(said)
    for i, (placed, picture, hole) in enumerate(zip(seen[:40], pictures, damaged, strict=True)):
        gone = [p for p in placed if torch.equal(picture * kept_without(p), hole)]
        assert gone and not torch.equal(picture, hole)
        hint = alone(damaged_batch, i).get("text")
        if hint is None:
            assert next(spoken) in [p.thing.names["en"] for p in gone]
        else:
            names = [phrase(p.thing, n, colour=True).lower() for p in gone for n in LANGUAGES]
            assert tokenizer.decode(hint.tolist()).strip() in names
    assert next(spoken, None) is None and 8 < len(said) < 32
    assert damaged_batch.batch.present[:, [TEXT.column, AUDIO.column]].sum(1).tolist() == [1] * 40


@pytest.mark.parametrize("task", ["describe", "find"])
def test_only_in_training_some_of_it_is_damaged(make: Make, task: str) -> None:
    for split, least, most in (("train", 0.1, 0.24), ("test", 0.0, 0.0)):
        batch = make(split).batch(task, range(120))
        hints = batch.batch.present[:, [TEXT.column, AUDIO.column]].any(1)
        coarse = [
            torch.equal(p[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2), p)
            for p in batch.inputs[IMAGE].values
        ]
        assert least / 2 <= float(hints.float().mean()) <= most / 1.2, "half of the damages are holes, and named"
        assert least / 6 <= np.mean(coarse) <= most / 2


def test_a_caption_may_begin_with_either() -> None:
    frog, key = thing_vocabulary(8)[0], thing_vocabulary(8)[5]
    two = [PlacedThing(frog, 16, 16, 20, 0), PlacedThing(key, 48, 18, 20, 0)]
    assert valid_captions(two, "en") == ["a green frog left of a key", "a key right of a green frog"]
    three = [*two, PlacedThing(frog, 16, 48, 20, 0)]
    assert valid_captions(three, "de") == ["zwei Frösche und ein Schlüssel", "ein Schlüssel und zwei Frösche"]
    assert valid_captions(two[:1], "zh") == ["一只青蛙"]


def test_a_question_is_answered_as_its_scene_says(
    make: Make, tokenizer: DecoderTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make("test")
    scenes: list[Scene] = []
    draw = tasks.sentences.sample_scene

    def scene(rng: np.random.Generator) -> Scene:
        scenes.append(draw(rng))
        return scenes[-1]

    monkeypatch.setattr(tasks.sentences, "sample_scene", scene)
    batch = tasks.batch("answer", range(60))
    written = tokenizer.batch_decode(batch.targets["target"])
    for i, (found, question) in enumerate(zip(scenes, read(tokenizer, batch), strict=True)):
        (answer,) = batch.references[i]
        asked = [(f, q.lower().replace(" ", ""), a) for f, q, a in found.questions]
        assert (batch.kinds[i], question.replace(" ", ""), answer) in asked
        scores = batch.targets["answer_scores"][i]
        assert scores.sum() == 1 and tasks.answers[int(scores.argmax())] == answer and written[i] == answer
    assert {*batch.kinds} == {*task_examples.VQA_FAMILIES}
    assert batch.batch.present[:, [TEXT.column, IMAGE.column]].all()


def test_what_is_counted_is_not_always_the_same_number(make: Make) -> None:
    batch = make().batch("answer", range(80))
    counts = Counter(r for (r,), kind in zip(batch.references, batch.kinds, strict=True) if kind == "image_count")
    assert len(counts) > 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_what_it_says(make: Make, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    tasks = make("test")
    seen = watched(tasks, monkeypatch)
    batch = tasks.batch("restore", range(24), damage=damage)
    picture, damaged = batch.targets["picture"], batch.targets["damaged"]
    assert damaged.shape == picture.shape == (24, 3, 64, 64) and damaged.dtype == picture.dtype == torch.uint8
    assert torch.equal(batch.inputs[IMAGE].values, damaged), "the model is not shown the whole one"
    assert all(kind.startswith(f"{damage}, ") for kind in batch.kinds)
    assert ("kept" in batch.targets) is (damage == "hole")
    if damage == "hole":
        kept = batch.targets["kept"][:, None].expand_as(damaged)
        assert torch.equal(damaged[kept], picture[kept]) and (damaged[~kept] == 0).all()
        assert (picture[~kept] > 0).any()
        assert all(missing(placed, k) for placed, k in zip(seen, batch.targets["kept"], strict=True))
    elif damage == "coarse":
        few = picture.float().unflatten(3, (16, 4)).unflatten(2, (16, 4)).mean((3, 5))  # [B, 3, 16, 16]
        assert torch.equal(damaged[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), damaged)
        assert (damaged[:, :, ::4, ::4] - few).abs().max() <= 0.51
    else:
        middle = (picture > 100) & (picture < 155)
        off = (damaged.float() - picture.float())[middle]
        assert 50 < off.std() < 60 and off.mean().abs() < 2, "60, and what is cut off at black and white"


def missing(placed: Sequence[PlacedThing], kept: Tensor) -> list[PlacedThing]:
    """Which of the things stand exactly where a picture is not kept."""
    return [p for p in placed if torch.equal(kept_without(p), kept)]


def kept_without(placed: PlacedThing) -> Tensor:
    """[64, 64], where one of the things does not stand."""
    kept = torch.ones(64, 64, dtype=torch.bool)
    left, top, right, bottom = (round(min(max(edge, 0), 64)) for edge in placed.box)
    kept[top:bottom, left:right] = False
    return kept


def test_a_batch_is_damaged_alike(make: Make) -> None:
    training, test = make(mix={"restore": 1.0}), make("test", mix={"restore": 1.0})
    for tasks in (training, test):
        found = [{kind.split(", ")[0] for kind in tasks[i].kinds} for i in range(8)]
        assert found == [{damage} for damage in DAMAGE_CYCLE] * 2 and {*DAMAGE_CYCLE} == {*DAMAGES}
    whole = [test.batch("restore", range(4), damage=damage).targets["picture"] for damage in DAMAGES]
    assert torch.equal(whole[0], whole[1]) and torch.equal(whole[0], whole[2]), "the same pictures, whichever way"


def test_what_could_stand_in_a_hole(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = make("test")
    seen = watched(tasks, monkeypatch)
    batch = tasks.batch("restore", range(60), damage="hole", hint="untold")
    doubles = new = 0
    for k, placed in enumerate(seen[:60]):
        pictures, chances = tasks.inpainting_candidates(k)
        assert pictures.shape == (len(tasks.things), 3, 64, 64) and abs(float(chances.sum()) - 1) < 1e-5
        whole, kept = batch.targets["picture"][k], batch.targets["kept"][k]
        gone = missing(placed, kept)
        (real,) = [i for i, thing in enumerate(tasks.things) if thing in [p.thing for p in gone]]
        assert torch.equal(pictures[real], whole) and chances[real] > 0
        others = [p.thing for p in placed if p not in gone]
        if len(placed) == 3 and len({*others}) == 2:  # a pair and a single one: one of the pair is gone
            doubles += 1
            assert [t for t, c in zip(tasks.things, chances, strict=True) if c > 0] == [
                t for t in tasks.things if t in others
            ]
        elif len(placed) == 1:
            new += 1
            assert torch.allclose(chances, torch.full_like(chances, 1 / len(tasks.things)))
    assert doubles > 2 and new > 2


def test_a_written_hint_names_what_is_missing(
    make: Make, tokenizer: DecoderTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make()
    seen = watched(tasks, monkeypatch)
    batch = tasks.batch("restore", range(40), damage="hole", hint="written")
    found = set()
    for placed, kept, words in zip(seen, batch.targets["kept"], read(tokenizer, batch), strict=True):
        gone = missing(placed, kept)
        named = [n for n in LANGUAGES if any(words == phrase(g.thing, n, colour=True).lower() for g in gone)]
        assert named, words
        found.update(named)
    assert found == {*LANGUAGES} and AUDIO not in batch.inputs
    seen.clear()
    batch = tasks.batch("restore", range(20), damage="coarse", hint="written")
    for placed, words in zip(seen, read(tokenizer, batch), strict=True):
        assert words in [caption(placed, language).lower() for language in LANGUAGES], "all of it, where all is damaged"


def test_a_spoken_hint_is_a_sound_and_an_untold_one_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = make("test")
    seen, said = watched(tasks, monkeypatch), []
    say = task_examples.synthesize_cached
    monkeypatch.setattr(
        task_examples, "synthesize_cached", lambda words, voice: said.append((words, voice)) or say(words, voice)
    )
    batch = tasks.batch("restore", range(12), damage="hole", hint="spoken")
    assert batch.batch.present[:, AUDIO.column].all() and TEXT not in batch.inputs
    for placed, kept, (words, voice) in zip(seen, batch.targets["kept"], said, strict=True):
        assert words in [p.thing.names["en"] for p in missing(placed, kept)]
        assert voice.variant in HELD_OUT_VOICES, "a voice of the test split"
    sound = batch.inputs[AUDIO]
    assert sound.values.abs().amax(1).min() > 0.25 and sound.values.abs().max() < 0.95
    assert {*tasks.batch("restore", range(12), hint="untold").inputs} == {IMAGE}
    assert len(said) == 12


def test_hints_are_drawn_as_often_as_they_are_to(make: Make) -> None:
    batch = make("test").batch("restore", range(100), damage="coarse")
    hints = [kind.split(", ")[1] for kind in batch.kinds]
    assert batch.batch.present[:, TEXT.column].tolist() == [hint == "written" for hint in hints]
    assert batch.batch.present[:, AUDIO.column].tolist() == [hint == "spoken" for hint in hints]
    found = Counter(hints)
    assert 25 < found["written"] < 55 and 25 < found["untold"] < 55 and 8 < found["spoken"] < 32


def test_each_word_means_two_things_in_one_language_and_one_in_the_others() -> None:
    frog = thing_vocabulary(8)[0]
    words = ambiguous_words()
    assert len({s.emoji for w in words for s in w.senses}) == 2 * len(words) == 44
    assert not {s.emoji for w in words for s in w.senses} & {t.emoji for t in thing_vocabulary(32)}
    for word in words:
        for sense in word.senses:
            assert artwork(sense.emoji).size == (72, 72)
        for language in LANGUAGES:
            sentences = [
                (relation(s, "left", frog, language), relation(frog, "above", s, language)) for s in word.senses
            ]
            assert (sentences[0] == sentences[1]) is (language == word.language), (word.senses[0].names, language)


@pytest.mark.parametrize("seed", range(4))
def test_a_sentence_is_the_same_for_both_senses(seed: int) -> None:
    sampler, frog = SentenceSampler(WORLD, "train"), thing_vocabulary(8)[0]
    for word in ambiguous_words():
        for direction in (d for d in DIRECTIONS if d[0] == word.language):
            (source, target), (other_source, other_target) = (
                sampler.describe_pair([sense, frog], np.random.default_rng(seed), direction) for sense in word.senses
            )
            assert source == other_source and target != other_target


def test_who_cannot_see_is_right_half_of_the_time() -> None:
    """The same source sentence is translated either way equally often."""
    sampler, rng = SentenceSampler(LARGE, "train"), np.random.default_rng(0)
    senses = {s.emoji: k for w in ambiguous_words() for k, s in enumerate(w.senses)}
    chosen: Counter[int] = Counter()
    for _ in range(1500):
        pair = sampler.sample_translation(rng, kind="ambiguous")
        (meant,) = [p.thing for p in pair.placed if p.thing.emoji in senses]
        assert phrase(meant, pair.direction[0], dative=True).split()[-1] in pair.source
        chosen[senses[meant.emoji]] += 1
    assert abs(chosen[0] - chosen[1]) < 4 * 1500**0.5


def test_what_is_translated_is_said_of_the_picture(
    make: Make, tokenizer: DecoderTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make("test")
    seen = watched(tasks, monkeypatch)
    batch = tasks.batch("translate", range(200))
    assert batch.batch.present[:, IMAGE.column].tolist() == ["hsk" not in kind for kind in batch.kinds]
    pictures, pairs = iter(seen), {(p.chinese, p.english) for p in tasks.sentences.hsk_pairs}
    found: Counter[str] = Counter()
    for i, (kind, (target,)) in enumerate(zip(batch.kinds, batch.references, strict=True)):
        direction, how = kind.split(", ")
        assert batch.targets["prompt"][i].tolist() == [tokenizer.control_token_id(direction.split("-")[1])]
        if how == "hsk":
            assert target in {side for pair in pairs for side in pair}
        else:
            assert all(p.thing.names[direction.split("-")[1]][:3] in target for p in next(pictures))
        found[how] += 1
    assert next(pictures, None) is None
    assert 90 < found["ambiguous"] < 150 and 15 < found["hsk"] < 50 and 25 < found["plain"] < 80
    assert {kind.split(",")[0] for kind in batch.kinds} == {"-".join(d) for d in DIRECTIONS}


@pytest.mark.parametrize("task", ["describe", "translate"])
def test_only_in_training_some_may_not_see(make: Make, task: str) -> None:
    training, test = (make(split).batch(task, range(64)) for split in ("train", "test"))
    for batch, share in ((training, 1 / 8), (test, 0.0)):
        sighted = torch.tensor(["hsk" not in kind for kind in batch.kinds])
        blind = ~batch.batch.present[:, IMAGE.column][sighted]
        assert float(blind.float().mean()) == pytest.approx(share, abs=0.05)


def test_what_is_heard_is_written_without_punctuation(make: Make, tokenizer: DecoderTokenizer) -> None:
    tasks = make("test")
    batch = tasks.batch("transcribe", range(24))
    assert [kind.split(", ")[0] for kind in batch.kinds] == [
        *TRANSCRIPTION_KINDS,
        *TRANSCRIPTION_KINDS,
        *TRANSCRIPTION_KINDS[:4],
    ]
    assert [kind.split(", ")[1] for kind in batch.kinds] == ["10 dB"] * 10 + ["clean"] * 10 + ["10 dB"] * 4
    assert any(strip_punctuation(line.text) != line.text for line in tasks.transcription_utterances.lines)
    written = tokenizer.batch_decode(batch.targets["target"])
    for line, text, known in zip(tasks.transcription_utterances.lines, written, batch.references, strict=True):
        assert not re.search(r"[^\w\s'-]", text) and known == [strip_punctuation(line.text)]
        assert text.replace(" ", "") == strip_punctuation(line.text).lower().replace(" ", "")
    assert (batch.targets["prompt"] == tokenizer.control_token_id("transcript")).all()
    assert {*batch.inputs} == {AUDIO}


def test_every_kind_is_heard_by_voices_of_the_split() -> None:
    for split in ("train", "test"):
        lines = SentenceSampler(WORLD, split).transcription_lines(40, seed=0)
        assert [line.kind for line in lines] == [*TRANSCRIPTION_KINDS] * 4
        assert {line.voice.variant in HELD_OUT_VOICES for line in lines} == {split == "test"}
        for line in lines:
            chinese, latin = bool(re.search("[\u4e00-\u9fff]", line.text)), bool(re.search("[a-z]", line.text))
            assert (chinese, latin) == {"en": (False, True), "mixed": (True, True)}.get(line.kind, (True, latin))
            assert line.language == ("en" if line.kind == "en" else "zh")


def decibels(tasks: TaskDataset, batch: TaskBatch) -> list[float]:
    """How far each voice of the first examples is above the noise; its mean, which nobody hears, is no part of it."""
    found = []
    for k in range(len(batch)):
        clean, heard = torch.from_numpy(tasks.transcription_utterances.waveform(k)), alone(batch, k)["audio"]
        noise = heard / ((heard @ clean) / (clean @ clean)) - clean
        found.append(float(20 * (clean.std() / noise.std()).log10()))
    return found


def test_noise_is_as_loud_as_it_is_to_be(make: Make) -> None:
    tasks = make("test")
    batch = tasks.batch("transcribe", range(24))
    measured = np.array(decibels(tasks, batch))
    clean = np.array(["clean" in kind for kind in batch.kinds])
    assert measured[clean].mean() == pytest.approx(40, abs=1)
    assert measured[~clean].mean() == pytest.approx(10, abs=1)
    assert measured[clean].min() > measured[~clean].max() + 10
    training = make()
    takes = [d for k in range(3) for d in decibels(training, training.batch("transcribe", range(24), take=k))]
    assert min(takes) < 12 and max(takes) > 33 and 18 < np.mean(takes) < 27, "anywhere from 5 to 40"


def test_noise_of_the_test_split_is_in_no_other() -> None:
    white = [_noises(split)[0] for split in SPLITS]
    assert all(abs(np.corrcoef(one, other)[0, 1]) < 0.02 for one, other in itertools.combinations(white, 2))


def test_noise_is_drawn_anew_in_every_take(make: Make) -> None:
    training = make()
    one, two, other = (training.batch("transcribe", [5], take=take) for take in (1, 1, 2))
    assert same(alone(one, 0), alone(two, 0))
    assert torch.equal(one.targets["target"], other.targets["target"])
    assert not torch.allclose(one.inputs[AUDIO].values, other.inputs[AUDIO].values, atol=1e-3)
    assert [*{*one.kinds} | {*other.kinds}] == [TRANSCRIPTION_KINDS[5]]


def test_letters_last_as_long_as_the_sound(make: Make, tokenizer: DecoderTokenizer) -> None:
    tasks = make()
    batch = tasks.batch("speak", range(9))
    ids, durations, wave = (batch.targets[name] for name in ("ids", "durations", "wave"))
    assert batch.targets["voice"].tolist() == [0, 1, 2] * 3
    assert list(batch.kinds) == [voice.variant for voice in TTS_VOICES] * 3
    assert wave.shape[1] == HOP_LENGTH * int(durations.sum(1).max()) and ids.shape == durations.shape
    assert torch.equal(durations > 0, ids >= 0)
    for i, (line, words) in enumerate(zip(tasks.tts_utterances.lines, read(tokenizer, batch), strict=True)):
        assert "".join(LETTERS[k] for k in alone(batch, i)["ids"].tolist()) == words == line.text.lower()
        sound = tasks.tts_utterances.waveform(i)
        assert 0 <= HOP_LENGTH * int(durations[i].sum()) - len(sound) < HOP_LENGTH
        assert torch.equal(wave[i, : len(sound)], torch.from_numpy(sound)) and not wave[i, len(sound) :].any()


@pytest.mark.parametrize("drawn", ["scene", "pair"])
def test_no_set_of_things_is_in_two_splits(drawn: str) -> None:
    sets = {}
    for split in SPLITS:
        sampler, rng = SentenceSampler(LARGE, split), np.random.default_rng(0)
        if drawn == "scene":
            found = [keys_of([p.thing for p in sampler.sample_scene(rng).placed_things]) for _ in range(120)]
        else:
            found = [keys_of(sampler.sample_pair(rng, sampler.ambiguous_words if i % 2 else ())) for i in range(300)]
        sets[split] = {s for s in found if len(s) > 1}
        assert len(sets[split]) > 30
    assert not sets["train"] & sets["test"] and not sets["train"] & sets["validation"]
    assert not sets["validation"] & sets["test"]


def test_both_senses_of_a_word_are_of_one_split() -> None:
    for word in ambiguous_words():
        for thing in thing_vocabulary(32)[:6]:
            rng = np.random.default_rng(0)
            homes = [
                {s for s in SPLITS if SentenceSampler(LARGE, s).belongs_to_split([sense, thing], rng)}
                for sense in word.senses
            ]
            assert homes[0] == homes[1] and len(homes[0]) == 1


def test_things_alone_are_as_frequent_in_every_split() -> None:
    shares = []
    for split in ("train", "test"):
        sampler, rng = SentenceSampler(LARGE, split), np.random.default_rng(1)
        alone = [len({p.thing for p in sampler.sample_scene(rng).placed_things}) == 1 for _ in range(250)]
        shares.append(np.mean(alone))
    assert all(0.05 < share < 0.25 for share in shares) and abs(shares[0] - shares[1]) < 0.1


def test_a_batch_goes_where_it_is_sent(make: Make) -> None:
    batch = make().batch("answer", range(3))
    sent = batch.to("meta")
    assert len(sent) == 3 and sent.task == "answer" and sent.references == batch.references
    assert sent.targets["prompt"].is_meta and sent.inputs[IMAGE].values.is_meta


def test_what_is_unknown_is_named(make: Make, tokenizer: DecoderTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task must be of .*: got 'sing'"):
        make("test").batch("sing", [0])
    for task, wanted, said in (
        ("restore", {"damage": "holes"}, r"restore takes .*'damage': \('hole', .*: got damage='holes'"),
        ("restore", {"hint": "sung"}, r"restore takes .*'hint': \('untold', .*: got hint='sung'"),
        ("find", {"hint": "spoken"}, r"find takes .*: got hint='spoken'"),
        ("speak", {"damage": "hole"}, r"speak takes the options \{\}: got damage='hole'"),
    ):
        with pytest.raises(ValueError, match=said):
            make("test").batch(task, [0], **wanted)
    with pytest.raises(ValueError, match=r"tasks must be of .*'translate'.*: got \['find', 'sing'\]"):
        make(mix={"find": 1.0, "sing": 1.0})
    with pytest.raises(ValueError, match=r"tasks must be of .*: got \[\]"):
        TaskDataset(WORLD, tokenizer, "train", sizes={}, examples={}, folder=tmp_path, mix={})
    with pytest.raises(ValueError, match=r"split must be one of .*: got 'dev'"):
        SentenceSampler(replace(WORLD), "dev")
