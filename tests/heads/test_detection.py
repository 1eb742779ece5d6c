"""The detection head: a set against a set."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from omni_lab.batch import Modality, Tokens
from omni_lab.heads.context import FusedContext, HeadError
from omni_lab.heads.detection import DetectionHead, DetectionOutput

CLASSES = ["frog", "key", "bus"]


def context_of(size: int, *, seed: int = 0, blind: tuple[int, ...] = ()) -> FusedContext:
    torch.manual_seed(seed)
    mask = torch.ones(size, 9, dtype=torch.bool)
    mask[list(blind)] = False
    return FusedContext(Tokens(torch.randn(size, 9, 16), mask), {Modality.IMAGE: slice(0, 9)})


@pytest.fixture
def head() -> DetectionHead:
    torch.manual_seed(0)
    return DetectionHead(classes=CLASSES, dim=16, num_queries=5)


def random_boxes(count: int) -> Tensor:
    corners = torch.rand(count, 2, 2).sort(dim=1).values  # two corners, ordered
    return corners.flatten(1)


def test_it_finds_as_many_as_it_has_queries(head: DetectionHead) -> None:
    output = head(context_of(3))
    assert output.logits.shape == (2, 3, 5, 4) and output.boxes.shape == (2, 3, 5, 4)
    assert (output.boxes[..., 2:] >= output.boxes[..., :2]).all()
    for one in head.post_process(output):
        assert len(one.labels) == 5 and (one.scores.diff() <= 0).all() and (one.labels < 3).all()
    assert all((one.scores >= 0.3).all() for one in head.post_process(output, threshold=0.3))
    assert all(len(one.labels) == 0 for one in head.post_process(output, threshold=1.0))


@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_cheapest_of_all(head: DetectionHead, seed: int) -> None:
    torch.manual_seed(seed)
    logits, placed = torch.randn(4, 4), random_boxes(4)
    names, there = torch.tensor([0, 2, 1]), random_boxes(3)

    def loss(order: tuple[int, ...]) -> float:
        """What the chosen pairs cost, written out."""
        total = 0.0
        for thing, query in enumerate(order):
            a, b = placed[query], there[thing]
            low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
            both = (high - low).clamp(min=0).prod()
            union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both
            hull = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
            overlap = both / union - (hull - union) / hull
            chance = logits[query].softmax(0)[names[thing]]
            total += float(5 * (a - b).abs().sum() - 2 * overlap - chance)
        return total

    best = min(itertools.permutations(range(4), 3), key=loss)
    query, thing = head.hungarian_match(logits, placed, names, there)
    assert [int(query[thing == i]) for i in range(3)] == list(best)


def test_the_loss_knows_no_order_and_takes_empty_scenes(head: DetectionHead) -> None:
    output = head(context_of(2))
    names, there = torch.tensor([0, 2, 1]), random_boxes(3)
    empty = torch.empty(0, dtype=torch.long), torch.empty(0, 4)
    one = head.loss(output, [names, empty[0]], [there, empty[1]])
    turned = head.loss(output, [names[[2, 0, 1]], empty[0]], [there[[2, 0, 1]], empty[1]])
    assert torch.allclose(one, turned)
    alone = head.loss(output, [empty[0]] * 2, [empty[1]] * 2)
    assert alone.isfinite() and alone < one
    exact = DetectionOutput(torch.full((1, 1, 1, 4), -9.0), there[None, None, :1])
    exact.logits[..., 0] = 9.0
    assert head.loss(exact, [names[:1]], [there[:1]]) < 1e-3, "what is exactly right costs nothing"


def test_it_learns_what_is_where(head: DetectionHead) -> None:
    torch.manual_seed(1)
    context = context_of(4)
    names = [torch.tensor(n, dtype=torch.long) for n in ([0], [1, 2], [], [2, 2, 0])]
    there = [random_boxes(len(n)) for n in names]
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(300):
        loss = head.loss(head(context), names, there)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for one, wanted, boxes in zip(head.post_process(head(context), threshold=0.6), names, there, strict=True):
        assert sorted(one.labels.tolist()) == sorted(wanted.tolist())
        assert len(boxes) == 0 or torch.cdist(one.boxes, boxes, p=torch.inf).amin(dim=1).max() < 0.1


def test_invalid_requests_are_errors(head: DetectionHead) -> None:
    with pytest.raises(HeadError, match=r"detection: every sample needs image: samples \[1\] have none"):
        head(context_of(3, blind=(1,)))
    deaf = FusedContext(context_of(2).tokens, {Modality.TEXT: slice(0, 9)})
    with pytest.raises(HeadError, match=r"samples \[0, 1\] have none"):
        head(deaf)
    output = head(context_of(2))
    many = torch.zeros(6, dtype=torch.long)
    with pytest.raises(HeadError, match=r"expected 2 images of at most 5 objects: got \[6, 0\]"):
        head.loss(output, [many, many[:0]], [random_boxes(6), random_boxes(0)])
