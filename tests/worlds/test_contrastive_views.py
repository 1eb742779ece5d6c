from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.collate import Sample, collate
from omni_lab.data.sampler import ConsecutiveBatchSampler
from omni_lab.worlds import contrastive_views as module_of_views
from omni_lab.worlds.contrastive_views import SPEAKER_GROUPS, UNNAMED, UNWRITTEN, ContrastiveViews
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import HELD_OUT_VOICES, Utterance, sample_voice
from omni_lab.worlds.scene import SpeechTrack
from omni_lab.worlds.things import thing_vocabulary

TEXT, IMAGE, AUDIO, VIDEO = Modality
WORLD = EmojiWorld(things=8)
NOTHING = np.zeros(1, dtype=np.int16)


def views(split: str = "train", **options: object) -> ContrastiveViews:
    return ContrastiveViews(WORLD, lambda text: list(text.encode()), split, **options)  # type: ignore[arg-type]


def written(sample: Sample) -> str:
    return bytes(sample.inputs[TEXT].tolist()).decode()


def test_a_view_is_a_thing_in_every_modality() -> None:
    sample = views()[5]
    assert sample.inputs[IMAGE].shape == (3, 64, 64) and sample.inputs[IMAGE].dtype == torch.uint8
    assert sample.inputs[VIDEO].shape == (8, 3, 32, 32) and sample.inputs[VIDEO].dtype == torch.uint8
    assert 1.0 <= len(sample.inputs[AUDIO]) / SAMPLE_RATE <= 2.5 and sample.inputs[AUDIO].abs().max() <= 1.0
    assert sample.family == thing_vocabulary(8)[int(sample.targets["thing"])].names["en"]
    only_seen = views(modalities=[IMAGE, VIDEO])[5]
    assert set(only_seen.inputs) == {IMAGE, VIDEO}
    assert bool(collate([views()[i] for i in range(4)]).present.all())


def test_every_round_shows_each_thing_once() -> None:
    dataset = views(modalities=[TEXT])
    orders = [[int(dataset[8 * k + i].targets["thing"]) for i in range(8)] for k in range(4)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_a_view_depends_on_its_number_alone() -> None:
    one, again = views()[11], views()[11]
    others = [views()[12], views(seed=1)[11], views("validation")[11]]
    for m in (TEXT, IMAGE, VIDEO):
        assert torch.equal(one.inputs[m], again.inputs[m])
    for other in others:
        assert not torch.equal(one.inputs[IMAGE], other.inputs[IMAGE])


def test_views_of_one_thing_differ() -> None:
    dataset = views(modalities=[TEXT, IMAGE, VIDEO])
    frogs = [s for s in (dataset[i] for i in range(80)) if s.family == "frog"]
    assert len(frogs) == 10
    assert len({written(s) for s in frogs}) >= 4
    for m in (IMAGE, VIDEO):
        assert len({s.inputs[m].numpy().tobytes() for s in frogs}) == 10


def test_a_view_may_show_two_things() -> None:
    dataset = views(pairs=1.0, modalities=[TEXT], languages=["en"])
    names = [thing.names["en"] for thing in thing_vocabulary(8)]
    labels: dict[int, set[frozenset[str]]] = {}
    first_named = []
    for i in range(400):
        sample = dataset[i]
        shown = sample.family.split(" and ")
        assert len(set(shown)) == 2 and all(name in written(sample) for name in shown)
        first_named.append(written(sample).index(shown[0]) < written(sample).index(shown[1]))
        labels.setdefault(int(sample.targets["thing"]), set()).add(frozenset(shown))
    assert min(labels) >= len(names), "none is taken for a single thing"
    assert len(labels) == 8 * 7 // 2 and all(len(pairs) == 1 for pairs in labels.values())
    assert 0.4 < sum(first_named) / 400 < 0.6
    some = views(pairs=0.25, modalities=[TEXT])
    assert 0.15 < sum(" and " in some[i].family for i in range(400)) / 400 < 0.35


def test_two_names_are_said_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed: list[tuple[SpeechTrack, Sequence[Utterance]]] = []
    monkeypatch.setattr(
        module_of_views, "mix_audio", lambda sound, spoken, rng: mixed.append((sound, spoken)) or NOTHING
    )
    dataset = views(pairs=0.5, modalities=[AUDIO])
    for i in range(40):
        names = dataset[i].family.split(" and ")
        sound, spoken = mixed[-1]
        assert sorted(name for name, _ in sound.utterances) == sorted(names)
        ends = [start + utterance.seconds for (_, start), utterance in zip(sound.utterances, spoken, strict=True)]
        assert all(start > end for (_, start), end in zip(sound.utterances[1:], ends[:-1], strict=True))
    assert {len(spoken) for _, spoken in mixed} == {1, 2}


def test_a_question_is_said_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        module_of_views, "mix_audio", lambda sound, spoken, rng: said.append(sound.utterances[0][0]) or NOTHING
    )
    dataset = views(pairs=0.5, sentences=1.0, modalities=[TEXT, AUDIO], languages=["de"])
    things = {thing.names["en"]: thing.plural["en"] for thing in thing_vocabulary(8)}
    numbers: dict[str, int] = {}
    naming = []
    for i in range(160):
        sample = dataset[i]
        assert written(sample) == said[-1] and said[-1].endswith("?")
        number = int(sample.targets["written"])
        assert number == int(sample.targets["said"][1]) == numbers.setdefault(said[-1], number)
        named = [name for name in things if name in said[-1] or things[name] in said[-1]]
        shown = sample.family.split(" and ")
        assert sorted(named) in ([], sorted(shown))
        assert int(sample.targets["said"][0]) == (int(sample.targets["thing"]) if named else UNNAMED)
        naming.append(bool(named))
    assert len({*numbers.values()}) == len(numbers) and 0.4 < np.mean(naming) < 0.6
    forms = {" ".join(text.split()[:2]) for text in numbers}
    assert {"where is", "how many", "which way", "what is", "what blinks?"} < forms


