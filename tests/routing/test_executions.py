"""masked, gathered and packed agree for any route, presence and lengths; and what a route skips costs nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor, nn

from omni_lab.batch import Modality, OmniBatch
from omni_lab.evaluation.flops import build_cost_model, count_flops
from omni_lab.fusion import cross_modal, packed
from omni_lab.model import OmniModel
from omni_lab.routing.route import ComputeLevel, Route, RouteError
from omni_lab.routing.router import Router
from tests.routing.conftest import MakeBatch

TEXT, IMAGE, AUDIO, VIDEO = Modality
IS_SUPPORTED = packed.is_packed_supported


def padded_kernel(
    q: Float[Tensor, "t h e"],
    k: Float[Tensor, "s h e"],
    v: Float[Tensor, "s h e"],
    q_lengths: Int[Tensor, " n"],
    k_lengths: Int[Tensor, " n"],
) -> Float[Tensor, "t h e"]:
    """Attention within each of n sequences, by padding: what `varlen_kernel` computes, on any device."""
    queries, keys, values = (
        torch.nn.utils.rnn.pad_sequence(x.split(lengths.tolist()), batch_first=True).transpose(1, 2)
        for x, lengths in ((q, q_lengths), (k, k_lengths), (v, k_lengths))
    )
    real = torch.arange(keys.shape[2], device=q.device) < k_lengths[:, None]
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=real[:, None, None]).transpose(1, 2)
    return mixed[torch.arange(mixed.shape[1], device=q.device) < q_lengths[:, None]]


@pytest.fixture(autouse=True)
def kernel_anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packed execution with the kernel that needs no GPU."""
    with monkeypatch.context() as patch:
        patch.setattr(cross_modal, "is_packed_supported", lambda *args: True)
        patch.setattr(packed, "varlen_kernel", padded_kernel)
        yield


