from __future__ import annotations

from pathlib import Path

import pytest

from omni_lab.batch import Modality
from omni_lab.data.datamodule import VQADataset
from omni_lab.data.sources.base import SPLITS
from omni_lab.data.store import ensure_store
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.wrappers import SpokenQuestions, WithDistractors
from tests.conftest import ShadesOfGray

pytest.importorskip("espeakng_loader")
WORLD = EmojiWorld(things=8, scenes={"train": 6, "validation": 3, "test": 3})


def test_questions_stay_what_they_are_amid_sounds_and_clips(tmp_path: Path) -> None:
    plain, source = ShadesOfGray(), WithDistractors(ShadesOfGray(), WORLD)
    store = ensure_store(source, tmp_path)
    assert set(store.shapes) == {Modality.IMAGE, Modality.AUDIO, Modality.VIDEO}
    assert store.families == plain.families()
    used = {q.media_keys[Modality.AUDIO] for questions in source.questions().values() for q in questions}
    assert store.manifest["rows"]["audio"] == len(used) > 6, "one sound a scene"
    assert len(store.media(Modality.AUDIO, 0)) > 0 and store.image(0).shape == (3, 16, 16)
    for split in SPLITS:
        dataset, before = VQADataset(store, split), plain.questions()[split]
        own = {scene.key for scene in WORLD.split_scenes(split)}
        assert dataset.ids == [q.id for q in before]
        companions: dict[int, set[int]] = {}
        for i, question in enumerate(before):
            assert dataset.texts[i] == question.text
            assert store.keys(Modality.IMAGE)[int(dataset.media_rows[Modality.IMAGE][i])] == question.scene
            sound, clip = (store.keys(m)[int(dataset.media_rows[m][i])] for m in (Modality.AUDIO, Modality.VIDEO))
            assert sound == clip and sound in own
            companions.setdefault(question.scene, set()).add(sound)
        assert all(len(found) == 1 for found in companions.values())
        assert set(dataset[0].inputs) == set(Modality)
    assert len({frozenset(f) for f in companions.values()}) > 1, "not the same for all"


def test_the_seed_draws_others_and_nothing_is_replaced() -> None:
    one, again, other = (WithDistractors(ShadesOfGray(), WORLD, seed=s).questions()["train"] for s in (0, 0, 1))
    assert [q.media_keys for q in one] == [q.media_keys for q in again] != [q.media_keys for q in other]
    with pytest.raises(ValueError, match="shades_spoken already comes with audio"):
        WithDistractors(SpokenQuestions(ShadesOfGray()), WORLD)
