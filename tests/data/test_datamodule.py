from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.config.schema import DataConfig
from omni_lab.data.collate import collate
from omni_lab.data.datamodule import OmniDataModule, VQADataset
from omni_lab.data.store import Store, ensure_store
from omni_lab.worlds.emoji_world import EmojiWorld
from tests.conftest import TINY_WORLD, ShadesOfGray

TEXT, IMAGE, AUDIO, VIDEO = Modality
WORLD = EmojiWorld(things=8, scenes=TINY_WORLD.scenes)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return ensure_store(WORLD, tmp_path_factory.mktemp("stores"))


def test_a_sample_carries_all_that_its_scene_has(store: Store) -> None:
    dataset = VQADataset(store, "train")
    for i, text in enumerate(dataset.texts):
        sample = dataset[i]
        assert set(sample.inputs) == set(Modality) - ({TEXT} if text is None else set())
        assert torch.equal(sample.inputs[IMAGE], torch.from_numpy(store.image(int(dataset.image_rows[i])).copy()))
        assert sample.inputs[AUDIO].dtype == torch.float32 and 0.2 < sample.inputs[AUDIO].abs().max() < 1.0
        assert sample.id == dataset.ids[i] and sample.family == dataset.families[i]
    assert len(set(dataset.combinations())) == 2, "written and spoken"
    lengths = dataset.lengths()
    assert all((lengths[i] == 0) == (text is None) for i, text in enumerate(dataset.texts))
    written = [i for i, text in enumerate(dataset.texts) if text is not None]
    assert all(lengths[i] == len(dataset[i].inputs[TEXT]) for i in written)


def test_modalities_can_be_left_out(store: Store) -> None:
    without_audio = VQADataset(store, "train", modalities=[TEXT, IMAGE, VIDEO])
    assert all(AUDIO not in without_audio[i].inputs for i in range(len(without_audio)))
    assert collate([without_audio[i] for i in range(5)]).inputs.keys() == {TEXT, IMAGE, VIDEO}
    without_text = VQADataset(store, "train", modalities=[IMAGE, AUDIO, VIDEO])
    assert not without_text.lengths().any() and all(
        TEXT not in without_text[i].inputs for i in range(len(without_text))
    )


def test_only_some_families_or_scenes(store: Store) -> None:
    everything = VQADataset(store, "train")
    few = VQADataset(store, "train", families=["audio_voice", "video_way"])
    assert set(few.families) == {"audio_voice", "video_way"}
    assert len(few) == sum(f in few.families for f in everything.families)
    assert few.scores.shape == (len(few), len(store.answers))
    first = VQADataset(store, "train", max_scenes=3)
    assert sorted(set(first.scenes)) == sorted(set(everything.scenes))[:3]
    assert len(VQADataset(store, "train", max_scenes=3, families=["audio_voice"])) == 6, "two a scene"


def test_only_required_modalities(store: Store) -> None:
    lean = VQADataset(store, "train", required_modalities_only=True)
    for i, family in enumerate(lean.families):
        assert set(lean[i].inputs) == set(store.families[family].required_modalities)
    assert len(set(lean.combinations())) >= 6


def test_a_family_without_requirements_is_named(tmp_path: Path) -> None:
    """One of its families is not described."""
    shades = ensure_store(ShadesOfGray(), tmp_path)
    with pytest.raises(ValueError, match="yes/no"):
        VQADataset(shades, "train", required_modalities_only=True)


def test_any_question_can_be_asked_about_an_image(store: Store) -> None:
    dataset = VQADataset(store, "validation")
    for row in sorted(set(dataset.image_rows.tolist())):
        sample = dataset.make_sample("how many frogs are there?", row)
        written = [i for i, text in enumerate(dataset.texts) if text is not None and dataset.image_rows[i] == row]
        for m in (IMAGE, AUDIO, VIDEO):
            assert torch.equal(sample.inputs[m], dataset[written[0]].inputs[m])
        assert set(sample.inputs) == set(Modality) and sample.targets == {}
    unseen = dataset.make_sample("რა არის ეს?", row)
    assert store.tokenizer.decode(unseen.inputs[TEXT].tolist()).strip() == "რა არის ეს?", "a script it never saw"
    with pytest.raises(ValueError, match="question: the text has no tokens"):
        dataset.make_sample("  ", row)
    with pytest.raises(ValueError, match="must be that of an image of this split: got 0"):
        dataset.make_sample("what is it?", 0)


def test_batches_cost_what_they_carry(tmp_path: Path) -> None:
    data = OmniDataModule(WORLD, TINY_WORLD.data, root=tmp_path)
    for batch in data.train_dataloader():
        scenes = len(batch.inputs[IMAGE].values)
        assert scenes <= TINY_WORLD.data.max_batch_cost / 0.98, "a scene's image, audio and video cost 0.98"
        assert len({tuple(row) for row in batch.present.tolist()}) == 1, "all carry the same modalities"
    ids = [i for batch in data.test_dataloader() for i in batch.ids]
    assert sorted(ids) == sorted(data.dataset("test").ids), "every question once"


def test_fresh_scenes_are_read_with_the_tokenizer_of_the_model(store: Store, tmp_path: Path) -> None:
    fresh = replace(WORLD, seed=1, scenes={"train": 1, "validation": 1, "test": 3})
    data = OmniDataModule(fresh, DataConfig(), root=tmp_path, tokenizer=store.tokenizer)
    dataset = data.dataset("test")
    assert data.store.answers == store.answers and data.store.path.name != WORLD.name
    texts = [text for text in dataset.texts if text is not None]
    assert texts and not {*texts} <= {*VQADataset(store, "test").texts}
    for i, text in enumerate(dataset.texts):
        if text is not None:
            assert dataset[i].inputs[TEXT].tolist() == store.tokenizer.encode(text).ids
    own = OmniDataModule(fresh, DataConfig(), root=tmp_path).dataset("test")
    assert any(not torch.equal(own[i].inputs[TEXT], dataset[i].inputs[TEXT]) for i in range(len(texts)))
    few = data.with_config(DataConfig(), seed=0, test=1).dataset("test")
    assert torch.equal(few[0].inputs[TEXT], dataset[0].inputs[TEXT])
