from __future__ import annotations

import math

import pytest
import torch

from omni_lab.evaluation import FILLS, fill, restoration


def slope() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture [3, 32, 32] uint8 that brightens evenly to the right, and a hole in its middle: where it is not."""
    picture = (torch.arange(32) * 8).to(torch.uint8).expand(3, 32, 32)
    kept = torch.ones(32, 32, dtype=torch.bool)
    kept[12:20, 12:20] = False
    return picture, kept


def test_psnr_by_hand_and_of_each_picture() -> None:
    whole = torch.rand(3, 3, 16, 16) * 0.8
    restored = whole.clone()
    restored[1] += 0.1
    restored[2] += 0.2
    psnr, ssim = restoration(restored, whole)
    assert psnr.tolist() == pytest.approx([100.0, 20.0, -20 * math.log10(0.2)], abs=1e-3)
    assert ssim[0] == pytest.approx(1.0, abs=1e-5) and ssim[0] > ssim[1] > ssim[2]
    noise = restoration(torch.rand(1, 3, 16, 16), whole[:1])
    assert noise.ssim[0] < 0.3


def test_ssim_is_that_of_scikit_image() -> None:
    """Of the whole picture: torchmetrics counts its edges, which scikit-image leaves out of the mean."""
    from skimage.metrics import structural_similarity

    torch.manual_seed(0)
    whole = torch.rand(1, 3, 24, 24)
    restored = (whole + 0.1 * torch.randn(1, 3, 24, 24)).clamp(0, 1)
    ours, theirs = (x[0].double().numpy() for x in (restored, whole))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, everywhere = structural_similarity(ours, theirs, channel_axis=0, data_range=1.0, full=True, **window)
    assert float(restoration(restored, whole).ssim) == pytest.approx(everywhere.mean(), abs=1e-3)


@pytest.mark.parametrize("how", FILLS)
def test_fills_keep_what_is_kept_and_never_look_into_the_hole(how: str) -> None:
    picture, kept = slope()
    other, whole = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), torch.ones(32, 32, dtype=torch.bool)
    filled = fill(torch.stack([picture, picture * kept, other]), torch.stack([kept, kept, whole]), how)
    assert filled.shape == (3, 3, 32, 32) and filled.dtype == torch.float32
    assert filled.min() >= 0 and filled.max() <= 1
    assert torch.equal(filled[0], filled[1]), "what stands in the hole does not matter"
    assert torch.equal(filled[0][:, kept], picture[:, kept].float() / 255)
    assert torch.equal(filled[2], other.float() / 255), "nothing to fill"


def test_fills_by_hand() -> None:
    picture, kept = slope()
    errors = {how: (fill(picture[None], kept[None], how)[0] - picture.float() / 255)[:, ~kept].abs() for how in FILLS}
    assert errors["biharmonic"].max() < 1e-3, "a plane is its own smoothest continuation"
    assert errors["biharmonic"].mean() < errors["telea"].mean() < errors["mean"].mean()
    two = torch.tensor([0, 100], dtype=torch.uint8).repeat(3, 8, 4)[None]
    middle = torch.ones(1, 8, 8, dtype=torch.bool)
    middle[:, 3:5, 3:5] = False
    assert fill(two, middle, "mean")[0, :, ~middle[0]].unique().item() == pytest.approx(50 / 255)


def test_what_cannot_be_restored_is_named() -> None:
    picture, kept = slope()
    with pytest.raises(ValueError, match=r"how must be one of \('mean', 'biharmonic', 'telea'\): got 'magic'"):
        fill(picture[None], kept[None], "magic")
    with pytest.raises(ValueError, match=r"got torch.uint8 \[1, 3, 32, 32\] and \[2, 32, 32\]"):
        fill(picture[None], torch.stack([kept, kept]), "mean")
    with pytest.raises(ValueError, match=r"nothing is left of \[1\]"):
        fill(torch.stack([picture, picture]), torch.stack([kept, torch.zeros_like(kept)]), "mean")
    whole = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"got \[1, 3, 16, 16\] and \[2, 3, 16, 16\]"):
        restoration(whole[:1], whole)
    with pytest.raises(ValueError, match=r"H and W at least 11: got \[2, 3, 8, 8\]"):
        restoration(whole[..., :8, :8], whole[..., :8, :8])
    with pytest.raises(ValueError, match=r"restored must be in \[0, 1\]: got 0 to 255"):
        restoration(torch.tensor([0.0, 255.0]).repeat(1, 3, 16, 8), whole[:1])
