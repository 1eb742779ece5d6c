from __future__ import annotations

import pytest
import torch

from omni_lab.config.models import TextConfig, VisionConfig
from omni_lab.encoders.text import TextEncoder
from omni_lab.encoders.vision import VisionEncoder

SMALL = {"patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}


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


def test_other_networks_must_return_features() -> None:
    with pytest.raises(ValueError, match="must be a Swin transformer of timm, or .* features_only .*: got 'resnet18'"):
        VisionEncoder(VisionConfig(name="resnet18", image_size=224), out_dim=8)
