from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from omni_lab.heads.detection import Detections
from omni_lab.metrics.detection import mean_average_precision

BOXES = [[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 0.9, 0.9]]


def detections(*found: tuple[int, float, Sequence[float]]) -> Detections:
    labels, scores, boxes = zip(*found, strict=True) if found else ((), (), ())
    return Detections(
        torch.tensor(labels, dtype=torch.long), torch.tensor(scores), torch.tensor(boxes).reshape(len(found), 4)
    )


def scenes(count: int, *, seed: int) -> tuple[list[Detections], Tensor, Tensor]:
    """Images of up to three objects of four classes; most are detected, with inexact boxes, among false positives."""
    g = torch.Generator().manual_seed(seed)
    labels, boxes, found = torch.full((count, 3), -1), torch.zeros(count, 3, 4), []
    for i in range(count):
        n = 1 + i % 3
        corner = torch.rand(5, 2, generator=g) * 0.6
        said = torch.cat([corner, corner + 0.3], dim=1)
        names = torch.randint(4, (5,), generator=g)
        labels[i, :n], boxes[i, :n] = names[:n], said[:n]
        names[:n] = torch.where(torch.rand(n, generator=g) < 0.8, names[:n], 3 - names[:n])
        said[:n] += 0.03 * torch.randn(n, 4, generator=g)
        scores = torch.rand(5, generator=g)
        scores[:n] += 0.3
        order = scores.argsort(descending=True)
        found.append(Detections(names[order], scores[order], said[order]))
    return found, labels, boxes


def test_precision_by_hand() -> None:
    """The detections by falling score: one object, a false positive, the other object. Precision is 1 up to a recall of
    a half (51 of the 101 points), two thirds from there on."""
    labels, boxes = torch.tensor([[0, 0, -1]]), torch.tensor([[*BOXES, [0.0] * 4]])
    found = [detections((0, 0.9, BOXES[0]), (0, 0.8, [0.0, 0.6, 0.2, 0.8]), (0, 0.7, BOXES[1]))]
    precision = mean_average_precision(found, labels, boxes, resamples=5)
    assert precision.map50.value == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert precision.map.value == pytest.approx(precision.map50.value), "boxes are exact, so at every threshold"
    assert precision.map50.interval == pytest.approx((precision.map50.value,) * 2), "one image: no spread"


def test_a_box_of_iou_two_thirds_counts_up_to_that_threshold() -> None:
    wide = [0.1, 0.1, 0.5, 0.7]  # 0.16 of 0.24
    precision = mean_average_precision(
        [detections((2, 0.9, wide))], torch.tensor([[2]]), torch.tensor([[BOXES[0]]]), resamples=5
    )
    assert precision.map50.value == pytest.approx(1.0)
    assert precision.map.value == pytest.approx(0.4), "0.5, 0.55, 0.6, 0.65 of ten"
    assert precision.map.interval == pytest.approx((0.4, 0.4))


def test_a_second_detection_of_one_object_is_false_and_classes_are_averaged() -> None:
    labels, boxes = torch.tensor([[0], [1]]), torch.tensor([[BOXES[0]], [BOXES[1]]])
    found = [detections((0, 0.9, BOXES[0]), (0, 0.8, BOXES[0])), detections((0, 0.7, BOXES[1]))]
    precision = mean_average_precision(found, labels, boxes, resamples=5)
    assert precision.map50.value == pytest.approx(0.5), "class 0 is all detected, class 1 not at all"
    many = [detections(*[(0, 0.9, BOXES[0])] * 120), found[1]]
    assert mean_average_precision(many, labels, boxes, resamples=5).map50.value == pytest.approx(0.5), (
        "more than COCO counts"
    )
    nothing = mean_average_precision([detections(), detections()], labels, boxes, resamples=20)
    assert nothing.map50 == (0.0, 0.0, 0.0)
    low, high = mean_average_precision(found, labels, boxes, resamples=50).map.interval
    assert low < 0.1 and high > 0.9, "resamples without a class leave it out"


def test_precision_is_that_of_torchmetrics() -> None:
    from torchmetrics.detection import MeanAveragePrecision

    found, labels, boxes = scenes(40, seed=0)
    metric = MeanAveragePrecision()
    metric.update(
        [o._asdict() for o in found],
        [{"labels": n[n >= 0], "boxes": b[n >= 0]} for n, b in zip(labels, boxes, strict=True)],
    )
    expected = metric.compute()
    precision = mean_average_precision(found, labels, boxes, resamples=200)
    for ours, name in ((precision.map50, "map_50"), (precision.map, "map")):
        assert 0 < ours.low < ours.value < ours.high < 1
        assert ours.value == pytest.approx(float(expected[name]), abs=5e-3), "thresholds are rounded there"


def test_a_resample_equals_an_evaluation_of_the_drawn_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighting images by how often they are drawn must equal evaluating the drawn images."""
    import omni_lab.metrics.detection as module

    found, labels, boxes = scenes(30, seed=1)
    weighed, inner = [], module._mean_precision

    def watched(classes: Sequence[module._Matches], weights: np.ndarray) -> np.ndarray:
        weighed.append((weights, inner(classes, weights)))
        return weighed[-1][1]

    monkeypatch.setattr(module, "_mean_precision", watched)
    mean_average_precision(found, labels, boxes, resamples=2)
    assert [len(weights) for weights, _ in weighed] == [2]
    for weights, precision in zip(*weighed[0], strict=True):
        drawn = np.repeat(np.arange(30), weights)
        again = mean_average_precision([found[i] for i in drawn], labels[drawn], boxes[drawn], resamples=1)
        assert precision == pytest.approx((again.map50.value, again.map.value), abs=1e-6)


def test_wrong_input_is_named() -> None:
    labels, boxes = torch.tensor([[0]]), torch.tensor([[BOXES[0]]])
    with pytest.raises(ValueError, match=r"of the same images, at least one: got 2, \[1, 1\] and \[1, 1, 4\]"):
        mean_average_precision([detections(), detections()], labels, boxes, resamples=5)
    with pytest.raises(ValueError, match=r"at least one: got 0, \[0, 1\]"):
        mean_average_precision([], labels[:0], boxes[:0], resamples=5)
    with pytest.raises(ValueError, match="all 1 are padding"):
        mean_average_precision([detections()], labels - 1, boxes, resamples=5)
    with pytest.raises(ValueError, match="resamples must be at least 1: got 0"):
        mean_average_precision([detections()], labels, boxes, resamples=0)
