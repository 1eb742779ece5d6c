from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.datamodule import VQADataset
from omni_lab.data.sources.base import SPLITS, SourceError
from omni_lab.data.store import Store, StoreError, ensure_store
from omni_lab.worlds import espeak as speech
from omni_lab.worlds.emoji_world import SPOKEN_KEY_OFFSET, EmojiWorld
from omni_lab.worlds.espeak import HELD_OUT_VOICES, SpeechError, synthesize_cached
from omni_lab.worlds.things import unseen_things

TEXT, IMAGE, AUDIO, VIDEO = Modality
SCENES = {"train": 14, "validation": 4, "test": 8}


def tiny(**options: object) -> EmojiWorld:
    return EmojiWorld(**{"things": 8, "scenes": SCENES, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return tiny()


@pytest.fixture(scope="module")
def store(world: EmojiWorld, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return ensure_store(world, tmp_path_factory.mktemp("stores"))


@pytest.fixture
def no_speech(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without eSpeak NG, with nothing left in memory that was said before."""
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(speech, "_engine", speech._Engine)
    synthesize_cached.cache_clear()
    yield
    synthesize_cached.cache_clear()


def checksums(store: Store) -> dict[str, str]:
    for modality in store.shapes:
        store.build(modality)
    return {name: facts["sha256"] for name, facts in store.files.items()}


def test_a_store_of_four_modalities(world: EmojiWorld, store: Store) -> None:
    assert {f"{name}.arrow" for name in (*SPLITS, "image", "audio", "video")} < set(store.manifest["files"])
    rows = store.manifest["rows"]
    assert rows["image"] == rows["video"] == 26
    scenes = [scene for split in SPLITS for scene in world.split_scenes(split)]
    assert rows["audio"] == 26 + sum(len(scene.spoken_questions) for scene in scenes)
    assert store.media(IMAGE, 0).shape == (3, 64, 64) and store.media(VIDEO, 0).shape == (8, 3, 32, 32)
    sound = store.media(AUDIO, 0)
    assert sound.dtype == np.int16 and 1.0 <= len(sound) / SAMPLE_RATE < 3.0
    assert store.families == world.families()
    assert np.array_equal(store.media(IMAGE, 3), world.render_image(scenes[3]))
    files = set(checksums(store))
    assert {f"{m}-000{chunk}.arrow" for m in ("image", "audio", "video") for chunk in range(3)} < files, "one a split"


def test_two_builds_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    synthesize_cached.cache_clear()
    assert checksums(ensure_store(tiny(), tmp_path)) == checksums(store)


def test_another_process_builds_the_same_bytes(store: Store, tmp_path: Path) -> None:
    code = (
        "import json, sys, pathlib\n"
        "from omni_lab.data.store import ensure_store\n"
        "from omni_lab.worlds.emoji_world import EmojiWorld\n"
        f"store = ensure_store(EmojiWorld(things=8, scenes={SCENES}), pathlib.Path(sys.argv[1]))\n"
        "for modality in store.shapes: store.build(modality)\n"
        "print(json.dumps({name: facts['sha256'] for name, facts in store.files.items()}))"
    )
    there = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == checksums(store)


def test_a_scene_depends_on_its_seed_and_key_alone(world: EmojiWorld) -> None:
    known = world.split_scenes("train")
    other = tiny(scenes={"train": 1000, "validation": 1, "test": 1})
    synthesize_cached.cache_clear()  # what was said before does not matter
    assert [other.scene("train", key) for key in reversed(range(14))] == known[::-1]
    assert world.scene("train", 6).placed_things != known[5].placed_things
    assert tiny(seed=1).scene("train", 5).placed_things != known[5].placed_things
    assert pickle.loads(pickle.dumps(known)) == known, "things are compared by identity: other processes know the same"
    unseen = pickle.loads(pickle.dumps(unseen_things()[0]))
    assert vars(unseen) == vars(unseen_things()[0])


def test_a_changed_copy_draws_scenes_of_its_own() -> None:
    world = tiny()
    drawn = world.split_scenes("test")
    other = replace(world, seed=1)
    assert other.split_scenes("test") == tiny(seed=1).split_scenes("test") != drawn
    assert world.split_scenes("test") == drawn


def test_no_scene_is_in_two_splits(world: EmojiWorld) -> None:
    scenes = {split: {q.scene for q in questions} for split, questions in world.questions().items()}
    assert {split: len(keys) for split, keys in scenes.items()} == SCENES
    assert len(set.union(*scenes.values())) == 26
    media = [key for questions in world.questions().values() for q in questions for key in q.media_keys.values()]
    assert max(media) < 3 * SPOKEN_KEY_OFFSET, "a scene's key must stay below that of a spoken question"


def test_questions_come_with_the_media_of_their_scene(world: EmojiWorld, store: Store) -> None:
    for split in SPLITS:
        for q in world.questions()[split]:
            assert q.media_keys[IMAGE] == q.media_keys[VIDEO] == q.scene
            asked_aloud = int(q.id.partition("-spoken")[2] or 0)
            assert q.media_keys[AUDIO] == q.scene + SPOKEN_KEY_OFFSET * asked_aloud and (asked_aloud > 0) == (
                q.text is None
            )
            assert q.family.startswith("spoken_") == (q.text is None)
            assert set(q.scores) <= set(world.answers()), q
    dataset = VQADataset(store, "train", required_modalities_only=True)
    families = store.families
    for i, family in enumerate(dataset.families):
        assert set(dataset[i].inputs) == set(families[family].required_modalities), family


def test_families_are_consistent(world: EmojiWorld) -> None:
    families = world.families()
    for name, family in families.items():
        assert family.required_modalities == tuple(m for m in Modality if m in family.required_modalities), name
        assert all(
            {a, b} <= set(family.required_modalities) and a.column < b.column for a, b in family.required_interactions
        ), name
        assert len(set(family.required_interactions)) == len(family.required_interactions), name
        assert family.chance is not None and 0 < family.chance <= 0.5
        assert (TEXT not in family.required_modalities) == name.startswith("spoken_")
        assert name.startswith("spoken_") <= (AUDIO in family.required_modalities)
    asked = {q.family for split in SPLITS for q in world.questions()[split]}
    assert asked <= set(families)


def test_test_voices_are_heard_in_no_other_split(store: Store) -> None:
    sounds = dict(enumerate(store.annotations(AUDIO, row) for row in range(store.manifest["rows"]["audio"])))
    for split in SPLITS:
        rows = set(store.questions(split).column("audio").to_pylist())
        voices = {sounds[row]["voice"] for row in rows}
        assert len(voices) > 1
        assert voices <= set(HELD_OUT_VOICES) if split == "test" else not voices & set(HELD_OUT_VOICES)


def test_without_speech_there_are_pictures_and_clips(no_speech: None, tmp_path: Path) -> None:
    with pytest.raises(SpeechError, match="espeakng-loader"):
        tiny().scene("train", 0)
    mute = tiny(speech=False)
    store = ensure_store(mute, tmp_path)
    assert set(store.shapes) == set(mute.shapes) == {IMAGE, VIDEO}
    assert store.media(IMAGE, 0).any() and store.media(VIDEO, 0).any()
    families = mute.families()
    assert not [name for name, family in families.items() if AUDIO in family.required_modalities]
    asked = {q.family for split in SPLITS for q in mute.questions()[split]}
    assert {"image_what", "image_count", "video_way", "image_video_missing", "text_sum"} <= asked <= set(families)


def test_a_store_of_other_rules_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match=r"outdated.*things: 8 -> 9"):
        Store.open(store.path, tiny(things=9))
    with pytest.raises(StoreError, match="outdated"):
        Store.open(store.path, tiny(speech=False))
    with pytest.raises(SourceError, match="the vocabulary must hold 8 to 41 things: got 7"):
        tiny(things=7).answers()
