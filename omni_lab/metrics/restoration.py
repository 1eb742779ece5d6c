"""How near a restored picture is to the whole one; and the controls of a model that restores: fillings of holes and
smoothings that know nothing but the pixels given."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchvision.transforms.v2.functional import gaussian_blur

INPAINT_BASELINES = ("mean", "biharmonic", "telea")
DENOISE_BASELINES = MappingProxyType(  # and how much of each is worth a try
    {
        "gaussian": (0.5, 1.0, 1.5, 2.0, 3.0),  # standard deviation in pixels
        "total_variation": (0.05, 0.1, 0.2, 0.4),  # weight
        "nonlocal_means": (0.1, 0.2, 0.3, 0.4),  # distance at which patches are no longer alike
        "bicubic": (2, 4, 8),  # side in pixels of the blocks that are averaged, and then interpolated
    }
)
EXACT = 100.0  # dB, of an exact copy, whose ratio has no bound
SMALLEST = 11  # pixels: the window that structures are compared in
RADIUS = 3  # pixels around a hole that Telea's filling looks at


class RestorationScores(NamedTuple):
    """psnr: [B], peak signal over error in dB, at most `EXACT`. ssim: [B], structural similarity, 1 for a copy."""

    psnr: Float[Tensor, " b"]
    ssim: Float[Tensor, " b"]


def psnr_ssim(restored: Float[Tensor, "b 3 h w"], whole: Float[Tensor, "_ 3 _ _"]) -> RestorationScores:
    """Of every picture, in [0, 1]: peak signal-to-noise ratio, and structural similarity (Wang et al. 2004) in Gaussian
    windows of 11 pixels, those over its edges included. Raises ValueError for shapes that differ or are too small, and
    for values beyond [0, 1]."""
    if restored.shape != whole.shape or len(whole) == 0 or min(whole.shape[2:]) < SMALLEST:
        raise ValueError(
            f"restored and whole must be [B, 3, H, W] alike, B at least 1, H and W at least {SMALLEST}: "
            f"got {list(restored.shape)} and {list(whole.shape)}"
        )
    for name, pictures in (("restored", restored), ("whole", whole)):
        if not (pictures.min() >= 0 and pictures.max() <= 1):  # nor NaN
            raise ValueError(f"{name} must be in [0, 1]: got {float(pictures.min()):g} to {float(pictures.max()):g}")
    psnr = peak_signal_noise_ratio(restored, whole, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(restored, whole, data_range=1.0, reduction="none")
    return RestorationScores(psnr.clamp(max=EXACT), ssim)  # type: ignore[arg-type]


def inpaint_baseline(
    pictures: UInt8[Tensor, "b 3 h w"], kept: Bool[Tensor, "_ _ _"], how: str
) -> Float[Tensor, "b 3 h w"]:
    """The controls of a model that fills holes: in [0, 1], pixels that are kept as they were, the others as the rest of
    the same picture suggests, whatever they were. kept: [B, H, W].

    how: "mean" of the kept pixels; "biharmonic", the smoothest continuation (Damelin and Hoang 2018); "telea", marching
    inwards from the edge (Telea 2004). Raises ValueError for another, and for a picture of which nothing is kept.
    """
    if how not in INPAINT_BASELINES:
        raise ValueError(f"how must be one of {INPAINT_BASELINES}: got {how!r}")
    if pictures.dtype != torch.uint8 or pictures.shape[:1] + pictures.shape[2:] != kept.shape:
        raise ValueError(
            f"pictures must be uint8 [B, 3, H, W] and kept [B, H, W]: got {pictures.dtype} {list(pictures.shape)} and "
            f"{list(kept.shape)}"
        )
    bare = (~kept.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if bare:
        raise ValueError(f"kept must leave some pixels of every picture: nothing is left of {bare}")
    filled = pictures.float() / 255
    for i, (picture, known) in enumerate(zip(pictures, kept, strict=True)):
        if not known.all():
            filled[i] = torch.where(known, filled[i], _guess(picture, known, how).to(filled.device))
    return filled


def _guess(picture: UInt8[Tensor, "3 h w"], known: Bool[Tensor, "h w"], how: str) -> Float[Tensor, "3 h w"]:
    """[3, H, W] in [0, 1]; only what is not known counts."""
    if how == "mean":
        return (picture[:, known].float().mean(dim=1) / 255)[:, None, None].expand(picture.shape)
    shown = np.ascontiguousarray((picture * known).permute(1, 2, 0).cpu().numpy())  # [H, W, 3]
    hole = (~known).cpu().numpy()
    if how == "biharmonic":
        from skimage.restoration import inpaint_biharmonic

        guess = inpaint_biharmonic(shown / 255.0, hole, channel_axis=-1).clip(0, 1)
    else:
        import cv2

        guess = cv2.inpaint(shown, hole.astype(np.uint8), RADIUS, cv2.INPAINT_TELEA) / 255.0
    return torch.from_numpy(np.ascontiguousarray(guess)).float().permute(2, 0, 1)


def denoise_baseline(pictures: UInt8[Tensor, "b 3 h w"], how: str, strength: float) -> Float[Tensor, "b 3 h w"]:
    """The controls of a model that removes noise or adds pixels: in [0, 1].

    how: "gaussian" blur; "total_variation" (Chambolle 2004) and "nonlocal_means" (Buades et al. 2005), as in
    scikit-image; "bicubic" interpolation of blocks. strength: see `SMOOTHINGS`. Raises ValueError for another, and for
    blocks that do not fit.
    """
    if how not in DENOISE_BASELINES or strength <= 0:
        raise ValueError(f"how must be one of {[*DENOISE_BASELINES]}, strength above 0: got {how!r} and {strength}")
    given = pictures.float() / 255
    if how == "gaussian":
        return gaussian_blur(given, 2 * round(3 * strength) + 1, strength).clamp(0, 1)
    if how == "bicubic":
        side, sizes = int(strength), pictures.shape[2:]
        if side != strength or any(size % side for size in sizes):
            raise ValueError(f"strength must be the side of blocks that {[*sizes]} pixels are made of: got {strength}")
        return F.interpolate(F.avg_pool2d(given, side), sizes, mode="bicubic").clamp(0, 1)
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    smoothed = []
    for picture in given.permute(0, 2, 3, 1).cpu().numpy():
        if how == "total_variation":
            found = denoise_tv_chambolle(picture, weight=strength, channel_axis=-1)
        else:
            found = denoise_nl_means(picture, patch_size=5, patch_distance=6, h=strength, channel_axis=-1)
        smoothed.append(torch.from_numpy(found).float())
    return torch.stack(smoothed).permute(0, 3, 1, 2).clamp(0, 1).to(given.device)


def tune_denoise_baseline(pictures: UInt8[Tensor, "b 3 h w"], whole: Float[Tensor, "_ 3 _ _"]) -> tuple[str, float]:
    """Which of `SMOOTHINGS`, and how much of it, gives the highest PSNR, the mean over pictures. To be asked of
    pictures that are not tested."""
    tried = [(how, strength) for how, strengths in DENOISE_BASELINES.items() for strength in strengths]
    return max(tried, key=lambda one: float(psnr_ssim(denoise_baseline(pictures, *one), whole).psnr.mean()))
