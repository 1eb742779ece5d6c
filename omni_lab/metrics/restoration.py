"""Metrics of restored images, and the baselines of a restoration head: inpainting and denoising without learning."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchvision.transforms.v2.functional import gaussian_blur

INPAINT_BASELINES = ("mean", "biharmonic", "telea")
DENOISE_BASELINES = {  # methods and the strengths that are tried
    "gaussian": (0.5, 1.0, 1.5, 2.0, 3.0),  # standard deviation in pixels
    "total_variation": (0.05, 0.1, 0.2, 0.4),  # weight
    "nonlocal_means": (0.1, 0.2, 0.3, 0.4),  # distance up to which patches count as similar
    "bicubic": (2, 4, 8),  # side in pixels of the blocks that are averaged and then interpolated
}
MAX_PSNR = 100.0  # dB; an exact copy would have no bound
SSIM_WINDOW = 11  # pixels
TELEA_RADIUS = 3  # pixels around a hole that the method reads


class RestorationScores(NamedTuple):
    """Of each image: dB, at most `MAX_PSNR`; and structural similarity, 1 for an exact copy."""

    psnr: Float[Tensor, " b"]
    ssim: Float[Tensor, " b"]


def psnr_ssim(restored: Float[Tensor, "b 3 h w"], original: Float[Tensor, "_ 3 _ _"]) -> RestorationScores:
    """Peak signal-to-noise ratio, and structural similarity (Wang et al. 2004) in Gaussian windows, borders included,
    of each image. Raises ValueError for different or too small shapes, and for values outside [0, 1]."""
    if restored.shape != original.shape or len(original) == 0 or min(original.shape[2:]) < SSIM_WINDOW:
        shapes = f"{list(restored.shape)} and {list(original.shape)}"
        raise ValueError(f"restored and original must be [B > 0, 3, H, W], sides at least {SSIM_WINDOW}: got {shapes}")
    for name, images in (("restored", restored), ("original", original)):
        if not (images.min() >= 0 and images.max() <= 1):  # true for NaN, too
            raise ValueError(f"{name} must be in [0, 1]: got {float(images.min()):g} to {float(images.max()):g}")
    psnr = peak_signal_noise_ratio(restored, original, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(restored, original, data_range=1.0, reduction="none")
    return RestorationScores(psnr.clamp(max=MAX_PSNR), ssim)  # type: ignore[arg-type]


def inpaint_baseline(
    images: UInt8[Tensor, "b 3 h w"], keep_mask: Bool[Tensor, "_ _ _"], method: str
) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] whose holes are filled from the kept pixels alone; kept pixels stay as they are.

    keep_mask: [B, H, W], False in the holes.
    method: "mean" of the kept pixels, "biharmonic" (Damelin and Hoang 2018) or "telea" (fast marching, Telea 2004).
    Raises ValueError for an image without kept pixels.
    """
    if method not in INPAINT_BASELINES:
        raise ValueError(f"method must be one of {INPAINT_BASELINES}: got {method!r}")
    if images.dtype != torch.uint8 or images.shape[:1] + images.shape[2:] != keep_mask.shape:
        shapes = f"{images.dtype} {list(images.shape)} and {list(keep_mask.shape)}"
        raise ValueError(f"images must be uint8 [B, 3, H, W] and keep_mask [B, H, W]: got {shapes}")
    empty = (~keep_mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"keep_mask must keep some pixels of every image: it keeps none of {empty}")
    filled = images.float() / 255
    for i, (image, keep) in enumerate(zip(images, keep_mask, strict=True)):
        if not keep.all():
            filled[i] = torch.where(keep, filled[i], _inpaint(image, keep, method).to(filled.device))
    return filled


def _inpaint(image: UInt8[Tensor, "3 h w"], keep: Bool[Tensor, "h w"], method: str) -> Float[Tensor, "3 h w"]:
    """In [0, 1]; only the pixels in the hole are meant to be used."""
    if method == "mean":
        return (image[:, keep].float().mean(dim=1) / 255)[:, None, None].expand(image.shape)
    pixels = np.ascontiguousarray((image * keep).permute(1, 2, 0).cpu().numpy())  # [H, W, 3]
    hole = (~keep).cpu().numpy()
    if method == "biharmonic":
        from skimage.restoration import inpaint_biharmonic

        filled = inpaint_biharmonic(pixels / 255.0, hole, channel_axis=-1).clip(0, 1)
    else:
        import cv2

        filled = cv2.inpaint(pixels, hole.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA) / 255.0
    return torch.from_numpy(np.ascontiguousarray(filled)).float().permute(2, 0, 1)


def denoise_baseline(images: UInt8[Tensor, "b 3 h w"], method: str, strength: float) -> Float[Tensor, "b 3 h w"]:
    """Denoised or upsampled images in [0, 1].

    method: "gaussian" blur, "total_variation" (Chambolle 2004), "nonlocal_means" (Buades et al. 2005), or "bicubic"
    interpolation of averaged blocks.
    strength: see `DENOISE_BASELINES`. Raises ValueError for blocks that do not divide the image.
    """
    if method not in DENOISE_BASELINES or strength <= 0:
        raise ValueError(f"method must be one of {[*DENOISE_BASELINES]}, strength above 0: got {method!r}, {strength}")
    inputs = images.float() / 255
    if method == "gaussian":
        return gaussian_blur(inputs, 2 * round(3 * strength) + 1, strength).clamp(0, 1)
    if method == "bicubic":
        side, size = int(strength), images.shape[2:]
        if side != strength or any(n % side for n in size):
            raise ValueError(f"strength must be the side of blocks that divide {[*size]} pixels: got {strength}")
        return F.interpolate(F.avg_pool2d(inputs, side), size, mode="bicubic").clamp(0, 1)
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    if method == "total_variation":
        denoise = partial(denoise_tv_chambolle, weight=strength, channel_axis=-1)
    else:
        denoise = partial(denoise_nl_means, patch_size=5, patch_distance=6, h=strength, channel_axis=-1)
    outputs = [torch.from_numpy(denoise(image)).float() for image in inputs.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.stack(outputs).permute(0, 3, 1, 2).clamp(0, 1).to(inputs.device)


def tune_denoise_baseline(images: UInt8[Tensor, "b 3 h w"], original: Float[Tensor, "_ 3 _ _"]) -> tuple[str, float]:
    """The method and strength of `DENOISE_BASELINES` with the highest mean PSNR. Pass images of another split than the
    one that is tested."""
    candidates = [(method, strength) for method, strengths in DENOISE_BASELINES.items() for strength in strengths]
    return max(candidates, key=lambda c: float(psnr_ssim(denoise_baseline(images, *c), original).psnr.mean()))
