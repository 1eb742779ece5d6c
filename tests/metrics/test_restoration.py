from __future__ import annotations

import math

import pytest
import torch

from omni_lab.metrics.restoration import (
    DENOISE_BASELINES,
    INPAINT_BASELINES,
    denoise_baseline,
    inpaint_baseline,
    psnr_ssim,
    tune_denoise_baseline,
)


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
    psnr, ssim = psnr_ssim(restored, whole)
    assert psnr.tolist() == pytest.approx([100.0, 20.0, -20 * math.log10(0.2)], abs=1e-3)
    assert ssim[0] == pytest.approx(1.0, abs=1e-5) and ssim[0] > ssim[1] > ssim[2]
    noise = psnr_ssim(torch.rand(1, 3, 16, 16), whole[:1])
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
    assert float(psnr_ssim(restored, whole).ssim) == pytest.approx(everywhere.mean(), abs=1e-3)


@pytest.mark.parametrize("method", INPAINT_BASELINES)
def test_inpainting_leaves_kept_pixels_and_never_reads_the_hole(method: str) -> None:
    picture, kept = slope()
    other, whole = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), torch.ones(32, 32, dtype=torch.bool)
    filled = inpaint_baseline(torch.stack([picture, picture * kept, other]), torch.stack([kept, kept, whole]), method)
    assert filled.shape == (3, 3, 32, 32) and filled.dtype == torch.float32
    assert filled.min() >= 0 and filled.max() <= 1
    assert torch.equal(filled[0], filled[1]), "what stands in the hole does not matter"
    assert torch.equal(filled[0][:, kept], picture[:, kept].float() / 255)
    assert torch.equal(filled[2], other.float() / 255), "nothing to fill"


def test_inpainting_by_hand() -> None:
    picture, kept = slope()
    errors = {
        method: (inpaint_baseline(picture[None], kept[None], method)[0] - picture.float() / 255)[:, ~kept].abs()
        for method in INPAINT_BASELINES
    }
    assert errors["biharmonic"].max() < 1e-3, "a plane is its own smoothest continuation"
    assert errors["biharmonic"].mean() < errors["telea"].mean() < errors["mean"].mean()
    two = torch.tensor([0, 100], dtype=torch.uint8).repeat(3, 8, 4)[None]
    middle = torch.ones(1, 8, 8, dtype=torch.bool)
    middle[:, 3:5, 3:5] = False
    assert inpaint_baseline(two, middle, "mean")[0, :, ~middle[0]].unique().item() == pytest.approx(50 / 255)


def test_wrong_input_is_named() -> None:
    picture, kept = slope()
    with pytest.raises(ValueError, match=r"method must be one of \('mean', 'biharmonic', 'telea'\): got 'magic'"):
        inpaint_baseline(picture[None], kept[None], "magic")
    with pytest.raises(ValueError, match=r"got torch.uint8 \[1, 3, 32, 32\] and \[2, 32, 32\]"):
        inpaint_baseline(picture[None], torch.stack([kept, kept]), "mean")
    with pytest.raises(ValueError, match=r"it keeps none of \[1\]"):
        inpaint_baseline(torch.stack([picture, picture]), torch.stack([kept, torch.zeros_like(kept)]), "mean")
    whole = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"got \[1, 3, 16, 16\] and \[2, 3, 16, 16\]"):
        psnr_ssim(whole[:1], whole)
    with pytest.raises(ValueError, match=r"sides at least 11: got \[2, 3, 8, 8\]"):
        psnr_ssim(whole[..., :8, :8], whole[..., :8, :8])
    with pytest.raises(ValueError, match=r"restored must be in \[0, 1\]: got 0 to 255"):
        psnr_ssim(torch.tensor([0.0, 255.0]).repeat(1, 3, 16, 8), whole[:1])


@pytest.mark.parametrize("method", DENOISE_BASELINES)
def test_denoising_removes_noise_and_leaves_flat_images(method: str) -> None:
    torch.manual_seed(0)
    flat = torch.full((2, 3, 32, 32), 120, dtype=torch.uint8)
    flat[1, 0] = 40
    noisy = (flat + 30 * torch.randn(2, 3, 32, 32)).clamp(0, 255).to(torch.uint8)
    for strength in DENOISE_BASELINES[method]:
        kept = denoise_baseline(flat, method, strength)
        assert kept.shape == (2, 3, 32, 32) and kept.dtype == torch.float32
        assert torch.allclose(kept, flat / 255, atol=1e-3)
        assert denoise_baseline(torch.full_like(flat, 255), method, strength).max() <= 1, "white stays white"
        found = denoise_baseline(noisy, method, strength)
        assert found.min() >= 0 and found.max() <= 1
        assert torch.allclose(found[1], denoise_baseline(noisy[1:], method, strength)[0], atol=1e-6), (
            "each image by itself"
        )
    strongest = psnr_ssim(denoise_baseline(noisy, method, DENOISE_BASELINES[method][-1]), flat / 255).psnr
    assert (strongest > psnr_ssim(noisy / 255, flat / 255).psnr + 6).all()


def test_tuning_finds_the_best_denoising() -> None:
    slope_ = (torch.arange(32) * 8).to(torch.uint8).expand(2, 3, 32, 32)
    blocks = torch.nn.functional.avg_pool2d(slope_.float(), 4)
    coarse = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    chosen = tune_denoise_baseline(coarse, slope_ / 255)
    best = psnr_ssim(denoise_baseline(coarse, *chosen), slope_ / 255).psnr.mean()
    for method, strengths in DENOISE_BASELINES.items():
        for strength in strengths:
            assert psnr_ssim(denoise_baseline(coarse, method, strength), slope_ / 255).psnr.mean() <= best
    assert best > psnr_ssim(coarse / 255, slope_ / 255).psnr.mean() + 3
    gradual = denoise_baseline(coarse, "bicubic", 4)[0, 0, 16, 8:24]
    assert (gradual.diff() > 0).all(), "no steps are left"


def test_wrong_denoising_is_named() -> None:
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for method, strength in (("median", 1.0), ("gaussian", 0.0)):
        with pytest.raises(
            ValueError, match=rf"method must be one of .*'bicubic'\], strength above 0: got '{method}', "
        ):
            denoise_baseline(picture, method, strength)
    with pytest.raises(ValueError, match=r"blocks that divide \[32, 32\] pixels: got 5"):
        denoise_baseline(picture, "bicubic", 5)
