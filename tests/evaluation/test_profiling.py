from __future__ import annotations

import torch

from omni_lab.evaluation.profiling import peak_tensor_bytes

MEGA = 4 * 256 * 1024


def test_what_is_freed_does_not_count() -> None:
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.zeros(256, 1024) + 1

    def at_once() -> list[torch.Tensor]:
        return [torch.zeros(256, 1024) for _ in range(5)]

    assert peak_tensor_bytes(one_after_the_other) == 2 * MEGA
    assert peak_tensor_bytes(at_once) == 5 * MEGA


def test_views_and_weights_do_not_count() -> None:
    layer = torch.nn.Linear(256, 1024).requires_grad_(False)
    given = torch.zeros(1024, 256)

    def through() -> torch.Tensor:
        return layer(given.view(512, 2, 256)[:, 0]).reshape(-1)  # of 512 x 1024

    assert peak_tensor_bytes(through) == 2 * MEGA
