"""Video: the picture encoder for every frame, then attention over time."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.config.schema import VideoConfig
from omni_lab.encoders.vision import VisionEncoder
from omni_lab.layers.attention import TransformerBlock
from omni_lab.layers.positional import (
    HIGH_AMPLITUDE,
    layer_norm_no_affine,
    sinusoidal_grid_embedding,
    sinusoidal_time_embedding,
)


class VideoEncoder(nn.Module):
    """Clips [U, F, 3, h, w] uint8 to `Tokens` [U, F * grid^2, out_dim] with the time of each frame.

    vision: encodes the frames; the same module, hence the same weights, as the picture encoder. Space first, then time
    (the divided attention of TimeSformer, Bertasius et al. 2021, section 3): each cell attends to itself in the other
    frames. Cells are then averaged to grid x grid per frame.
    """

    def __init__(self, config: VideoConfig, *, vision: VisionEncoder, out_dim: int) -> None:
        super().__init__()
        side = config.frame_size // vision.stride
        if config.frame_size % vision.stride or side % config.grid:
            raise ValueError(
                f"frame_size must be a multiple of {vision.stride} x {config.grid}: got {config.frame_size}"
            )
        self.vision = vision
        self.frame_size = config.frame_size
        self.seconds = config.seconds
        self.grid = config.grid
        self.narrow = nn.Linear(vision.swin.num_features, config.dim)
        self.cell = nn.Parameter(sinusoidal_grid_embedding(side, side, config.dim))
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(dim=config.dim, num_heads=config.num_heads, mlp_ratio=2.0, dropout=0.0)
                for _ in range(config.depth)
            )
        )
        self.norm = nn.LayerNorm(config.dim)
        self.project = nn.Linear(config.dim, out_dim)
        self.position = nn.Parameter(
            sinusoidal_grid_embedding(config.grid, config.grid, out_dim, amplitude=HIGH_AMPLITUDE)
        )
        self.early_exit = nn.Linear(vision.shallow_features, out_dim) if vision.early_exit is not None else None

    def forward(self, clips: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Tokens:
        """mask: [U, F], True for every real frame. The real frames of a clip share its `seconds` evenly."""
        return self.upper(self.lower(clips, mask), mask)

    def lower(self, clips: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Float[Tensor, "u f c d"]:
        """Each frame by itself: its cells, with their places and the frame's time."""
        self._check(clips)
        cells = self.vision.cells(clips.flatten(0, 1)).flatten(1, 2)  # [U*F, c, C]
        x = (self.narrow(cells) + self.cell).unflatten(0, mask.shape)
        return x + sinusoidal_time_embedding(self.times(mask), x.shape[3])[:, :, None]

    def upper(self, x: Float[Tensor, "u f c d"], mask: Bool[Tensor, "u f"]) -> Tokens:
        """The frames of each clip through time: `upper` of `lower` is `forward`."""
        along = x.transpose(1, 2).flatten(0, 1)  # [U*c, F, d]: each cell through time
        along = self.blocks(Tokens(along, mask.repeat_interleave(x.shape[2], dim=0))).values
        x = along.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)  # [U, F, c, d]
        return self._tokens(self.project(self.norm(self._tiles(x))), mask)

    def forward_early_exit(self, clips: UInt8[Tensor, "u f 3 h w"], mask: Bool[Tensor, "u f"]) -> Tokens:
        """The same tokens from the picture encoder's first stage alone, each frame by itself."""
        assert self.early_exit is not None
        self._check(clips)
        cells = self.vision.shallow_cells(clips.flatten(0, 1)).flatten(1, 2)
        return self._tokens(self.early_exit(self._tiles(cells.unflatten(0, mask.shape))), mask)

    def times(self, mask: Bool[Tensor, "u f"]) -> Float[Tensor, "u f"]:
        """The middle of each frame's span, in seconds."""
        span = self.seconds / mask.sum(1, keepdim=True).clamp(min=1).float()
        return (torch.arange(mask.shape[1], device=mask.device) + 0.5) * span

    def _check(self, clips: UInt8[Tensor, "u f 3 h w"]) -> None:
        if clips.shape[2:] != (3, self.frame_size, self.frame_size):
            raise ValueError(f"clips must be [U, F, 3, {self.frame_size}, {self.frame_size}]: got {list(clips.shape)}")

    def _tiles(self, x: Float[Tensor, "u f c d"]) -> Float[Tensor, "u f g d"]:
        """Cells averaged to grid x grid per frame."""
        block = round(x.shape[2] ** 0.5) // self.grid
        return x.unflatten(2, (self.grid, block, self.grid, block)).mean((3, 5)).flatten(2, 3)

    def _tokens(self, said: Float[Tensor, "u f g d"], mask: Bool[Tensor, "u f"]) -> Tokens:
        times = self.times(mask)
        values = layer_norm_no_affine(said) + self.position  # [U, F, g*g, D]
        values = values + sinusoidal_time_embedding(times, values.shape[3], amplitude=HIGH_AMPLITUDE)[:, :, None]
        each = self.grid**2
        return Tokens(values.flatten(1, 2), mask.repeat_interleave(each, 1), times.repeat_interleave(each, 1))
