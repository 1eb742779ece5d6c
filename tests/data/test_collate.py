from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.data.store import ensure_store
from omni_lab.data.tokenizer import encode_text, train_tokenizer
from tests.conftest import ShadesOfGray


def sample(name: str, **inputs: torch.Tensor) -> Sample:
    return Sample(id=name, task="t", family="f", inputs={Modality(m): v for m, v in inputs.items()})


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])


@pytest.mark.parametrize(
    ("modality", "value"),
    [("text", torch.zeros(0, dtype=torch.long)), ("audio", torch.zeros(0)), ("video", torch.zeros(0, 3, 2, 2))],
)
def test_an_empty_input_is_named(modality: str, value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"sample 'lost': {modality} is empty"):
        collate([sample("lost", **{modality: value})])


def test_pictures_of_different_sizes_are_named() -> None:
    small, large = torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"sample 'b': image is \[3, 4, 4\]"):
        collate([sample("a", image=small), sample("b", image=large)])


def test_targets_must_agree() -> None:
    ids = torch.ones(1, dtype=torch.long)
    with_target = replace(sample("a", text=ids), targets={"y": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"sample 'b' has targets \[\]: expected \['y'\]"):
        collate([with_target, sample("b", text=ids)])


def test_a_batch_that_carries_nothing_is_named() -> None:
    with pytest.raises(ValueError, match="sample 'bare' carries no modality at all"):
        collate([sample("bare"), sample("too")])
    mixed = collate([sample("bare"), sample("full", text=torch.ones(2, dtype=torch.long))])
    assert mixed.present.any(dim=1).tolist() == [False, True]


def test_a_question_without_tokens_is_named() -> None:
    tokenizer = train_tokenizer(["is it dark?"])
    with pytest.raises(ValueError, match="question 7: the text has no tokens: got '  '"):
        encode_text(tokenizer, "  ", name="question 7")


def test_any_script_survives_the_tokenizer() -> None:
    tokenizer = train_tokenizer(["is it dark?", "what is it?"])
    for text in ("is it dark?", "有三角形吗?", "ist es grün?", "🦜", "არის აქ წრე?", "এটা কি?"):
        ids = encode_text(tokenizer, text, name="text")
        assert tokenizer.decode(ids).strip() == text
        assert ids[0] == tokenizer.token_to_id("[CLS]")


def test_a_dataset_serves_questions_with_soft_scores(tmp_path: Path) -> None:
    store = ensure_store(ShadesOfGray(), tmp_path)
    dataset = VQADataset(store, "validation")
    assert len(dataset) == 16
    first = dataset[0]
    assert first.targets["answer_scores"].tolist() == [1.0, 0.0, 0.0, 0.0], "bright"
    batch = collate([dataset[i] for i in range(4)])
    assert len(batch.inputs[Modality.IMAGE].values) == 1, "four questions about one picture"
    weights = dataset.family_weights()
    families = torch.tensor([f == "shade" for f in dataset.families]).numpy()
    assert weights[families].sum() == pytest.approx(weights[~families].sum())
    with pytest.raises(ValueError, match="split must be one of"):
        VQADataset(store, "dev")
