from __future__ import annotations

from pathlib import Path

import pytest

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.datamodule import VQADataset
from omni_lab.data.sources.base import SPLITS
from omni_lab.data.store import ensure_store
from omni_lab.worlds.espeak import HELD_OUT_VOICES
from omni_lab.worlds.wrappers import SpokenQuestions
from tests.conftest import ShadesOfGray

IMAGE, AUDIO = Modality.IMAGE, Modality.AUDIO
TAKES = 3


def test_questions_are_heard_and_not_read(tmp_path: Path) -> None:
    written, spoken = ShadesOfGray(), SpokenQuestions(ShadesOfGray(), takes=TAKES)
    store = ensure_store(spoken, tmp_path)
    assert store.path.name == "shades_spoken"
    assert set(store.shapes) == {IMAGE, AUDIO} and store.manifest["rows"]["image"] == 20
    assert store.families["shade"].required_modalities == (IMAGE, AUDIO)
    texts = {q.id: q.text for split in SPLITS for q in written.questions()[split]}
    heard: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        dataset, before = VQADataset(store, split), written.questions()[split]
        assert dataset.ids == [q.id for q in before] and dataset.texts == [None] * len(before)
        for i, question in enumerate(before):
            row = int(dataset.media_rows[AUDIO][i])
            facts = store.annotations(AUDIO, row)
            assert facts["transcript"] == texts[question.id]
            assert store.keys(IMAGE)[int(dataset.media_rows[IMAGE][i])] == question.scene
            assert dataset.scores[i].max() == 1.0
            heard[split].add(facts["voice"])
        assert set(dataset[0].inputs) == {IMAGE, AUDIO}
        takes = {
            t: {int(r) for r, q in zip(dataset.media_rows[AUDIO], before, strict=True) if q.text == t}
            for t in texts.values()
        }
        assert all(1 <= len(rows) <= TAKES for rows in takes.values())
    assert heard["test"] <= set(HELD_OUT_VOICES)
    assert not (heard["train"] | heard["validation"]) & set(HELD_OUT_VOICES)
    assert len(store.media(AUDIO, 0)) > SAMPLE_RATE / 2


def test_a_seed_draws_other_takes() -> None:
    one, again, other = (SpokenQuestions(ShadesOfGray(), seed=seed).questions()["train"] for seed in (0, 0, 1))
    assert [q.media_keys for q in one] == [q.media_keys for q in again] != [q.media_keys for q in other]
    with pytest.raises(ValueError, match="takes must be at least 1: got 0"):
        SpokenQuestions(ShadesOfGray(), takes=0)
