"""How well things are found in pictures: average precision as COCO takes it, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from omni_lab.heads.detection import Detections
from omni_lab.metrics.bootstrap import Estimate

OVERLAPS = np.linspace(0.5, 0.95, 10)  # of box and thing, from which on it counts as found
RECALLS = np.linspace(0.0, 1.0, 101)  # that precision is averaged over
MAX_DETECTIONS = 100  # of one kind that count in one picture, the surest


class DetectionScores(NamedTuple):
    """map50: mean over kinds of thing of the average precision where boxes must overlap by half. map: the mean over
    overlaps of 0.5, 0.55, ... 0.95 too."""

    map50: Estimate
    map: Estimate


class _Kind(NamedTuple):
    """All that was found of one kind, surest first. picture: [n], where. right: [10, n], whether it is one more thing,
    at each overlap. things: [B], how many there are in each picture."""

    picture: np.ndarray
    right: np.ndarray
    things: np.ndarray


def mean_average_precision(
    found: Sequence[Detections],
    labels: Int[Tensor, "b n"],
    boxes: Float[Tensor, "b n 4"],
    *,
    resamples: int,
    seed: int = 0,
) -> DetectionScores:
    """Mean average precision (Lin et al. 2014) by torchmetrics and pycocotools, and its 95 % interval over pictures.

    labels: what is there, -1 where nothing is. boxes: left, top, right, bottom as shares of the sides.

    What is found in a picture is matched with what is there regardless of other pictures, so that happens once; a
    resample only weighs pictures by how often they were drawn, and sums up: milliseconds instead of a second. Kinds of
    which no picture drawn has one are left out, as COCO does. Average precision of fewer different things is higher, as
    it takes the best precision from each recall on; so resamples, in which pictures come repeatedly, are too high by as
    much as their mean exceeds the value: that is taken off them. The interval is that of sets of this size. Raises
    ValueError where there is nothing to be found.
    """
    if len(found) == 0 or len(found) != len(labels) or labels.shape != boxes.shape[:2]:
        raise ValueError(
            f"found, labels [B, n] and boxes [B, n, 4] must be of the same pictures, at least one: got {len(found)}, "
            f"{list(labels.shape)} and {list(boxes.shape)}"
        )
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1: got {resamples}")
    if not (labels >= 0).any():
        raise ValueError(f"labels must name at least one thing: all {labels.numel()} say that nothing is there")
    metric: Any = MeanAveragePrecision(  # its own thresholds are rounded to float32, which COCO's are not
        "xyxy", "bbox", OVERLAPS.tolist(), RECALLS.tolist(), [1, 10, MAX_DETECTIONS], extended_summary=True
    )
    metric.warn_on_many_detections = False
    said = [{"boxes": o.boxes, "scores": o.scores, "labels": o.labels} for o in found]
    metric.update(
        [{name: value.detach().cpu() for name, value in picture.items()} for picture in said],
        [{"boxes": b[n >= 0].cpu(), "labels": n[n >= 0].cpu()} for b, n in zip(boxes, labels, strict=True)],
    )
    result = metric.compute()
    kinds = _kinds(found, labels, result["ious"])
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, 2))  # map50 and map
    for i in range(resamples):
        counts = np.bincount(rng.integers(len(found), size=len(found)), minlength=len(found))
        drawn[i] = _precision(kinds, counts)
    values = np.array([float(result["map_50"]), float(result["map"])])
    shifted = drawn - np.nanmean(drawn, axis=0) + values
    low, high = np.nanquantile(shifted, [0.025, 0.975], axis=0).clip(0, 1)
    return DetectionScores(*(Estimate(*map(float, row)) for row in zip(values, low, high, strict=True)))


def _kinds(found: Sequence[Detections], labels: Tensor, overlaps: Mapping[Any, Any]) -> list[_Kind]:
    """overlaps: of each picture and kind [found, there], surest first, as pycocotools has them."""
    kinds = []
    for kind in labels[labels >= 0].unique().tolist():
        things = (labels == kind).sum(1).cpu().numpy()
        pictures, scores, right = [np.empty(0, int)], [np.empty(0)], [np.empty((len(OVERLAPS), 0), bool)]
        for b, objects in enumerate(found):
            sure = np.sort(objects.scores[objects.labels == kind].detach().cpu().numpy())[::-1][:MAX_DETECTIONS]
            if len(sure):
                pictures.append(np.full(len(sure), b))
                scores.append(sure)
                right.append(_matched(np.asarray(overlaps[b, kind]).reshape(len(sure), things[b])))
        order = np.argsort(-np.concatenate(scores), kind="stable")
        kinds.append(_Kind(np.concatenate(pictures)[order], np.concatenate(right, axis=1)[:, order], things))
    return kinds


def _matched(overlap: np.ndarray) -> np.ndarray:
    """[found, there] to [10, found] bool: each in turn takes, of the things left, the one it overlaps most, if that is
    enough."""
    right = np.zeros((len(OVERLAPS), len(overlap)), dtype=bool)
    for t, least in enumerate(OVERLAPS):
        left = overlap.copy()
        for i in range(len(overlap) if overlap.size else 0):
            best = int(left[i].argmax())
            if left[i, best] >= min(least, 1 - 1e-10):
                right[t, i] = True
                left[:, best] = -1.0
    return right


def _precision(kinds: Sequence[_Kind], counts: np.ndarray) -> tuple[float, float]:
    """map50 and map of pictures that come so often. counts: [B]."""
    means = []
    for kind in kinds:
        there = int(counts @ kind.things)
        if there == 0:
            continue
        often = counts[kind.picture]
        hits = np.cumsum(kind.right * often, axis=1)  # [10, n]
        precision = hits / np.maximum(np.cumsum(often), 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(precision, ((0, 0), (0, 1)))  # what is never recalled has precision 0
        at = [np.searchsorted(row, RECALLS, side="left") for row in hits / there]
        means.append([padded[t, place].mean() for t, place in enumerate(at)])
    if not means:
        return np.nan, np.nan
    mean = np.mean(means, axis=0)
    return float(mean[0]), float(mean.mean())
