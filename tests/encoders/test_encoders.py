from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from omni_lab.config.models import TextConfig, VisionConfig
from omni_lab.encoders.text import TextEncoder
from omni_lab.encoders.vision import VisionEncoder

SMALL = {"patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
DEPTHS = {"vit_tiny_patch16_224": {"depth": 1}, "deit_tiny_distilled_patch16_224": {"depth": 1}}


def test_text_ignores_padding() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(dim=16, depth=2, num_heads=2), vocab_size=10, out_dim=24).eval()
    short = encoder(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
    long = encoder(torch.tensor([[1, 2, 7, 7]]), torch.tensor([[True, True, False, False]]))
    assert short.values.shape == (1, 2, 24)
    assert torch.allclose(short.values, long.values[:, :2], atol=1e-6)
    assert torch.allclose(short.mean_pool(), long.mean_pool(), atol=1e-6)


def test_text_that_is_too_long_is_named() -> None:
    encoder = TextEncoder(TextConfig(dim=8, depth=1, num_heads=1, max_length=3), vocab_size=10, out_dim=8)
    with pytest.raises(ValueError, match="at most 3 tokens long: got 4"):
        encoder(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize(("size", "grid"), [(16, (2, 2)), (32, (4, 4))])
def test_vision_returns_one_token_per_cell(size: int, grid: tuple[int, int]) -> None:
    encoder = VisionEncoder(VisionConfig(image_size=size, overrides=SMALL), out_dim=24)
    pictures = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    tokens = encoder(pictures, torch.tensor([[True], [True], [False]]))
    assert encoder.grid == grid
    assert tokens.values.shape == (3, grid[0] * grid[1], 24)
    assert tokens.mask.sum(dim=1).tolist() == [grid[0] * grid[1]] * 2 + [0]


def test_cells_are_in_reading_order() -> None:
    """A change in one corner of the picture moves that corner's cell most."""
    torch.manual_seed(0)
    encoder = VisionEncoder(VisionConfig(image_size=32, overrides=SMALL), out_dim=24).eval()
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    changed = picture.clone()
    changed[:, :, :8, 24:] = 255  # top right
    mask = torch.ones(1, 1, dtype=torch.bool)
    moved = (encoder(picture, mask).values - encoder(changed, mask).values).norm(dim=-1)[0]
    assert moved.argmax() == 3


def test_pictures_of_the_wrong_size_or_type_are_named() -> None:
    encoder = VisionEncoder(VisionConfig(image_size=16, overrides=SMALL), out_dim=8)
    with pytest.raises(ValueError, match=r"\[U, 3, 16, 16\]: got \[1, 3, 32, 16\]"):
        encoder(torch.zeros(1, 3, 32, 16, dtype=torch.uint8), torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "size", "cells"),
    [
        ("vit_tiny_patch16_224", 64, 16),  # a class token before the patches
        ("deit_tiny_distilled_patch16_224", 32, 4),  # two of them
        ("test_convnext", 64, 4),
        ("test_efficientnet", 64, 4),
        ("test_vit2", 64, 16),  # register tokens
    ],
)
def test_any_backbone_of_timm_gives_cells(name: str, size: int, cells: int) -> None:
    encoder = VisionEncoder(VisionConfig(name=name, image_size=size, overrides=DEPTHS.get(name, {})), out_dim=8).eval()
    pictures = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    pictures[1, :, : size // 2, size // 2 :] = 255
    tokens = encoder(pictures, torch.ones(2, 1, dtype=torch.bool))
    assert tokens.values.shape == (2, cells, 8) and tokens.mask.all()
    side = encoder.grid[0]
    assert encoder.grid == (side, side) and side**2 == cells and encoder.stride == size // side
    moved = (tokens.values[1] - tokens.values[0]).norm(dim=-1).unflatten(0, encoder.grid)
    assert moved[0, -1] > 1e-4, "what is at the top right is in the cell at the top right"


def test_weights_are_loaded_from_a_file(tmp_path: Path) -> None:
    """As `pretrained` loads them from the internet."""
    overrides: dict[str, Any] = {"depth": 1}
    torch.manual_seed(0)
    saved = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **overrides)
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    given = overrides | {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth"), "num_classes": 0}}
    torch.manual_seed(1)
    config = VisionConfig("vit_tiny_patch16_224", image_size=32, pretrained=True, overrides=given)
    loaded = VisionEncoder(config, out_dim=8).swin.state_dict()
    assert all(torch.equal(loaded[name], weights) for name, weights in saved.state_dict().items())


def test_what_is_no_backbone_is_named() -> None:
    with pytest.raises(ValueError, match=r"must be a model of timm: got 'resnet8'; the nearest are \['resnet"):
        VisionEncoder(VisionConfig(name="resnet8"), out_dim=8)
    with pytest.raises(ValueError, match="only a Swin transformer has an early exit: got 'test_convnext'"):
        VisionEncoder(VisionConfig(name="test_convnext", early_exit=True), out_dim=8)
    with pytest.raises(ValueError, match="'vit_tiny_patch16_224' gives no map of features for 8 px images"):
        VisionEncoder(VisionConfig(name="vit_tiny_patch16_224", image_size=8), out_dim=8)
