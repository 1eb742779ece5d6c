"""Retrieval between modalities, and whether a model draws the same conclusion from each of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omni_lab.batch import Modality


def recall_at_k(
    k: int,
    queries: Float[Tensor, "q w"],
    gallery: Float[Tensor, "g w"],
    query_labels: Int[Tensor, " q"],
    gallery_labels: Int[Tensor, " g"],
) -> Float[Tensor, " q"]:
    """[Q], 1 if one of the k nearest gallery vectors by inner product has the query's label, else 0."""
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k must lie between 1 and the size of the gallery, {len(gallery)}: got {k}")
    nearest = (queries @ gallery.T).topk(k, dim=1).indices  # [Q, k]
    return (gallery_labels[nearest] == query_labels[:, None]).any(dim=1).float()


class Consistency(NamedTuple):
    """predictions: fraction of samples and pairs of modalities whose two predictions agree.
    shuffled: the same where the second prediction of each pair is the next sample's, as a baseline."""

    predictions: float
    shuffled: float


def prototypes(views: Mapping[Modality, Float[Tensor, "b w"]], labels: Int[Tensor, " b"]) -> Float[Tensor, "l w"]:
    """[L, W]: for each label, in ascending order, the normalised mean of its vectors in all modalities."""
    stacked = torch.stack(list(views.values()))  # [S, B, W]
    return F.normalize(torch.stack([stacked[:, labels == label].mean((0, 1)) for label in labels.unique()]), dim=-1)


def cross_modal_consistency(
    views: Mapping[Modality, Float[Tensor, "b w"]], label_prototypes: Float[Tensor, "l w"]
) -> Consistency:
    """The cross-modal consistency score: do single modalities that carry the same evidence lead to the same conclusion?

    A prediction is the nearest of the prototypes, which come from other samples. The score is the fraction of samples
    and unordered pairs of modalities whose predictions agree, right or wrong.
    """
    predicted = (torch.stack(list(views.values())) @ label_prototypes.T).argmax(-1)  # [S, B]
    shifted = predicted.roll(1, dims=1)
    pairs = list(itertools.combinations(range(len(predicted)), 2))
    agree = [(predicted[a] == predicted[b]).float().mean() for a, b in pairs]
    chance = [(predicted[a] == shifted[b]).float().mean() for a, b in pairs]
    return Consistency(float(torch.stack(agree).mean()), float(torch.stack(chance).mean()))
