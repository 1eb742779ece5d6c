"""Mean average precision of object detection, as COCO defines it, with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from omni_lab.metrics.bootstrap import Estimate, percentile_levels, resample

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)  # that precision is averaged over
MAX_DETECTIONS = 100  # per image and class, by score
RESAMPLES_AT_ONCE = 200  # bounds the memory
_Matches = tuple[np.ndarray, np.ndarray, np.ndarray]  # of a class: image [n], matched [10, n], objects per image [B]


class DetectionScores(NamedTuple):
    """map50: mean over classes of the average precision at an IoU of 0.5.
    map: mean over IoU thresholds of 0.5, 0.55, ... 0.95, too."""

    map50: Estimate
    map: Estimate


def mean_average_precision(
    detections: Sequence[tuple[Tensor, Tensor, Tensor]],
    labels: Int[Tensor, "b n"],
    boxes: Float[Tensor, "b n 4"],
    *,
    resamples: int,
) -> DetectionScores:
    """Mean average precision (Lin et al. 2014) by torchmetrics and pycocotools, with 95 % intervals over images.

    detections: labels [n], scores [n] and boxes [n, 4] of each image, by falling score.
    labels: classes of the objects, -1 for padding.
    boxes: left, top, right, bottom of the objects.

    Detections are matched once, as images do not depend on each other; a resample only weights images by how often
    they are drawn: milliseconds instead of a second. As in COCO, classes without objects in a resample are left out.
    Average precision takes the best precision at each recall or above, so it is biased upwards in resamples, where
    images repeat; the bias, mean minus value, is subtracted. Raises ValueError if there are no objects.
    """
    if len(detections) == 0 or len(detections) != len(labels) or labels.shape != boxes.shape[:2]:
        shapes = f"{len(detections)}, {list(labels.shape)} and {list(boxes.shape)}"
        raise ValueError(f"detections, labels and boxes must be of the same images, at least one: got {shapes}")
    if not (labels >= 0).any():
        raise ValueError(f"labels must name at least one object: all {labels.numel()} are padding")
    metric: Any = MeanAveragePrecision(  # its default thresholds are rounded to float32, those of COCO are not
        "xyxy", "bbox", IOU_THRESHOLDS, RECALL_THRESHOLDS.tolist(), [1, 10, MAX_DETECTIONS], extended_summary=True
    )
    metric.warn_on_many_detections = False
    metric.update(
        [{"labels": c.cpu(), "scores": s.detach().cpu(), "boxes": b.detach().cpu()} for c, s, b in detections],
        [{"labels": c[c >= 0].cpu(), "boxes": b[c >= 0].cpu()} for c, b in zip(labels, boxes, strict=True)],
    )
    result = metric.compute()
    classes = [_match(detections, labels, c, result["ious"]) for c in labels[labels >= 0].unique().tolist()]
    weights = [np.bincount(i, minlength=len(labels)) for (i,) in resample(len(labels), resamples=resamples)]
    chunks = np.array_split(np.stack(weights), -(-len(weights) // RESAMPLES_AT_ONCE))
    resampled = np.concatenate([_mean_precision(classes, w) for w in chunks])  # [R, 2]
    values = np.array([float(result["map_50"]), float(result["map"])])
    unbiased = resampled - np.nanmean(resampled, axis=0) + values
    low, high = np.nanquantile(unbiased, percentile_levels(len(labels)), axis=0).clip(0, 1)
    return DetectionScores(*(Estimate(*map(float, row)) for row in zip(values, low, high, strict=True)))


def _match(detections: Sequence[tuple[Tensor, Tensor, Tensor]], labels: Tensor, label: int, ious: Any) -> _Matches:
    """The n detections of one class by falling score: their images, and whether they match at each IoU threshold.

    ious: [detections, objects] by (image, class), detections by falling score, as pycocotools has them.
    """
    objects = (labels == label).sum(1).cpu().numpy()
    rows = []
    for i, (classes, scores, _) in enumerate(detections):
        top = np.sort(scores[classes == label].detach().cpu().numpy())[::-1][:MAX_DETECTIONS]
        matched = _match_greedily(np.asarray(ious[i, label]).reshape(len(top), objects[i]))
        rows.append((np.full(len(top), i), matched, top))
    images, matches, tops = (np.concatenate(column, axis=-1) for column in zip(*rows, strict=True))
    order = np.argsort(-tops, kind="stable")
    return images[order], matches[:, order], objects


def _match_greedily(iou: np.ndarray) -> np.ndarray:
    """[detections, objects] to [10, detections] bool: each detection in turn takes the free object of highest IoU, if
    that reaches the threshold."""
    free = np.repeat(iou[None], len(IOU_THRESHOLDS), axis=0)
    matched = np.zeros(free.shape[:2], dtype=bool)
    for i in range(len(iou) if iou.size else 0):
        hit = matched[:, i] = free[:, i].max(1) >= np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
        free[hit, :, free[:, i].argmax(1)[hit]] = -1.0
    return matched


def _mean_precision(classes: Sequence[_Matches], weights: np.ndarray) -> np.ndarray:
    """[R, B] to [R, 2]: map50 and map, with each image repeated `weights` times; NaN without objects."""
    means = np.full((len(classes), len(weights), len(IOU_THRESHOLDS)), np.nan)
    for mean, (images, matched, objects) in zip(means, classes, strict=True):
        repeats, counts = weights[:, images][:, None], weights @ objects
        hits = np.cumsum(matched * repeats, axis=2)  # [R, 10, n]
        precision = hits / np.maximum(np.cumsum(repeats, axis=2), 1)
        precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
        reached = np.searchsorted(RECALL_THRESHOLDS, hits / np.maximum(counts, 1)[:, None, None], side="right")
        # Each recall has the precision where it is first reached, or 0.
        total = (np.diff(reached, axis=2, prepend=0) * precision).sum(2) / len(RECALL_THRESHOLDS)
        mean[counts > 0] = total[counts > 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a resample without objects
        averaged = np.nanmean(means, axis=0)
    return np.stack([averaged[:, 0], averaged.mean(1)], axis=1)
