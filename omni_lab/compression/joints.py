"""What lies between the parts of a model, as parts without weights, so that one graph can hold a whole route."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omni_lab.batch import NUM_MODALITIES, Tokens
from omni_lab.compression.parts import AssemblySpec, ModelPart
from omni_lab.encoders.latents import fake_quantize_tokens
from omni_lab.routing.router import NUM_KNOTS, Router, penalty_knots, penalty_to_knots
from omni_lab.routing.sequential import SequentialRouter


class _Latents(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        return (fake_quantize_tokens(values, self.bits),)


class _Pool(nn.Module):
    """pooling: "max" or "mean", over the real tokens."""

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        tokens = Tokens(values, mask)
        return (tokens.max_pool() if self.pooling == "max" else tokens.mean_pool(),)


class _Knots(nn.Module):
    def forward(self, penalty: Tensor) -> tuple[Tensor, ...]:
        return (penalty_to_knots(penalty),)


class _Decide(nn.Module):
    """From the logits of a router to the levels [B, M] and open paths [B, L, P] of its most likely routes."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self._router = (router,)  # not as a submodule: its weights are not used here
        _ = router.space.path_columns  # cached: not while the graph is traced

    def forward(self, logits: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        router = self._router[0]
        level_logits, path_logits = router.split_logits(logits)
        return router.space.project_decisions(level_logits.argmax(dim=2), path_logits > 0, present > 0.5)


def joining_parts(spec: AssemblySpec, router: Router | SequentialRouter | None, *, dim: int) -> list[ModelPart]:
    """Latents and pooling, and what a router does besides its layers. dim: width of the tokens."""
    tokens, mask = torch.randn(2, 3, dim), torch.ones(2, 3, dtype=torch.bool)

    def pool(name: str, pooling: str) -> ModelPart:
        return ModelPart(name, _Pool(pooling), None, (tokens, mask), ("values", "mask"), True)

    parts = [pool("answer.pool", spec.pool)]
    if spec.latent_bits is not None:
        parts.append(ModelPart("latents", _Latents(spec.latent_bits), None, (tokens,), ("values",), True))
    if router is None:
        return parts
    parts.append(pool("router.pool", "mean"))
    if isinstance(router, SequentialRouter):
        return parts
    logits, present = torch.randn(2, sum(router.num_logits)), torch.ones(2, NUM_MODALITIES)
    parts.append(ModelPart("router.decide", _Decide(router), None, (logits, present), ("logits", "present")))
    if router.penalty_conditioned:
        penalty = penalty_knots()[: min(2, NUM_KNOTS)]
        parts.append(ModelPart("router.knots", _Knots(), None, (penalty,), ("penalty",)))
    return parts
