from __future__ import annotations

import numpy as np
import pytest

from omni_lab.batch import Modality
from omni_lab.data.sources.base import QuestionFamily
from omni_lab.evaluation.predictions import (
    Predictions,
    majority_by_question,
    modality_ablation_table,
    predict,
    predict_without_each,
)
from omni_lab.training.recipes import Recipe

TEXT, IMAGE = Modality.TEXT, Modality.IMAGE


def test_taking_away_after_encoding_is_taking_away_before(world_recipe: Recipe) -> None:
    data = world_recipe.data_module()
    model, dataset = world_recipe.build_model(data).train(), data.dataset("test")
    found = predict_without_each(model, data.test_dataloader(), dataset)
    assert model.training, "the mode is restored"
    assert set(found) == {None, *Modality}
    assert np.array_equal(found[None].answer, predict(model, data.test_dataloader(), dataset).answer)
    for lost in Modality:
        before = predict(model, data.test_dataloader(), dataset, change=lambda batch, m=lost: batch.without(m))
        assert np.array_equal(found[lost].answer, before.answer), lost
    assert any(not np.array_equal(found[None].answer, found[m].answer) for m in Modality)


def predictions(right: list[int], family: list[str]) -> Predictions:
    score = np.array(right, dtype=np.float32)
    truth = np.zeros(len(right), dtype=int)
    return Predictions((1 - score).astype(int), truth, score, np.arange(len(right)), np.array(family))


def test_a_row_says_how_good_the_blind_are_at_best() -> None:
    names = ["where"] * 4 + ["other"] * 2
    given = {
        None: predictions([1, 1, 1, 0, 1, 1], names),
        TEXT: predictions([1, 0, 0, 0, 1, 1], names),
        IMAGE: predictions([1, 1, 0, 0, 0, 0], names),
        Modality.AUDIO: predictions([1, 1, 1, 1, 1, 1], names),
    }
    families = {
        "where": QuestionFamily((TEXT, IMAGE), chance=0.25),
        "other": QuestionFamily((TEXT,), chance=None),
        "absent": QuestionFamily((TEXT,), chance=0.5),
    }
    (row,) = modality_ablation_table(given, families, resamples=200)
    assert (row.family, row.chance, row.questions, row.removed) == ("where", 0.25, 4, IMAGE), "the sound is not needed"
    assert row.dense == 0.75 and row.blind == 0.5
    assert row.dense_interval[0] <= row.dense <= row.dense_interval[1]
    assert row.blind_interval[0] <= row.blind <= row.blind_interval[1]


def test_spoken_questions_have_one_majority(world_recipe: Recipe) -> None:
    data = world_recipe.data_module()
    test = data.dataset("test")
    result = majority_by_question(data.dataset("train"), test)
    spoken = np.array([text is None for text in test.texts])
    assert spoken.any() and len(set(result.answer[spoken])) == 1
    assert result.accuracy == pytest.approx(float(result.score.mean()))
