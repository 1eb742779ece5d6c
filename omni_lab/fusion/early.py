"""Early fusion: audio is added to the video frames of the same time, below the upper layers of their encoders."""

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
    """Adds to every video frame the audio encoder's lower features at that time, then runs both upper encoders. Audio
    itself stays as it is. video_dim, audio_dim: widths of the lower features."""

    def __init__(self, *, video_dim: int, audio_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(audio_dim)
        self.join = nn.Linear(audio_dim, video_dim)

    def forward(
        self, video: VideoEncoder, audio: AudioEncoder, video_input: ModalityInput, audio_input: ModalityInput
    ) -> dict[Modality, Tokens]:
        """The tokens of both modalities. Raises ValueError for precomputed tokens instead of video and waveforms.

        A video that samples share with different audio runs through the lower layers once, and through the upper
        layers once for each distinct pair.
        """
        if video_input.is_encoded or audio_input.is_encoded:
            raise ValueError("early fusion needs video and waveforms: got precomputed tokens")
        low = audio.lower(audio_input.values, audio_input.mask)
        frames = video.lower(video_input.values, video_input.mask)
        has_video = video_input.entry_index >= 0
        pairs, pair_of_sample = torch.stack([video_input.entry_index, audio_input.entry_index])[:, has_video].unique(
            dim=1, return_inverse=True
        )
        mask = video_input.mask[pairs[0]]
        normed = replace(low, values=self.norm(low.values), entry_index=pairs[1])
        aligned = align_by_time(normed, video.times(mask), mask, tolerance=video.seconds / mask.shape[1])
        joined = frames[pairs[0]] + (self.join(aligned.values) * aligned.mask[:, :, None])[:, :, None]
        entry_index = torch.full_like(video_input.entry_index, -1)
        entry_index[has_video] = pair_of_sample
        return {
            Modality.AUDIO: replace(audio.upper(low), entry_index=audio_input.entry_index),
            Modality.VIDEO: replace(video.upper(joined, mask), entry_index=entry_index),
        }


def align_by_time(
    source: Tokens, times: Float[Tensor, "b q"], mask: Bool[Tensor, "b q"], *, tolerance: float
) -> Tokens:
    """The values of `source` at other times: one entry per sample, [B, Q, D]. Gradients reach values, not times.

    Between two real tokens within `tolerance` of the query the value is interpolated linearly. With only one in reach,
    it is that token's value. With none (a gap, the end of a stream, an absent modality) it is zero and masked. So a
    tolerance of the source's own spacing interpolates everywhere but in gaps and at the ends.

    times, tolerance: seconds. mask: False for padded queries.
    Raises ValueError for a negative tolerance, and for source times that are missing or do not increase strictly.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 seconds: got {tolerance}")
    source = source.expand_entries()
    if source.times is None:
        raise ValueError("source must have times: got None")
    row = torch.arange(len(source), device=mask.device).unsqueeze(1)  # [B, 1]
    order = source.mask.int().argsort(dim=1, descending=True, stable=True)  # [B, N], real tokens first
    real = source.mask.gather(1, order)
    clock = source.times.detach().gather(1, order).masked_fill(~real, torch.inf)
    unordered = ~(clock[:, 1:] > clock[:, :-1]) & real[:, 1:]
    if unordered.any():
        raise ValueError(
            "source.times must increase strictly among the real tokens of each sample: "
            f"those of sample {int(unordered.any(dim=1).nonzero()[0])} do not"
        )
    # one zero token at each end of time, so that every query has two neighbours
    clock = F.pad(F.pad(clock, (1, 0), value=-torch.inf), (0, 1), value=torch.inf)  # [B, N + 2]
    values = F.pad(source.values[row, order].masked_fill(~real.unsqueeze(-1), 0.0), (0, 0, 1, 1))  # [B, N + 2, D]

    seconds = times.detach().masked_fill(~mask, 0.0)
    after = torch.searchsorted(clock, seconds, right=True)  # [B, Q], the first token after each query
    since, until = seconds - clock[row, after - 1], clock[row, after] - seconds  # both >= 0
    between = torch.maximum(since, until) <= tolerance
    weight = torch.where(between, since / (since + until), (until < since).to(since.dtype))  # [B, Q], of the later one
    found = mask & (torch.minimum(since, until) <= tolerance)
    mixed = torch.lerp(values[row, after - 1], values[row, after], weight.unsqueeze(-1).to(values.dtype))  # [B, Q, D]
    return Tokens(mixed.masked_fill(~found.unsqueeze(-1), 0.0), found, times)
