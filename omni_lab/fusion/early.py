"""Early fusion: what belongs together in time is joined before the upper layers of an encoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from omni_lab.encoders import AudioEncoder, VideoEncoder
from omni_lab.fusion.timing import align_by_time
from omni_lab.modalities import Modality, ModalityInput, Tokens


class EarlyFusion(nn.Module):
    """To every frame of a clip, what the sound's lower layers say at its time is added; then the clip goes on through
    time. The sound itself goes on alone. seen, heard: widths of the two."""

    def __init__(self, *, seen: int, heard: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(heard)
        self.join = nn.Linear(heard, seen)

    def forward(
        self, video: VideoEncoder, audio: AudioEncoder, clips: ModalityInput, sounds: ModalityInput
    ) -> dict[Modality, Tokens]:
        """A clip that several samples see with different sounds is encoded once up to here, and from here on once for
        each of the sounds. Raises ValueError for inputs that were encoded beforehand."""
        if clips.encoded or sounds.encoded:
            raise ValueError("what was encoded beforehand cannot be joined early: got tokens, not clips and sounds")
        low, frames = audio.lower(sounds.values, sounds.mask), video.lower(clips.values, clips.mask)
        has_clip = clips.rows >= 0
        pairs, of_sample = torch.stack([clips.rows, sounds.rows])[:, has_clip].unique(dim=1, return_inverse=True)
        mask = clips.mask[pairs[0]]
        said = replace(low, values=self.norm(low.values), rows=pairs[1])
        at = align_by_time(said, video.times(mask), mask, tolerance=video.seconds / mask.shape[1])
        joined = frames[pairs[0]] + (self.join(at.values) * at.mask[:, :, None])[:, :, None]
        rows = torch.full_like(clips.rows, -1)
        rows[has_clip] = of_sample
        return {
            Modality.AUDIO: replace(audio.upper(low), rows=sounds.rows),
            Modality.VIDEO: replace(video.upper(joined, mask), rows=rows),
        }
