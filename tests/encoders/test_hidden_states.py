"""Encoders of other libraries behind the adapter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import Modality
from omni_lab.encoders.hidden_states import HiddenStateEncoder


class Patches(nn.Module):
    """Stands for a vision transformer: mean colours of patches of 8 pixels, after a class token."""

    def forward(self, pixel_values: Tensor) -> Any:
        cells = nn.functional.avg_pool2d(pixel_values, 8).flatten(2).transpose(1, 2)
        return SimpleNamespace(last_hidden_state=torch.cat([torch.full_like(cells[:, :1], 9.0), cells], dim=1))


class Frames(nn.Module):
    """Stands for an audio transformer: the mean of every 320 samples."""

    def forward(self, input_values: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=nn.functional.avg_pool1d(input_values[:, None], 320).transpose(1, 2))


class Words(nn.Module):
    """Stands for a text transformer."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        assert attention_mask.dtype == torch.long
        return SimpleNamespace(last_hidden_state=(input_ids * attention_mask)[:, :, None].float().expand(-1, -1, 3))


def test_images_are_resized_and_lose_the_class_token() -> None:
    encoder = HiddenStateEncoder(Patches(), Modality.IMAGE, width=3, out_dim=4, image_size=32)
    assert encoder.grid == (4, 4)
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[1, :, :32, :32] = 255
    tokens = encoder(images, torch.tensor([[True], [False]]))
    assert tokens.values.shape == (2, 16, 4) and tokens.mask.sum(1).tolist() == [16, 0]
    expected = nn.functional.layer_norm(encoder.project(torch.full((3,), -1.0)), (4,))
    assert torch.allclose(tokens.values[0], expected.expand(16, 4), atol=1e-5), "black is -1"
    bright, dark = tokens.values[1].unflatten(0, (4, 4))[0, 0], tokens.values[1].unflatten(0, (4, 4))[3, 3]
    assert not torch.allclose(bright, dark)


def test_sounds_are_normalised_where_they_are_real() -> None:
    encoder = HiddenStateEncoder(Frames(), Modality.AUDIO, width=1, out_dim=2)
    encoder.project = nn.Identity()  # type: ignore[assignment]
    waves = torch.randn(2, 1600) * 3 + 5
    mask = torch.ones(2, 1600, dtype=torch.bool)
    mask[1, 700:] = False
    tokens = encoder(waves, mask)
    assert tokens.mask.sum(1).tolist() == [5, 3]
    alone = encoder(waves[1:, :700], mask[1:, :700])
    assert torch.allclose(alone.values[0, :2], tokens.values[1, :2], atol=1e-5), "what is padded does not count"


def test_words_get_a_mask() -> None:
    encoder = HiddenStateEncoder(Words(), Modality.TEXT, width=3, out_dim=4)
    tokens = encoder(torch.tensor([[3, 4, 0]]), torch.tensor([[True, True, False]]))
    assert tokens.values.shape == (1, 3, 4) and tokens.mask.tolist() == [[True, True, False]]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="modality must be text, image or audio: got video"):
        HiddenStateEncoder(Patches(), Modality.VIDEO, width=3, out_dim=4)
    with pytest.raises(ValueError, match="an image of 32 px has 17 tokens: expected a square number"):
        HiddenStateEncoder(Patches(), Modality.IMAGE, width=3, out_dim=4, image_size=32, prefix_tokens=0)


def test_a_transformer_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=8
    )
    encoder = HiddenStateEncoder(transformers.ViTModel(config), Modality.IMAGE, width=8, out_dim=4, image_size=32)
    assert encoder.grid == (4, 4)
