"""Early fusion: what belongs together in time is joined before the upper layers of an encoder."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from omni_lab.batch import Modality, ModalityInput, Tokens
from omni_lab.encoders.audio import AudioEncoder
from omni_lab.encoders.video import VideoEncoder


class EarlyFusion(nn.Module):
    """To every frame of a clip, what the sound's lower layers say at its time is added; then the clip goes on through
    time. The sound itself goes on alone. seen, heard: widths of the two."""

    def __init__(self, *, video_dim: int, audio_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(audio_dim)
        self.join = nn.Linear(audio_dim, video_dim)

    def forward(
        self, video: VideoEncoder, audio: AudioEncoder, clips: ModalityInput, sounds: ModalityInput
    ) -> dict[Modality, Tokens]:
        """A clip that several samples see with different sounds is encoded once up to here, and from here on once for
        each of the sounds. Raises ValueError for inputs that were encoded beforehand."""
        if clips.is_encoded or sounds.is_encoded:
            raise ValueError("what was encoded beforehand cannot be joined early: got tokens, not clips and sounds")
        low, frames = audio.lower(sounds.values, sounds.mask), video.lower(clips.values, clips.mask)
        has_clip = clips.entry_index >= 0
        pairs, of_sample = torch.stack([clips.entry_index, sounds.entry_index])[:, has_clip].unique(
            dim=1, return_inverse=True
        )
        mask = clips.mask[pairs[0]]
        said = replace(low, values=self.norm(low.values), entry_index=pairs[1])
        at = align_by_time(said, video.times(mask), mask, tolerance=video.seconds / mask.shape[1])
        joined = frames[pairs[0]] + (self.join(at.values) * at.mask[:, :, None])[:, :, None]
        rows = torch.full_like(clips.entry_index, -1)
        rows[has_clip] = of_sample
        return {
            Modality.AUDIO: replace(audio.upper(low), entry_index=sounds.entry_index),
            Modality.VIDEO: replace(video.upper(joined, mask), entry_index=rows),
        }


def align_by_time(
    source: Tokens, times: Float[Tensor, "b q"], mask: Bool[Tensor, "b q"], *, tolerance: float
) -> Tokens:
    """What `source` says at `times` [B, Q], in seconds; mask: [B, Q], which of them are asked for.

    Between two real tokens that both lie within `tolerance` seconds the value is interpolated linearly; where only one
    does, it is that token's; where none does (a gap, a stream that ended, a sample without one) it is zero and the
    mask False. So a tolerance of the source's own spacing interpolates everywhere but in gaps and at the ends.

    Returns one entry per sample, [B, Q, D] with `times`. Gradients reach the source's values, not the times. Raises
    ValueError if the source has no times, if those of a sample's real tokens do not ascend strictly, or if `tolerance`
    is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 seconds: got {tolerance}")
    source = source.expand_entries()
    if source.times is None:
        raise ValueError("source must have times: got None")
    row = torch.arange(len(source), device=mask.device).unsqueeze(1)  # [B, 1]
    order = source.mask.int().argsort(dim=1, descending=True, stable=True)  # [B, N], the real ones first
    real = source.mask.gather(1, order)
    clock = source.times.detach().gather(1, order).masked_fill(~real, torch.inf)
    descends = ~(clock[:, 1:] > clock[:, :-1]) & real[:, 1:]
    if descends.any():
        raise ValueError(
            "source.times must ascend strictly among the real tokens of each sample: "
            f"those of sample {int(descends.any(dim=1).nonzero()[0])} do not"
        )
    # one silent token at each end of time, so that every query has two neighbours
    clock = F.pad(F.pad(clock, (1, 0), value=-torch.inf), (0, 1), value=torch.inf)  # [B, N + 2]
    values = F.pad(source.values[row, order].masked_fill(~real.unsqueeze(-1), 0.0), (0, 0, 1, 1))  # [B, N + 2, D]

    seconds = times.detach().masked_fill(~mask, 0.0)
    later = torch.searchsorted(clock, seconds, right=True)  # [B, Q], the first token after each query
    since, until = seconds - clock[row, later - 1], clock[row, later] - seconds  # both >= 0
    between = torch.maximum(since, until) <= tolerance
    share = torch.where(between, since / (since + until), (until < since).to(since.dtype))  # [B, Q], of the later one
    found = mask & (torch.minimum(since, until) <= tolerance)
    mixed = torch.lerp(values[row, later - 1], values[row, later], share.unsqueeze(-1).to(values.dtype))  # [B, Q, D]
    return Tokens(mixed.masked_fill(~found.unsqueeze(-1), 0.0), found, times)
