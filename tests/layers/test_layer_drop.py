from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import Tokens
from omni_lab.layers.attention import transformer_blocks
from omni_lab.layers.layer_drop import DroppableLayer, allocate_layers, make_droppable


@pytest.fixture
def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    made = transformer_blocks(3, dim=8, num_heads=2)
    make_droppable(made, drop=0.5)
    return made.eval()


def tokens(seed: int = 1) -> Tokens:
    mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    return Tokens(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(seed)), mask)


def test_each_entry_runs_its_own_layers(blocks: nn.Sequential) -> None:
    layers: list[DroppableLayer] = [*blocks]  # type: ignore[list-item]
    x, keep = tokens(), torch.tensor([[1.0, 1, 1], [0, 1, 0], [0, 0, 0]])
    with allocate_layers(layers, keep):
        found = blocks(x).values
    assert torch.allclose(found[:1], blocks(x).values[:1], atol=1e-6), "all layers"
    alone = layers[1].layer(Tokens(x.values[1:2], x.mask[1:2])).values
    assert torch.allclose(found[1:2], alone, atol=1e-6)
    assert torch.equal(found[2], x.values[2]), "none"
    assert all(layer.keep is None for layer in layers), "afterwards all run"
    gates = keep.clone().requires_grad_()
    with allocate_layers(layers, gates):
        gated = blocks(x).values
    assert torch.allclose(gated, found, atol=1e-6)
    gated.square().sum().backward()
    assert gates.grad is not None and (gates.grad != 0).all(), "what is skipped says what it would add"


def test_it_does_not_compute_what_is_skipped() -> None:
    calls: list[int] = []

    class Count(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return x + 1

    layer = DroppableLayer(Count(), drop=0.0)
    for keep in ([1.0, 0.0, 1.0], [0.0, 0.0, 0.0]):
        with allocate_layers([layer], torch.tensor(keep)[:, None]):
            assert layer(torch.zeros(3, 2)).sum(1).tolist() == [2 * k for k in keep]  # type: ignore[union-attr]
    assert calls == [2]


def test_in_training_a_batch_skips_layers_at_random(blocks: nn.Sequential) -> None:
    layer, x = blocks[0].train(), tokens()
    same = [torch.equal(layer(x).values, x.values) for _ in range(60)]
    assert 15 < sum(same) < 45
