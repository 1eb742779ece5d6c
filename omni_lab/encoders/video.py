"""The video encoder: the image encoder for every frame, then attention over time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.config.models import VideoConfig
from omni_lab.encoders.tiny import TinyVideo
from omni_lab.encoders.vision import VisionEncoder
from omni_lab.layers.attention import transformer_blocks
from omni_lab.layers.positional import (
    HIGH_AMPLITUDE,
    layer_norm_no_affine,
    sinusoidal_grid_embedding,
    sinusoidal_time_embedding,
)


class VideoEncoder(nn.Module):
    """Video [U, F, 3, h, w] uint8 to `Tokens` [U, F * grid^2, out_dim] with the time of each frame.

    Space first, then time (the divided attention of TimeSformer, Bertasius et al. 2021, section 3): each cell attends
    to itself in the other frames. Cells are then averaged to grid x grid per frame.

    vision: encodes the frames; the image encoder itself, hence the same weights.
    """

    def __init__(self, config: VideoConfig, *, vision: VisionEncoder, out_dim: int) -> None:
        super().__init__()
        size, grid, side = config.frame_size, config.grid, config.frame_size // vision.stride
        if size % vision.stride or side % grid:
            raise ValueError(f"frame_size must be a multiple of {vision.stride} x {grid}: got {size}")
        self.vision = vision
        self.frame_size, self.grid, self.seconds = size, grid, config.seconds
        self.narrow = nn.Linear(vision.num_features, config.dim)
        self.cell = nn.Parameter(sinusoidal_grid_embedding(side, side, config.dim))
        self.blocks = transformer_blocks(config.depth, dim=config.dim, num_heads=config.num_heads)
        self.norm = nn.LayerNorm(config.dim)
        self.project = nn.Linear(config.dim, out_dim)
        self.position = nn.Parameter(sinusoidal_grid_embedding(grid, grid, out_dim, amplitude=HIGH_AMPLITUDE))
        self.early_exit = nn.Linear(vision.shallow_channels, out_dim) if vision.early_exit is not None else None
        channels = config.tiny_channels
        self.tiny = TinyVideo(channels, grid=grid, out_dim=out_dim) if channels else None

    def forward(self, video: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Tokens:
        """mask: True for every real frame; the real frames of a video divide its `seconds` evenly."""
        return self.upper(self.lower(video, mask), mask)

    def lower(self, video: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Float[Tensor, "u f c d"]:
        """The cells of each frame by itself, with the features of their place and of the frame's time."""
        cells = self.vision.cells(self._frames(video)).flatten(1, 2)  # [U*F, c, C]
        x = (self.narrow(cells) + self.cell).unflatten(0, mask.shape)
        return x + sinusoidal_time_embedding(self.times(mask), x.shape[3])[:, :, None]

    def upper(self, x: Float[Tensor, "u f c d"], mask: Bool[Tensor, "u f"]) -> Tokens:
        """Attention over time and the output; `upper` of `lower` is `forward`."""
        tracks = Tokens(x.transpose(1, 2).flatten(0, 1), mask.repeat_interleave(x.shape[2], dim=0))  # [U*c, F, d]
        x = self.blocks(tracks).values.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)  # [U, F, c, d]
        return self._to_tokens(x, mask, lambda pooled: self.project(self.norm(pooled)))

    def forward_early_exit(self, video: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Tokens:
        """The same tokens from the first stage of the image encoder alone, each frame by itself."""
        assert self.early_exit is not None
        cells = self.vision.shallow_cells(self._frames(video)).flatten(1, 2).unflatten(0, mask.shape)
        return self._to_tokens(cells, mask, self.early_exit)

    def forward_tiny(self, video: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Tokens:
        """The same tokens from the tiny encoder alone."""
        assert self.tiny is not None
        return self._to_tokens(self.tiny(video, mask), mask, lambda x: x)

    def times(self, mask: Bool[Tensor, "u f"]) -> Float[Tensor, "u f"]:
        """The middle of each frame's span, in seconds."""
        span = self.seconds / mask.sum(1, keepdim=True).clamp(min=1).float()
        return (torch.arange(mask.shape[1], device=mask.device) + 0.5) * span

    def _frames(self, video: UInt8[Tensor, "u f 3 h w"]) -> UInt8[Tensor, "uf 3 h w"]:
        if video.shape[2:] != (3, self.frame_size, self.frame_size):
            raise ValueError(f"video must be [U, F, 3, {self.frame_size}, {self.frame_size}]: got {list(video.shape)}")
        return video.flatten(0, 1)

    def _to_tokens(
        self, x: Float[Tensor, "u f c d"], mask: Bool[Tensor, "u f"], project: Callable[[Tensor], Tensor]
    ) -> Tokens:
        """Averages the cells to grid x grid per frame, projects the means, and adds their places and times."""
        block, times, cells = round(x.shape[2] ** 0.5) // self.grid, self.times(mask), self.grid**2
        pooled = x.unflatten(2, (self.grid, block, self.grid, block)).mean((3, 5)).flatten(2, 3)
        values = layer_norm_no_affine(project(pooled)) + self.position  # [U, F, g*g, D]
        values = values + sinusoidal_time_embedding(times, values.shape[3], amplitude=HIGH_AMPLITUDE)[:, :, None]
        return Tokens(values.flatten(1, 2), mask.repeat_interleave(cells, 1), times.repeat_interleave(cells, 1))