def run(model: OmniModel, batch: OmniBatch, route: Route | None, execution: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Answers, and the gradients of all parameters (zero where none arrives)."""
    model.zero_grad()
    answers = model(batch, route=route, execution=execution).head_outputs["answer"]
    answers.square().mean().backward()
    return answers.detach(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 7),
    share=st.booleans(),
    missing=st.sampled_from([0.0, 0.3, 0.7]),
    lengths=st.booleans(),
)
def test_executions_agree(
    routed: OmniModel, make_batch: MakeBatch, seed: int, size: int, share: bool, missing: float, lengths: bool
) -> None:
    batch = make_batch(size, seed=seed, share=share, missing=missing, lengths=lengths)
    route = routed.space.sample(batch.present, generator=torch.Generator().manual_seed(seed))
    routed = copy.copy(routed)
    routed.latent_bits = None  # rounding is a step: a difference in the last bit can become a whole code
    answers, gradients = run(routed, batch, route, "masked")
    for execution in ("gathered", "packed"):
        same_answers, same_gradients = run(routed, batch, route, execution)
        assert (same_answers - answers).abs().max() < 1e-5, execution
        for name, gradient in gradients.items():
            assert (same_gradients[name] - gradient).abs().max() < 1e-5, (execution, name)


@pytest.mark.parametrize("execution", ["masked", "gathered", "packed"])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_dense_route_is_the_dense_model(
    routed: OmniModel, make_batch: MakeBatch, execution: str, missing: float
) -> None:
    batch = make_batch(6, missing=missing, share=True)
    plain, gradients = run(routed, batch, None, "gathered")
    everything, same = run(routed, batch, routed.space.dense(batch.present), execution)
    assert (everything - plain).abs().max() < 1e-5
    assert all((same[name] - gradient).abs().max() < 1e-5 for name, gradient in gradients.items())


def test_each_sample_gets_its_own_route(routed: OmniModel, make_batch: MakeBatch) -> None:
    """A batch in which all routes differ gives what each sample gives alone."""
    batch = make_batch(12, missing=0.2)
    rng = torch.Generator().manual_seed(3)
    route = routed.space.sample(batch.present, generator=rng)
    assert route.num_distinct >= 10
    together = routed(batch, route=route).head_outputs["answer"]
    for i in range(len(batch)):
        lone = batch
        for modality in batch.inputs:
            lone = lone.with_entry_index(modality, lone.inputs[modality].entry_index[i : i + 1])
        lone = OmniBatch(lone.inputs, ["answer"], ["family"], [str(i)])
        alone = routed(lone, route=route.select(torch.tensor([i]))).head_outputs["answer"]
        assert torch.allclose(alone[0], together[i], atol=1e-5)


def counted(module: nn.Module, name: str = "forward") -> list[int]:
    """The number of entries of every call from now on."""
    calls: list[int] = []
    plain = getattr(module, name)

    def count(first, *rest, **options):  # type: ignore[no-untyped-def]
        calls.append(len(first if isinstance(first, Tensor) else first.values))
        return plain(first, *rest, **options)

    setattr(module, name, count)
    return calls


@pytest.mark.parametrize("execution", ["gathered", "packed"])
def test_what_a_route_skips_is_not_called(make_batch: MakeBatch, routed: OmniModel, execution: str) -> None:
    import copy

    model = copy.deepcopy(routed)
    batch = make_batch(4)
    levels = torch.full((4, 4), int(ComputeLevel.FULL))
    levels[0, IMAGE.column] = ComputeLevel.SKIP
    levels[1, IMAGE.column] = ComputeLevel.EARLY_EXIT
    levels[:, VIDEO.column] = ComputeLevel.SKIP
    path_mask = torch.zeros(4, 2, len(model.space.paths), dtype=torch.bool)
    from_image = [str(path) for path in model.space.paths].index("text_from_image")
    path_mask[2:, 0, from_image] = True
    full, early = counted(model.encoders["image"]), counted(model.encoders["image"], "forward_early_exit")
    video = counted(model.encoders["video"])
    layers = model.fusion.layers
    first, second = (counted(layer.cross["text_from_image"].attention.query) for layer in layers)  # type: ignore[union-attr]
    keys = counted(layers[0].cross["text_from_image"].attention.key)  # type: ignore[index,union-attr]
    model(batch, route=model.space.project(levels, path_mask, batch.present), execution=execution)
    assert (full, early, video) == ([2], [1], [])
    tokens = {"gathered": [2], "packed": [2 * 6]}[execution]
    assert first == tokens and second == []
    assert keys == {"gathered": [2], "packed": [2 * 16]}[execution]


@pytest.mark.parametrize("seed", range(6))
def test_a_question_is_encoded_once(routed: OmniModel, make_batch: MakeBatch, seed: int) -> None:
    """What the router read is not encoded again; only then does the cost model tell what was executed."""
    batch = make_batch(5, seed=seed, missing=0.4, share=seed % 2 == 0)
    router = Router(routed.space, dim=16, hidden_dim=8)
    torch.manual_seed(seed)
    nn.init.normal_(router.logit_head.weight, std=2.0)
    route, question = routed.select_route(router, batch)
    assert question.keys() == {m for m in Modality if routed.space.question_mask(batch.present)[:, m.column].any()}
    plain = routed(batch, route=route).head_outputs["answer"]
    assert torch.allclose(routed(batch, route=route, precomputed=question).head_outputs["answer"], plain, atol=1e-5)
    costs = build_cost_model(routed, frames=4, router_flops=router.flops)
    alone = make_batch(1, seed=seed, missing=0.4)

    def whole() -> None:
        route, question = routed.select_route(router, alone)
        routed(alone, route=route, precomputed=question)

    expected = costs(routed.space, routed.select_route(router, alone)[0], costs.count_tokens(alone)).total.item()
    assert count_flops(whole) == pytest.approx(expected, rel=0.01)


def test_a_broken_sample_does_not_disturb_the_rest(
    routed: OmniModel, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch = make_batch(4)
    batch.inputs[AUDIO].values[1] = torch.nan
    route = routed.space.dense(batch.present)
    answers = routed(batch, route=route).head_outputs["answer"]
    assert torch.isnan(answers[1]).any()
    assert torch.isfinite(answers[[0, 2, 3]]).all()
    assert [r.message for r in caplog.records] == ["non-finite output of the answer head for 1 ('1')"]


def test_a_route_to_an_absent_modality_is_named(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(3).without(VIDEO)
    route = routed.space.dense(make_batch(3).present)
    with pytest.raises(RouteError, match="the route of sample '0' encodes video, which it does not have"):
        routed(batch, route=route)
    route = routed.space.dense(batch.present)
    route.interaction_mask[2, 1, TEXT.column, VIDEO.column] = True
    with pytest.raises(RouteError, match="sample '2' opens text_from_video in layer 1"):
        routed(batch, route=route)
    short = routed.space.dense(batch.present).select(torch.tensor([0, 1]))
    with pytest.raises(RouteError, match="route for 2 samples, 2 layers: expected 3 and 2"):
        routed(batch, route=short)


def test_without_a_kernel_packed_warns_once_and_gathers(
    routed: OmniModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cross_modal, "is_packed_supported", IS_SUPPORTED)
    monkeypatch.setattr(cross_modal, "packed_layer", lambda *a: pytest.fail("packed without a kernel"))
    packed._warn_once.cache_clear()
    batch = make_batch(3)
    route = routed.space.sample(batch.present, generator=torch.Generator().manual_seed(0))
    gathered = routed(batch, route=route).head_outputs["answer"]
    for _ in range(2):
        assert torch.equal(routed(batch, route=route, execution="packed").head_outputs["answer"], gathered)
    assert [r.message for r in caplog.records] == ["packed execution needs a CUDA device: running gathered instead"]


def test_an_unknown_execution_is_an_error(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    with pytest.raises(ValueError, match="execution must be one of .*: got 'sparse'"):
        routed(batch, route=routed.space.dense(batch.present), execution="sparse")
