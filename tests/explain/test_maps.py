from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import Modality, ModalityInput, OmniBatch
from omni_lab.explain.faithfulness import (
    baseline_map,
    cells_in_box,
    deletion_insertion_curves,
    randomize_weights,
    rank_correlation,
    score_faithfulness,
    spans_in_time,
)
from omni_lab.explain.maps import (
    METHODS,
    AttentionTrace,
    ExplanationError,
    LayerAttention,
    PerturbedModel,
    attention_map,
    explain,
    relevance_map,
    rollout_map,
    token_windows,
    trace_attention,
)
from omni_lab.layers.attention import record_attention
from omni_lab.model import OmniModel
from omni_lab.routing.route import CrossModalPath
from tests.routing.conftest import MakeBatch, make_batch, routed

__all__ = ["make_batch", "routed"]

TEXT, IMAGE, AUDIO, VIDEO = Modality
TI, TA = CrossModalPath(TEXT, IMAGE), CrossModalPath(TEXT, AUDIO)


def test_recorded_weights_are_those_of_the_forward(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(3, missing=0.3, lengths=True)
    with torch.no_grad():
        plain, asked = routed(batch), routed(batch, need_weights=True)
        with record_attention(routed.fusion) as weights:
            recorded = routed(batch)
        after = routed(batch)
    assert (plain.head_outputs["answer"] - recorded.head_outputs["answer"]).abs().max() < 1e-5
    assert (recorded.head_outputs["answer"] - asked.head_outputs["answer"]).abs().max() < 1e-5
    assert torch.equal(after.head_outputs["answer"], plain.head_outputs["answer"]) and not after.fusion.attention[0], (
        "as before"
    )
    for depth, paths in enumerate(asked.fusion.attention):
        for path, expected in paths.items():
            found = weights[f"layers.{depth}.cross.{path}.attention"]
            runs = expected.sum((1, 2, 3)) > 0  # samples without both ends are left out
            assert torch.allclose(found, expected[runs] if len(found) < len(expected) else expected, atol=1e-5)


def test_a_trace_is_of_the_models_own_answer(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(1)
    seen = trace_attention(routed, batch)
    with torch.no_grad():
        output = routed(batch, need_weights=True)
    assert (seen.logits - output.head_outputs["answer"][0]).abs().max() < 1e-5
    assert seen.answer == int(seen.logits.argmax()) and trace_attention(routed, batch, 3).answer == 3
    assert len(seen.layers) == 2 and seen.layers[0].cross_attention.keys() == output.fusion.attention[0].keys()
    weights = [w[TI][0].mean((0, 1)) for w in output.fusion.attention]
    assert torch.allclose(attention_map(seen, IMAGE), torch.stack(weights).mean(0), atol=1e-6)
    assert torch.allclose(attention_map(seen, IMAGE, layer=0), weights[0], atol=1e-6)
    assert seen.question is TEXT and seen.sizes == {TEXT: 6, IMAGE: 16, AUDIO: 6, VIDEO: 16}
    assert trace_attention(routed, batch.without(TEXT)).question is AUDIO


def test_gradients_are_those_of_the_weights_that_were_used(
    routed: OmniModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little more weight on one key changes the logit by the gradient."""
    batch = make_batch(1)
    seen = trace_attention(routed, batch)
    path = next(path for path in seen.layers[1].cross_attention if path.query is TEXT)
    weights, slope = seen.layers[1].cross_attention[path]
    place = tuple(int(i) for i in np.unravel_index(int(slope.abs().argmax()), slope.shape))
    assert abs(float(slope[place])) > 0
    assert all(
        s.abs().sum() > 0
        for one in seen.layers
        for _, s in (*one.cross_attention.values(), *one.self_attention.values())
    )
    attention = routed.get_submodule(f"fusion.layers.1.cross.{path}.attention")
    softmax, step = Tensor.softmax, 1e-2

    def nudged(x: Tensor, dim: int) -> Tensor:
        found = softmax(x, dim=dim)
        if inside and found.shape[1:] == weights.shape:
            found = found.clone()
            found[(0, *place)] += step
        return found

    inside: list[bool] = []
    hooks = [
        attention.register_forward_pre_hook(lambda *_: inside.append(True)),
        attention.register_forward_hook(lambda *_: inside.clear()),
    ]
    monkeypatch.setattr(Tensor, "softmax", nudged)
    moved = trace_attention(routed, batch, seen.answer).logits
    for hook in hooks:
        hook.remove()
    change = float(moved[seen.answer] - seen.logits[seen.answer])
    assert change == pytest.approx(step * float(slope[place]), rel=0.1)


def test_rollout_distributes_a_mass_of_one(routed: OmniModel, make_batch: MakeBatch) -> None:
    seen = trace_attention(routed, make_batch(1))
    assert sum(float(rollout_map(seen, m).sum()) for m in Modality) == pytest.approx(1, abs=1e-5)
    words, cells = torch.tensor([[[0.5, 0.5], [0.2, 0.8]]]), torch.tensor([[[1.0, 0.0], [0.25, 0.75]]])
    one = AttentionTrace(
        torch.zeros(2),
        0,
        TEXT,
        [LayerAttention({TI: (cells, cells)}, {TEXT: (words, words)})],
        {TEXT: 2, IMAGE: 2},
    )
    own, cross = 0.5 * (torch.eye(2) + words[0]), 0.5 * cells[0]
    assert torch.allclose(rollout_map(one, IMAGE), (own @ cross).mean(0))
    assert torch.allclose(rollout_map(one, TEXT), (own @ (0.5 * torch.eye(2))).mean(0))


def test_relevance_follows_the_rules_of_the_paper() -> None:
    """Two layers of text that attends to an image, by hand, matrix by matrix."""
    torch.manual_seed(0)
    n, k = 3, 4

    def both(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        return torch.rand(2, rows, columns), torch.randn(2, rows, columns)

    layers = [LayerAttention({TI: both(n, k)}, {TEXT: both(n, n)}) for _ in range(2)]
    tt, ti, ii = torch.eye(n), torch.zeros(n, k), torch.eye(k)
    for layer in layers:
        (a, g), (b, h) = layer.cross_attention[TI], layer.self_attention[TEXT]
        cross, own = (a * g).clamp(min=0).mean(0), (b * h).clamp(min=0).mean(0)
        added = tt - torch.eye(n)
        normed = added / added.sum(1, keepdim=True).clamp(min=1e-12) + torch.eye(n)  # eq. 8 and 9
        ti = ti + normed.T @ cross @ ii  # eq. 10; eq. 11 adds nothing, as no image attends to text
        tt, ti = tt + own @ tt, ti + own @ ti  # eq. 6 and 7
    seen = AttentionTrace(torch.zeros(2), 0, TEXT, layers, {TEXT: n, IMAGE: k})
    assert torch.allclose(relevance_map(seen, IMAGE), ti.mean(0))
    assert torch.allclose(relevance_map(seen, TEXT), tt.mean(0))


def test_relevance_passes_through_a_third_modality() -> None:
    """A question that attends to audio that attended to an image; and two that attend to each other."""
    torch.manual_seed(0)
    ta, ai, at = CrossModalPath(TEXT, AUDIO), CrossModalPath(AUDIO, IMAGE), CrossModalPath(AUDIO, TEXT)
    sizes = {TEXT: 2, AUDIO: 3, IMAGE: 4}

    def both(path: CrossModalPath) -> tuple[Tensor, Tensor]:
        weights = torch.rand(1, sizes[path.query], sizes[path.key])
        return weights, torch.ones_like(weights)

    first, second = {ai: both(ai)}, {ta: both(ta)}
    seen = AttentionTrace(torch.zeros(2), 0, TEXT, [LayerAttention(first, {}), LayerAttention(second, {})], sizes)
    handed = second[ta][0][0] @ first[ai][0][0]
    assert torch.allclose(relevance_map(seen, IMAGE), handed.mean(0))
    assert torch.allclose(rollout_map(seen, IMAGE) > 0, torch.ones(4, dtype=torch.bool))
    first, second = {at: both(at)}, {ta: both(ta)}
    seen = AttentionTrace(torch.zeros(2), 0, TEXT, [LayerAttention(first, {}), LayerAttention(second, {})], sizes)
    expected = torch.eye(2) + second[ta][0][0] @ first[at][0][0]  # eq. 11
    assert torch.allclose(relevance_map(seen, TEXT), expected.mean(0))


def test_maps_of_absent_modalities_are_refused(routed: OmniModel, make_batch: MakeBatch) -> None:
    seen = trace_attention(routed, make_batch(1).without(VIDEO))
    for draw in (attention_map, rollout_map, relevance_map):
        with pytest.raises(ExplanationError, match="there is no video in this question: it has"):
            draw(seen, VIDEO)
    with pytest.raises(ExplanationError, match=r"the question \(text\) does not attend to text"):
        attention_map(seen, TEXT)
    for wrong in (-1, 10_000):
        with pytest.raises(ExplanationError, match=f"answer must be from 0 to .* got {wrong}"):
            trace_attention(routed, make_batch(1), wrong)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_value_to_every_token(routed: OmniModel, make_batch: MakeBatch, method: str) -> None:
    batch = make_batch(1)
    torch.manual_seed(0)
    found = explain(routed, batch, IMAGE, method)
    assert found.shape == (16,) and found.isfinite().all() and found.std() > 0
    torch.manual_seed(0)
    assert torch.equal(found, explain(routed, batch, IMAGE, method)), "a seed repeats it"
    if method not in ("occlusion", "Grad-CAM", "random CAM"):
        assert (found >= 0).all()
    if "CAM" not in method:
        sound = explain(routed, batch, AUDIO, method)
        assert sound.shape == (6,) and sound.isfinite().all() and sound.std() > 0
    assert all(p.grad is None for p in routed.parameters()) or "CAM" in method


class Needle(OmniModel):
    """Answers by one cell of the image, or one span of audio, alone."""

    def __init__(self, place: int) -> None:
        nn.Module.__init__(self)
        self.place = place
        self.encoders: Any = {
            "image": SimpleNamespace(grid=(4, 4), stride=8),
            "audio": SimpleNamespace(samples_per_token=10),
        }

    def forward(self, batch: OmniBatch, heads: Any = None) -> Any:  # type: ignore[override]
        modality = next(iter(batch.inputs))
        given = batch.inputs[modality]
        windows = token_windows(self, modality, given.values)
        level = given.values[windows[self.place]].float().abs().flatten(1).mean(1)
        return SimpleNamespace(head_outputs={"answer": torch.stack([level / 20, torch.zeros(len(level))], 1)})


def one_input(modality: Modality, values: Tensor) -> OmniBatch:
    mask = torch.ones(1, values.shape[1] if values.ndim == 2 else 1, dtype=torch.bool)
    return OmniBatch({modality: ModalityInput(values, mask, torch.zeros(1).long())}, ["answer"], ["f"], ["one"])


@pytest.mark.parametrize("modality", [IMAGE, AUDIO])
def test_occlusion_finds_the_needle_and_scores_as_faithful(modality: Modality) -> None:
    model: Any = Needle(9)
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    picture[:, :, 16:24, 8:16] = 255  # the tenth cell
    sound = torch.zeros(1, 125)
    sound[:, 90:100] = 100.0
    batch = one_input(modality, picture if modality is IMAGE else sound)
    found = explain(model, batch, modality, "occlusion")
    assert len(found) == (16 if modality is IMAGE else 13), "the last span is shorter"
    assert int(found.argmax()) == 9 and float(found[:9].abs().max()) < 1e-6
    truth = torch.arange(len(found)) == 9
    scores = score_faithfulness(model, batch, modality, truth, methods=["occlusion"], rng=np.random.default_rng(1))
    assert scores["occlusion"].hit == 1 and scores["random"].hit == 0
    assert scores["occlusion"].deletion < scores["random"].deletion
    assert scores["occlusion"].insertion > scores["random"].insertion
    deletion, insertion = deletion_insertion_curves(PerturbedModel(model, batch, modality), found, 0, steps=4)
    assert deletion[0] == insertion[-1] > 0.98 and deletion[-1] == insertion[0] < 0.9
    assert len(deletion) == len(insertion) == 5


def test_bad_requests_are_named(routed: OmniModel, make_batch: MakeBatch) -> None:
    batch = make_batch(1)
    for method in ("attention", "occlusion", "Grad-CAM"):
        with pytest.raises(ExplanationError, match="'0' has no image: it has text, audio, video"):
            explain(routed, batch.without(IMAGE), IMAGE, method)
    with pytest.raises(ExplanationError, match=r"method must be one of .*: got 'magic'"):
        explain(routed, batch, IMAGE, "magic")
    with pytest.raises(ExplanationError, match="layer must be from 0 to 1: got 2"):
        attention_map(trace_attention(routed, batch), IMAGE, layer=2)
    with pytest.raises(ExplanationError, match="one question is explained at a time: got 2"):
        explain(routed, make_batch(2), IMAGE, "attention")
    with pytest.raises(ExplanationError, match="modality must be image or audio: got video"):
        explain(routed, batch, VIDEO, "occlusion")
    with pytest.raises(ExplanationError, match="class activation maps are of images: got audio"):
        explain(routed, batch, AUDIO, "Grad-CAM")


def test_truth_in_tokens() -> None:
    inside = cells_in_box([8, 0, 24, 8], (4, 4), 8).view(4, 4)
    assert inside.nonzero().tolist() == [[0, 1], [0, 2]]
    assert spans_in_time(0.1, 0.34, 4, 0.1).tolist() == [False, True, True, False]
    centre = baseline_map("centre", 16, (4, 4), np.random.default_rng(0)).view(4, 4)
    assert torch.equal(centre, centre.flip(0)) and centre[1, 1] == centre.max() and centre[0, 0] == centre.min()
    assert int(baseline_map("centre", 5, None, np.random.default_rng(0)).argmax()) == 2


def test_a_randomised_twin_has_the_same_weights_elsewhere(routed: OmniModel) -> None:
    before = {n: p.clone() for n, p in routed.named_parameters()}
    twin = dict(randomize_weights(routed, parts=lambda name: name.startswith("fusion.")).named_parameters())
    changed = {n for n, p in twin.items() if not torch.equal(p, before[n])}
    assert changed and all(n.startswith("fusion.") for n in changed)
    assert all(torch.equal(p.flatten().sort().values, before[n].flatten().sort().values) for n, p in twin.items())
    assert all(torch.equal(p, before[n]) for n, p in routed.named_parameters()), "the model itself is left alone"


def test_rank_correlation() -> None:
    up = torch.tensor([1.0, 5.0, 2.0, 9.0])
    assert rank_correlation(up, up.exp()) == pytest.approx(1)
    assert rank_correlation(up, -up) == pytest.approx(-1)
    assert rank_correlation(up, torch.ones(4)) == 0
