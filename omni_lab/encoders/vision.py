"""The image encoder: a backbone from timm, by default a Swin transformer (Liu et al. 2021)."""

from __future__ import annotations

import difflib
import math
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

    The backbone is any model of timm that gives a map of features (Swin, ConvNeXt, ResNet) or a square of tokens (ViT,
    CLIP, DINO), or, with the override `features_only`, its last stage. `grid` is (h, w) of the last stage. Learned
    position vectors tell cross-modal attention where a cell lies. Raises ValueError for any other model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, *, out_dim: int) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.is_swin = timm.is_model(config.name) and timm.model_entrypoint(config.name).__module__.startswith(
            "timm.models.swin_transformer"
        )
        if not timm.is_model(config.name):
            near = difflib.get_close_matches(config.name, timm.list_models(), n=3)
            raise ValueError(f"vision encoder must be a model of timm: got {config.name!r}; the nearest are {near}")
        if not self.is_swin and config.early_exit:
            raise ValueError(f"only a Swin transformer has an early exit: got {config.name!r}")
        self.features_only = bool(config.overrides.get("features_only"))
        sizes: dict[str, Any] = {} if self.features_only else {"num_classes": 0}
        published: Any = timm.get_pretrained_cfg(config.name)
        if self.is_swin or (not self.features_only and published is not None and published.fixed_input_size):
            sizes["img_size"] = config.image_size
        backbone: Any = timm.create_model(config.name, pretrained=config.pretrained, **sizes, **config.overrides)
        self.swin = backbone
        if self.is_swin:
            last = backbone.feature_info[-1]
            self.stride, self.num_features = int(last["reduction"]), int(last["num_chs"])
        else:
            self.stride, self.num_features = self._measure(config)
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
        """Features of the last stage, for images of any size that the backbone accepts."""
        if self.is_swin:
            return self.swin.forward_features(self._normalize(images))
        return self._feature_map(self._normalize(images))

    def _feature_map(self, images: Float[Tensor, "u 3 h w"]) -> Float[Tensor, "u i j c"]:
        if self.features_only:
            return self.swin(images)[-1].permute(0, 2, 3, 1)
        features = self.swin.forward_features(images)
        if features.ndim == 3:
            cells = features[:, getattr(self.swin, "num_prefix_tokens", 0) :]
            side = math.isqrt(cells.shape[1])
            return cells.unflatten(1, (side, cells.shape[1] // side))
        return features if getattr(self.swin, "output_fmt", "NCHW") == "NHWC" else features.permute(0, 2, 3, 1)

    def _measure(self, config: VisionConfig) -> tuple[int, int]:
        """Stride and channels of the backbone's last stage, on a blank image."""
        size, was_training = config.image_size, self.swin.training
        try:
            with torch.no_grad():
                found = self.swin.eval() and self._feature_map(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, AttributeError, IndexError) as error:
            raise ValueError(f"{config.name!r} gives no map of features for {size} px images ({error})") from error
        self.swin.train(was_training)
        if found.ndim != 4 or found.shape[1] != found.shape[2] or size % found.shape[1]:
            raise ValueError(f"{config.name!r} gives {list(found.shape)} for {size} px images: expected square cells")
        return size // found.shape[1], found.shape[3]

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
