"""The image encoder: a Swin transformer from timm (Liu et al. 2021)."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.config.models import VisionConfig
from omni_lab.encoders.tiny import TinyVision
from omni_lab.layers.positional import HIGH_AMPLITUDE, layer_norm_no_affine, sinusoidal_grid_embedding


class VisionEncoder(nn.Module):
    """Images [U, 3, H, W] uint8 to `Tokens` [U, h*w, out_dim], one per cell of the last stage, row by row.

    `grid` is (h, w) of the last stage. Learned position vectors tell cross-modal attention where a cell lies.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, *, out_dim: int) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.is_swin = timm.is_model(config.name) and timm.model_entrypoint(config.name).__module__.startswith(
            "timm.models.swin_transformer"
        )
        if not self.is_swin and not config.overrides.get("features_only"):
            raise ValueError(
                "vision encoder must be a Swin transformer of timm, or a convolutional network of timm with the "
                f"overrides features_only and out_indices: got {config.name!r}"
            )
        if not self.is_swin and config.early_exit:
            raise ValueError(f"only a Swin transformer has an early exit: got {config.name!r}")
        sizes: dict[str, Any] = {"img_size": config.image_size, "num_classes": 0} if self.is_swin else {}
        backbone: Any = timm.create_model(config.name, pretrained=config.pretrained, **sizes, **config.overrides)
        self.swin = backbone
        last: Any = backbone.feature_info[-1] if self.is_swin else backbone.feature_info.get_dicts()[-1]
        self.stride: int = last["reduction"]
        self.num_features: int = last["num_chs"]
        self.grid = (config.image_size // self.stride, config.image_size // self.stride)
        statistics = timm.data.resolve_model_data_config(backbone)
        self.register_buffer("mean", torch.tensor(statistics["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(statistics["std"]).view(3, 1, 1), persistent=False)
        self.project = nn.Linear(self.num_features, out_dim)
        self.position = nn.Parameter(sinusoidal_grid_embedding(*self.grid, out_dim, amplitude=HIGH_AMPLITUDE))
        self.early_exit = nn.Linear(self.shallow_channels, out_dim) if config.early_exit else None
        channels = config.tiny_channels
        self.tiny = TinyVision(channels, grid=self.grid, out_dim=out_dim) if channels else None

    def cells(self, images: UInt8[Tensor, "u 3 h w"]) -> Float[Tensor, "u i j c"]:
        """Features of the last stage, for images of any size that the Swin accepts."""
        if not self.is_swin:
            return self.swin(self._normalize(images))[-1].permute(0, 2, 3, 1)
        return self.swin.forward_features(self._normalize(images))

    @property
    def shallow_channels(self) -> int:
        """Channels of `shallow_cells`."""
        first = self.swin.feature_info[0]
        return first["num_chs"] * (self.stride // first["reduction"]) ** 2

    def shallow_cells(self, images: UInt8[Tensor, "u 3 h w"]) -> Float[Tensor, "u i j c"]:
        """Features of the first stage, concatenated per cell of the last stage, then layer norm without weights."""
        x = self.swin.layers[0](self.swin.patch_embed(self._normalize(images)))  # [U, H, W, c]
        ratio = x.shape[1] * self.stride // images.shape[2]
        x = F.pixel_unshuffle(x.permute(0, 3, 1, 2), ratio).permute(0, 2, 3, 1)
        return layer_norm_no_affine(x)

    def forward_early_exit(self, images: UInt8[Tensor, "u 3 h w"], mask: Bool[Tensor, "u 1"]) -> Tokens:
        """The same tokens from the first stage alone (early exit, BranchyNet, Teerapittayanon et al. 2016)."""
        assert self.early_exit is not None
        return self._to_tokens(self.early_exit(self.shallow_cells(images).flatten(1, 2)), mask)

    def forward_tiny(self, images: UInt8[Tensor, "u 3 h w"], mask: Bool[Tensor, "u 1"]) -> Tokens:
        """The same tokens from the tiny encoder alone."""
        assert self.tiny is not None
        return self._to_tokens(self.tiny(images), mask)

    def forward(self, images: UInt8[Tensor, "u 3 h w"], mask: Bool[Tensor, "u 1"]) -> Tokens:
        """mask: True for every real image; an image has a time axis of length 1."""
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"images must be [U, 3, {self.image_size}, {self.image_size}]: got {list(images.shape)}")
        return self._to_tokens(self.project(self.cells(images).flatten(1, 2)), mask)

    def _normalize(self, images: UInt8[Tensor, "u 3 h w"]) -> Float[Tensor, "u 3 h w"]:
        return (images / 255.0 - self.mean) / self.std

    def _to_tokens(self, features: Float[Tensor, "u n d"], mask: Bool[Tensor, "u 1"]) -> Tokens:
        values = layer_norm_no_affine(features) + self.position
        return Tokens(values, mask.expand(-1, values.shape[1]))
