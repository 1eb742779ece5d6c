from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omni_lab.batch import Modality
from omni_lab.metrics.retrieval import cross_modal_consistency, prototypes, recall_at_k

TEXT, IMAGE, AUDIO, _ = Modality
LABELS = torch.arange(6)


def views(noise: float, *modalities: Modality) -> dict[Modality, Tensor]:
    """Six things on axes of their own, seen with some noise in each modality."""
    drawn = (torch.randn(6, 8, generator=torch.Generator().manual_seed(m.column)) for m in modalities)
    return {m: F.normalize(torch.eye(6, 8) + noise * x, dim=-1) for m, x in zip(modalities, drawn, strict=True)}


def test_recall_by_hand() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 2])
    assert recall_at_k(1, queries, gallery, labels, labels).tolist() == [1, 0, 1]
    assert recall_at_k(2, queries, gallery, labels, labels).tolist() == [1, 1, 1]
    assert recall_at_k(1, queries, gallery, torch.tensor([9, 9, 9]), labels).tolist() == [0, 0, 0]
    twice = torch.tensor([0, 2, 2])
    assert recall_at_k(1, queries, gallery, labels, twice).tolist() == [1, 0, 1], "several of one label"
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"between 1 and the size of the gallery, 3: got {k}"):
            recall_at_k(k, queries, gallery, labels, labels)


def test_recall_is_perfect_for_equal_views_and_chance_for_shuffled_ones() -> None:
    seen = views(0.0, TEXT)[TEXT]
    assert recall_at_k(1, seen, seen, LABELS, LABELS).mean() == 1
    assert recall_at_k(1, seen, seen.roll(1, 0), LABELS, LABELS).mean() == 0
    assert recall_at_k(6, seen, seen.roll(1, 0), LABELS, LABELS).mean() == 1


def test_prototypes_are_the_normalised_means_in_label_order() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    second = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    found = prototypes({TEXT: first, IMAGE: second}, torch.tensor([7, 2, 7]))
    assert torch.allclose(found, torch.tensor([[0.0, 1.0], [0.8, 0.6]])), "label 2, then label 7"


def test_consistency_of_equal_of_noisy_and_of_shuffled_views() -> None:
    known = torch.eye(6, 8)
    perfect = cross_modal_consistency(views(0.0, TEXT, IMAGE, AUDIO), known)
    assert perfect == (1.0, 0.0)
    noisy = cross_modal_consistency(views(0.6, TEXT, IMAGE, AUDIO), known)
    assert 0 < noisy.predictions < 1
    given = views(0.0, TEXT, IMAGE)
    shuffled = cross_modal_consistency({TEXT: given[TEXT], IMAGE: given[IMAGE].roll(1, 0)}, known)
    assert shuffled.predictions == 0


def test_consistency_asks_for_agreement_and_not_for_truth() -> None:
    """Two views that are wrong in the same way agree; a third that is right agrees with neither."""
    known, right = torch.eye(6, 8), torch.eye(6, 8)
    wrong = right.roll(2, 0)
    assert cross_modal_consistency({TEXT: wrong, IMAGE: wrong}, known).predictions == 1
    assert cross_modal_consistency({TEXT: wrong, IMAGE: wrong, AUDIO: right}, known).predictions == pytest.approx(1 / 3)