def test_the_text_may_say_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    voices: list[str] = []
    monkeypatch.setattr(
        module_of_views, "mix_audio", lambda sound, spoken, rng: voices.append(sound.voice.group) or NOTHING
    )
    dataset = views(voices=0.5, modalities=[TEXT, AUDIO], languages=["en"])
    told, alone = [], []
    for i in range(300):
        sample = dataset[i]
        speaker = re.match(r"a (woman|man) says:(.*)", written(sample))
        told.append(speaker is not None)
        assert speaker is None or speaker[1] == voices[-1]
        heard = SPEAKER_GROUPS.index(voices[-1])
        assert sample.targets["speaker"].tolist() == [heard if speaker else UNWRITTEN, heard]
        wordless = speaker is not None and not speaker[2]
        alone.append(wordless)
        assert int(sample.targets["written"]) == (UNWRITTEN if wordless else int(sample.targets["thing"]))
    assert 0.4 < np.mean(told) < 0.6 and 0.15 < np.mean(alone) < 0.35 and {*voices} == {"woman", "man"}


def test_the_language_can_be_chosen() -> None:
    german = views(languages=["de"], modalities=[TEXT])
    names = {t.names["en"]: t.names["de"] for t in thing_vocabulary(8)}
    for i in range(24):
        assert names[german[i].family] in written(german[i])
    assert {written(views(modalities=[TEXT])[i])[-1] >= "一" for i in range(24)} == {True, False}, "Chinese among them"


def test_the_test_split_has_voices_of_its_own() -> None:
    rng = np.random.default_rng(0)
    heard = {split: {sample_voice(split, rng) for _ in range(300)} for split in ("train", "validation", "test")}
    variants = {split: {voice.variant for voice in voices} for split, voices in heard.items()}
    assert variants["test"] == set(HELD_OUT_VOICES)
    assert not variants["train"] & set(HELD_OUT_VOICES) and variants["train"] == variants["validation"]
    women = sum(sample_voice("train", rng).group == "woman" for _ in range(400)) / 400
    assert 0.4 < women < 0.6


def test_consecutive_batches_go_on_where_the_last_epoch_ended() -> None:
    batches = ConsecutiveBatchSampler(10, size=4, advance=True)
    assert len(batches) == 2
    assert list(batches) == [[0, 1, 2, 3], [4, 5, 6, 7]], "a remainder is left out"
    batches.set_epoch(3)
    assert [batch[0] for batch in batches] == [24, 28]
    batches.start_batch = 1
    assert [batch[0] for batch in batches] == [28] and [batch[0] for batch in batches] == [24, 28]
    fixed = ConsecutiveBatchSampler(8, size=4)
    fixed.set_epoch(3)
    assert [batch[0] for batch in fixed] == [0, 4]
    with pytest.raises(ValueError, match="size must lie between 1 and count, 3: got 4"):
        ConsecutiveBatchSampler(3, size=4)
