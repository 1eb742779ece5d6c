"""Glances: a few numbers of each raw input that a router may see before any encoder runs.

Sums over pixels and samples, below one percent of the cost of the encoders. They tell dark from bright, noise from
structure, speech from silence, motion from a still; not what is shown or said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from omni_lab.batch import NUM_MODALITIES, Modality, OmniBatch

THUMBNAIL = 8  # cells on a side
FRAME = 800  # samples of a frame of sound: 50 ms
WIDTH = 8  # numbers per modality
OPERATIONS = {Modality.IMAGE: 2.0, Modality.AUDIO: 5.0, Modality.VIDEO: 3.0}  # FLOPs per pixel value or sample


def glance_at_images(images: UInt8[Tensor, "u 3 h w"]) -> Float[Tensor, "u 8"]:
    """Of a grey thumbnail of 8 x 8 cells: mean, spread, mean differences of neighbours, the flattest row and column;
    mean and least spread inside cells, which noise raises."""
    grey = images.float().mean(1, keepdim=True) / 255
    cells = F.adaptive_avg_pool2d(grey, THUMBNAIL)[:, 0]  # [U, 8, 8]
    squares = F.adaptive_avg_pool2d(grey.square(), THUMBNAIL)[:, 0]
    inside = (squares - cells.square()).clamp(min=0).sqrt()
    across, down = cells.diff(dim=2).abs(), cells.diff(dim=1).abs()
    features = [
        cells.mean((1, 2)),
        cells.flatten(1).std(1),
        across.mean((1, 2)),
        down.mean((1, 2)),
        cells.std(2).amin(1),
        cells.std(1).amin(1),
        inside.mean((1, 2)),
        inside.flatten(1).amin(1),
    ]
    return torch.stack(features, dim=1)


def glance_at_audio(waves: Float[Tensor, "u s"], mask: Bool[Tensor, "u s"]) -> Float[Tensor, "u 8"]:
    """Log energies of frames of 50 ms, of the waveform and of its first difference (high frequencies): mean, spread,
    largest and smallest over time. Frames beyond the end count as the mean."""
    padding = -waves.shape[1] % FRAME
    waves, mask = F.pad(waves, (0, padding)), F.pad(mask, (0, padding))
    real = mask.unflatten(1, (-1, FRAME)).any(2)
    count = real.sum(1, keepdim=True).clamp(min=1)
    features = []
    for x in (waves, F.pad(waves.diff(dim=1), (1, 0))):
        energies = torch.linalg.vector_norm((x * mask).unflatten(1, (-1, FRAME)), dim=2).square() / FRAME
        levels = (energies + 1e-7).log10()
        mean = (levels * real).sum(1, keepdim=True) / count
        levels = torch.where(real, levels, mean)
        spread = ((levels - mean).square().sum(1, keepdim=True) / count).sqrt()[:, 0]
        features += [mean[:, 0], spread, levels.amax(1), levels.amin(1)]
    return torch.stack(features, dim=1)


def glance_at_video(video: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Float[Tensor, "u 8"]:
    """Of grey thumbnails of 8 x 8 cells: mean and spread over cells and over frames, mean and largest difference of
    successive frames, the mean spread inside cells, the share of frames that differ from the one before, and the number
    of frames."""
    grey = video.float().mean(2) / 255  # [U, F, h, w]
    cells = F.adaptive_avg_pool2d(grey, THUMBNAIL).flatten(2)  # [U, F, 64]
    squares = F.adaptive_avg_pool2d(grey.square(), THUMBNAIL).flatten(2)
    inside = (squares - cells.square()).clamp(min=0).sqrt()
    weight = mask.float()
    count = weight.sum(1).clamp(min=1)
    both = weight[:, 1:] * weight[:, :-1]
    moved = cells.diff(dim=1).abs().mean(2) * both  # [U, F - 1]

    def over_frames(values: Float[Tensor, "u f"]) -> Float[Tensor, " u"]:
        return (values * weight).sum(1) / count

    means = cells.mean(2)
    mean = over_frames(means)
    features = [
        mean,
        over_frames(cells.std(2)),
        over_frames((means - mean[:, None]).square()).sqrt(),
        moved.sum(1) / both.sum(1).clamp(min=1),
        F.pad(moved, (0, 1)).amax(1),  # zero for a video of one frame
        over_frames(inside.mean(2)),
        (moved > 1e-3).float().sum(1) / both.sum(1).clamp(min=1),
        count / 10,
    ]
    return torch.stack(features, dim=1)


def glance_at(modality: Modality, values: Tensor, mask: Bool[Tensor, "u t"]) -> Float[Tensor, "u 8"]:
    """Of raw inputs of an `OmniBatch`, see `ModalityInput`."""
    if modality is Modality.IMAGE:
        return glance_at_images(values)
    return (glance_at_audio if modality is Modality.AUDIO else glance_at_video)(values, mask)


class Glance(nn.Module):
    """The glances of a batch, standardised by what `fit` saw.

    modalities: those that are glanced at; text is not.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, modalities: Sequence[Modality]) -> None:
        super().__init__()
        self.modalities = tuple(m for m in Modality if m in modalities and m is not Modality.TEXT)
        self.register_buffer("mean", torch.zeros(NUM_MODALITIES * WIDTH))  # flat: checkpoints round matrices to 8 bits
        self.register_buffer("std", torch.ones(NUM_MODALITIES * WIDTH))

    def raw(self, batch: OmniBatch) -> Float[Tensor, "b m 8"]:
        """Not standardised, zero where a modality is absent. Raises ValueError for inputs that are tokens already."""
        out = torch.zeros(len(batch), NUM_MODALITIES, WIDTH, device=batch.present.device)
        for modality in self.modalities:
            inputs = batch.inputs.get(modality)
            if inputs is None:
                continue
            if inputs.is_encoded:
                raise ValueError(f"a glance needs raw {modality}: got precomputed tokens")
            here = inputs.entry_index >= 0
            features = glance_at(modality, inputs.values, inputs.mask)
            out[here, modality.column] = features[inputs.entry_index[here]]
        return out

    def fit(self, raw: Float[Tensor, "n m 8"], present: Bool[Tensor, "n m"]) -> None:
        """Takes mean and standard deviation from raw glances of training examples."""
        mean, std = (x.view(NUM_MODALITIES, WIDTH) for x in (self.mean, self.std))  # views
        for modality in self.modalities:
            seen = raw[present[:, modality.column], modality.column]
            if len(seen) > 1:
                mean[modality.column], std[modality.column] = seen.mean(0), seen.std(0).clamp(min=1e-4)

    def forward(self, raw: Float[Tensor, "b m 8"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b m 8"]:
        """Standardised, within 5 standard deviations, zero where a modality is absent."""
        mean, std = (x.view(NUM_MODALITIES, WIDTH) for x in (self.mean, self.std))
        return ((raw - mean) / std).clamp(-5, 5) * present[:, :, None]

    def flops(self, sizes: Mapping[Modality, Int[Tensor, " b"]]) -> Float[Tensor, " b"]:
        """Additions and multiplications per sample. sizes: values of each raw input (pixels x channels, samples)."""
        return torch.stack([OPERATIONS[m] * sizes[m].double() for m in self.modalities if m in sizes]).sum(0)
