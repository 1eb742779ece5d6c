"""The restoration head: kept pixels stay, missing ones come back as far as anything says what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omni_lab.batch import Modality, Tokens
from omni_lab.heads.context import FusedContext, HeadError
from omni_lab.heads.restoration import RestorationHead, hole_coordinates


def context_of(values: Tensor) -> FusedContext:
    """values: [B, N, D]."""
    mask = torch.ones(values.shape[:2], dtype=torch.bool)
    return FusedContext(Tokens(values, mask), {Modality.TEXT: slice(0, values.shape[1])})


@pytest.fixture
def head() -> RestorationHead:
    torch.manual_seed(0)
    return RestorationHead(dim=16, size=16, patch=2, widths=(8, 8), depth=1)


@pytest.fixture
def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


def holes() -> Tensor:
    kept = torch.ones(3, 16, 16, dtype=torch.bool)
    kept[:, 4:9, 6:12] = False
    return kept


def test_kept_pixels_stay_to_the_last_bit(head: RestorationHead, image: Tensor) -> None:
    kept = holes()
    restored = head(context_of(torch.randn(3, 4, 16)), image=image, keep_mask=kept)
    assert restored.shape == (3, 3, 16, 16) and (restored >= 0).all() and (restored <= 1).all()
    where = kept[:, None].expand_as(restored)
    assert torch.equal((restored[where] * 255).round().to(torch.uint8), image[where])
    assert not torch.equal(restored[~where], image[~where] / 255)


def test_the_content_of_a_hole_is_not_used(head: RestorationHead, image: Tensor) -> None:
    torch.nn.init.normal_(head.paint.weight)  # else it adds nothing yet
    context, kept = context_of(torch.randn(3, 4, 16)), holes()
    other = torch.where(kept[:, None], image, 255 - image)
    assert torch.equal(head(context, image=image, keep_mask=kept), head(context, image=other, keep_mask=kept))
    free = head(context, image=image)
    assert not torch.allclose(free, head(context, image=other), atol=1e-4), "without a mask all of it is"
    assert not torch.allclose(free, image / 255), "and nothing is certain"


def test_a_pixel_knows_where_in_its_hole_it_lies() -> None:
    kept = holes()  # rows 4 to 8, columns 6 to 11
    kept[1] = True  # nothing is missing
    kept[2] = True
    kept[2, 3, 15] = False  # a single pixel
    across, down = hole_coordinates(kept[:, None].float()).unbind(1)
    assert torch.allclose(across[0, 5, 6:12], torch.linspace(-1, 1, 6))
    assert torch.allclose(down[0, 4:9, 7], torch.linspace(-1, 1, 5))
    assert not across[0][kept[0]].any() and not down[0][kept[0]].any()
    assert not across[1:].any() and not down[1:].any(), "the middle of one pixel is that pixel"


@pytest.mark.parametrize("training", [True, False])
def test_at_first_it_leaves_an_image_as_it_is(head: RestorationHead, image: Tensor, training: bool) -> None:
    """A hole is gray."""
    head.train(training)
    middle, kept = 96 + image // 4, holes()
    restored = head(context_of(torch.randn(3, 4, 16)), image=middle)
    assert torch.allclose(restored, middle / 255, atol=1e-6)
    filled = head(context_of(torch.randn(3, 4, 16)), image=middle, keep_mask=kept)
    assert torch.allclose(filled, torch.where(kept[:, None], middle / 255, 0.5), atol=1e-6)


def test_colours_are_clamped_except_in_training(head: RestorationHead, image: Tensor) -> None:
    with torch.no_grad():
        head.paint.bias.copy_(torch.tensor([2.0, -2.0, 0.0, 0.0]).repeat_interleave(head.patch**2))
    context, kept = context_of(torch.randn(3, 4, 16)), holes()
    beyond = head.train()(context, image=image)
    assert (beyond[:, 0] >= 2).all() and (beyond[:, 1] <= -1).all(), "so that their loss has a gradient"
    restored = head.eval()(context, image=image)
    assert (restored[:, 0] == 1).all() and (restored[:, 1] == 0).all()
    assert torch.allclose(restored[:, 2], image[:, 2] / 255)
    filled = head(context, image=image, keep_mask=kept)
    assert torch.equal(filled, torch.where(kept[:, None], image / 255, filled)) and (filled[:, 0][~kept] == 1).all()


def test_doubt_pulls_pixels_towards_gray(head: RestorationHead, image: Tensor) -> None:
    """So noise is taken away though no channel could hold what it is at each pixel."""
    with torch.no_grad():
        head.paint.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.75]).repeat_interleave(head.patch**2))
    context, kept = context_of(torch.randn(3, 4, 16)), holes()
    assert torch.allclose(head(context, image=image), 0.375 + 0.25 * image / 255, atol=1e-6)
    filled = head(context, image=image, keep_mask=kept)
    assert torch.equal(filled, torch.where(kept[:, None], image / 255, 0.5)), "what is kept is not doubted"


def test_a_hint_decides_what_no_pixel_can(head: RestorationHead) -> None:
    """The hole is black or white, and only the context says which."""
    torch.manual_seed(2)
    hints = torch.randn(2, 3, 16)
    gray = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
    kept = holes()[:2]
    wanted = torch.tensor([0.0, 1.0])[:, None, None, None]
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(120):
        restored = head(context_of(hints), image=gray, keep_mask=kept)
        loss = ((restored - wanted).abs() * ~kept[:, None]).sum() / (~kept).sum() / 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    blind = head(context_of(hints.mean(0, keepdim=True).expand(2, -1, -1)), image=gray, keep_mask=kept)
    assert torch.equal(blind[0], blind[1])


def test_invalid_requests_are_errors(head: RestorationHead, image: Tensor) -> None:
    context, kept = context_of(torch.randn(3, 4, 16)), holes()
    kept[1] = True
    with pytest.raises(HeadError, match=r"the mask of samples \[1\] keeps every pixel: there is nothing to restore"):
        head(context, image=image, keep_mask=kept)
    kept[1], kept[2] = holes()[1], False
    with pytest.raises(HeadError, match=r"the mask of samples \[2\] keeps no pixel"):
        head(context, image=image, keep_mask=kept)
    with pytest.raises(HeadError, match=r"expected images of 16 x 16: got \[3, 3, 8, 8\]"):
        head(context, image=image[..., :8, :8])
    with pytest.raises(HeadError, match="must be a multiple of 8: got 20"):
        RestorationHead(dim=16, size=20)
