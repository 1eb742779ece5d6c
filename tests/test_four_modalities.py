"""The whole model, with four modalities at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from omni_lab.batch import Modality, ModalityInput, OmniBatch
from omni_lab.build import build_model
from omni_lab.compression.parts import AssemblySpec
from omni_lab.config.models import FusionConfig
from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.encoders.latents import Int8Latents
from omni_lab.evaluation.flops import build_cost_model, count_flops
from omni_lab.explain.maps import token_windows
from omni_lab.lightning_modules.contrastive import TokenReconstruction
from omni_lab.model import OmniModel, encode_inputs
from omni_lab.routing.route import ComputeLevel
from omni_lab.training.recipes import get_recipe
from tests.conftest import TINY_PROFILE, TINY_WORLD

TEXT, IMAGE, AUDIO, VIDEO = Modality
SUBSETS = [set(s) for n in range(1, 5) for s in itertools.combinations(Modality, n)]


class Case(NamedTuple):
    """lean: the same samples, with no more than their families need."""

    model: OmniModel
    samples: list[Sample]
    lean: list[Sample]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model, and all questions about three scenes, written and spoken."""
    recipe = get_recipe("emoji_world", TINY_PROFILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI_LAB_ROOT", str(tmp_path_factory.mktemp("root")))
        data = recipe.data_module()
        dataset, lean = (VQADataset(data.store, "train", required_modalities_only=needed) for needed in (False, True))
        model = recipe.build_model(data)
    model.latent_bits = None  # the tests below round where they mean to
    scenes = sorted({int(s) for s, text in zip(dataset.scenes, dataset.texts, strict=True) if text is None})[:3]
    about = [i for i in range(len(dataset)) if dataset.scenes[i] in scenes]
    return Case(model.eval(), [dataset[i] for i in about], [lean[i] for i in about])


@torch.no_grad()
def logits(model: OmniModel, batch: OmniBatch) -> Tensor:
    return model(batch).head_outputs["answer"]


def only(batch: OmniBatch, kept: set[Modality]) -> OmniBatch:
    return replace(batch, inputs={m: given for m, given in batch.inputs.items() if m in kept})


def copied_per_sample(shared: ModalityInput, rows: Tensor) -> ModalityInput:
    """A copy for every sample."""
    return ModalityInput(shared.values[rows], shared.mask[rows], torch.arange(len(rows)))


def densely_connected() -> OmniModel:
    """A path between every two modalities, in two layers."""
    torch.manual_seed(0)
    config = replace(TINY_WORLD.model, fusion=FusionConfig(depth=2, num_heads=2, mlp_ratio=1.0))
    return build_model(config, vocab_size=2048, answers=5).eval()


def test_what_belongs_to_a_scene_is_stored_once(case: Case) -> None:
    batch = collate(case.samples)
    assert len(case.samples) > 15
    assert len(batch.inputs[IMAGE].values) == len(batch.inputs[VIDEO].values) == 3
    spoken = sum(TEXT not in sample.inputs for sample in case.samples)
    assert spoken >= 3
    assert len(batch.inputs[AUDIO].values) == 3 + spoken, "a sound for each scene, and one for each spoken question"
    assert (batch.inputs[TEXT].entry_index == -1).sum() == spoken
    assert batch.inputs[IMAGE].entry_index is batch.inputs[VIDEO].entry_index, "shared index"
    assert batch.inputs[IMAGE].entry_index is not batch.inputs[AUDIO].entry_index
    assert logits(case.model, batch).shape[0] == len(case.samples)


@pytest.mark.parametrize("kept", SUBSETS, ids=lambda kept: "+".join(sorted(kept)))
def test_any_subset_is_answered(case: Case, kept: set[Modality]) -> None:
    batch = collate(case.samples)
    partly = logits(case.model, only(batch, kept))
    assert torch.isfinite(partly).all()
    gone = batch
    for lost in set(Modality) - kept:
        gone = gone.with_entry_index(lost, torch.full_like(batch.inputs[lost].entry_index, -1))
    assert (logits(case.model, gone) - partly).abs().max() < 1e-5, "absent from each sample is absent from the batch"
    if len(kept) < 4:
        assert (logits(case.model, batch) - partly).abs().max() > 1e-4, "what is lost is missed"


@pytest.mark.parametrize("all_paths", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lean", [False, True])
def test_sharing_changes_nothing(case: Case, all_paths: bool, reverse: bool, lean: bool) -> None:
    model = densely_connected() if all_paths else case.model
    samples = (case.lean if lean else case.samples)[:: -1 if reverse else 1]
    once, apart = collate(samples), collate(samples, dedup=())
    assert len(apart.inputs[IMAGE].values) > len(once.inputs[IMAGE].values)
    assert (logits(model, once) - logits(model, apart)).abs().max() < 1e-5
    for kept in ({AUDIO, IMAGE, VIDEO}, {TEXT, VIDEO}):
        assert (logits(model, only(once, kept)) - logits(model, only(apart, kept))).abs().max() < 1e-5
    weights = model(once, need_weights=True)
    assert (weights.head_outputs["answer"] - logits(model, once)).abs().max() < 1e-5


@pytest.mark.parametrize("all_paths", [False, True])
def test_media_with_different_entry_indices_are_not_mixed_up(case: Case, all_paths: bool) -> None:
    """Every sample gets the image of the next scene: as many images as videos, but not of the same scene."""
    model = densely_connected() if all_paths else case.model
    batch = collate(case.samples)
    pictures = batch.inputs[IMAGE]
    rows = (pictures.entry_index + 1) % 3
    mixed = batch.with_entry_index(IMAGE, rows)
    apart = replace(mixed, inputs=mixed.inputs | {IMAGE: copied_per_sample(pictures, rows)})
    for kept in (set(Modality), {IMAGE, VIDEO}):
        found = logits(model, only(mixed, kept))
        assert (found - logits(model, only(apart, kept))).abs().max() < 1e-5
        assert (found - logits(model, only(batch, kept))).abs().max() > 1e-4


@pytest.mark.parametrize("all_paths", [False, True])
def test_media_that_go_together_are_fused_once(case: Case, all_paths: bool) -> None:
    """Without spoken questions, image, audio and video share an entry index, in every layer."""
    model = densely_connected() if all_paths else case.model
    written = [sample for sample in case.samples if TEXT in sample.inputs]
    batch = collate(written).without(TEXT)
    assert batch.inputs[IMAGE].entry_index is batch.inputs[AUDIO].entry_index is batch.inputs[VIDEO].entry_index
    with torch.no_grad():
        fused = model(batch).fusion.tokens
    assert {m: len(tokens.values) for m, tokens in fused.items()} == {IMAGE: 3, AUDIO: 3, VIDEO: 3}
    apart = batch
    for m in (AUDIO, VIDEO):  # equal indices in separate tensors
        apart = apart.with_entry_index(m, batch.inputs[m].entry_index.clone())
    assert (logits(model, batch) - logits(model, apart)).abs().max() < 1e-5


def test_the_order_of_samples_does_not_matter(case: Case) -> None:
    forward, backward = logits(case.model, collate(case.samples)), logits(case.model, collate(case.samples[::-1]))
    assert (forward - backward.flip(0)).abs().max() < 1e-5


def test_a_sample_is_answered_alike_alone_and_in_company(case: Case) -> None:
    together = logits(case.model, collate(case.samples))
    for i, sample in enumerate(case.samples):
        assert (logits(case.model, collate([sample]))[0] - together[i]).abs().max() < 1e-4, sample.id


def test_a_sample_without_anything_does_not_disturb_the_rest(case: Case) -> None:
    bare = replace(case.samples[0], id="bare", inputs={}, dedup_keys={})
    found = logits(case.model, collate([case.samples[0], bare, case.samples[1]]))
    assert torch.isfinite(found).all()
    expected = logits(case.model, collate([case.samples[0], case.samples[1]]))
    assert (found[[0, 2]] - expected).abs().max() < 1e-5


def encode_int8(model: OmniModel, batch: OmniBatch) -> dict[Modality, Int8Latents]:
    return {m: Int8Latents.from_tokens(tokens) for m, tokens in encode_inputs(model.encoders, batch).items()}


def test_int8_latents_answer_almost_alike(case: Case) -> None:
    batch = collate(case.samples)
    with torch.no_grad():
        stored = encode_int8(case.model, batch)
        again = case.model.fuse({m: latents.tokens() for m, latents in stored.items()}, heads=["answer"])
    exact = logits(case.model, batch)
    off = (again.head_outputs["answer"] - exact).abs().max()
    assert 0 < off < 0.02 * exact.std() + 0.02
    assert {m: len(latents.num_bytes) for m, latents in stored.items()}[IMAGE] == 3
    tokens = case.model.encode(batch)
    assert all((latents.num_bytes == tokens[m].mask.sum(1) * (16 + 2)).all() for m, latents in stored.items())


def test_a_model_trained_on_latents_sees_what_is_stored(case: Case) -> None:
    batch = collate(case.samples)
    torch.manual_seed(0)
    model = build_model(replace(TINY_WORLD.model, latent_bits=8), vocab_size=2048, answers=5).eval()
    with torch.no_grad():
        stored = model.fuse({m: s.tokens() for m, s in encode_int8(model, batch).items()}, heads=["answer"])
    assert (stored.head_outputs["answer"] - logits(model, batch)).abs().max() < 1e-5
    coarse = replace(TINY_WORLD.model, latent_bits=2)
    torch.manual_seed(0)
    other = build_model(coarse, vocab_size=2048, answers=5).eval()
    assert (logits(other, batch) - logits(model, batch)).abs().max() > 1e-3


def test_gradients_reach_every_encoder(case: Case) -> None:
    model = densely_connected().train()
    model.latent_bits = 4
    model(collate(case.samples)).head_outputs["answer"].square().sum().backward()
    for name, encoder in model.encoders.items():
        lost = [p for p, v in encoder.named_parameters() if v.grad is None or not v.grad.any()]
        assert not [p for p in lost if "norm" not in p and "bias" not in p and "position" not in p], (name, lost)


def test_a_moved_batch_still_shares_its_rows(case: Case) -> None:
    batch = collate(case.samples)
    moved = batch.to("meta")
    assert moved.inputs[IMAGE].entry_index is moved.inputs[VIDEO].entry_index
    assert moved.inputs[IMAGE].entry_index is not batch.inputs[IMAGE].entry_index
    assert moved.inputs[TEXT].entry_index is not moved.inputs[IMAGE].entry_index
    assert isinstance(moved.inputs[AUDIO], ModalityInput) and moved.inputs[AUDIO].values.device.type == "meta"


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_everybody_counts_audio_tokens_as_the_encoder_does(rate: int) -> None:
    config = replace(TINY_WORLD.model, audio=replace(TINY_WORLD.model.audio, sample_rate=rate))
    model = build_model(config, vocab_size=9, answers=2).eval()
    encoder: Any = model.encoders["audio"]
    waves = [torch.linspace(-1, 1, n) for n in (rate // 2, rate, 5 * encoder.samples_per_token + 1)]
    batch = collate([Sample(str(i), "t", "f", {AUDIO: wave}) for i, wave in enumerate(waves)])
    tokens = model.encode(batch)[AUDIO]
    costs = build_cost_model(model)
    assert costs.count_tokens(batch)[:, AUDIO.column].tolist() == tokens.mask.sum(1).tolist() == [5, 9, 6]
    inputs = batch.inputs[AUDIO]
    whole = torch.zeros(1, 9 * encoder.samples_per_token)
    flops = count_flops(lambda: encoder(whole, torch.ones_like(whole, dtype=torch.bool)))
    estimated = costs.encoder_flops(AUDIO, ComputeLevel.FULL, torch.tensor([9])).item()
    assert estimated == pytest.approx(flops, rel=1e-3)
    assert len(token_windows(model, AUDIO, inputs.values[1:2])) == 9
    assert AssemblySpec.from_model(model).samples_per_token == encoder.samples_per_token
    assert TokenReconstruction(model.encoders, dim=config.dim)(batch, {AUDIO: tokens}).isfinite()


def test_what_a_token_says_cannot_outgrow_where_and_when(world_recipe: Recipe) -> None:
    data = world_recipe.data_module()
    dataset = data.dataset("train")
    batch = collate([dataset[i] for i in range(4)])
    model = world_recipe.build_model(data).eval()
    model.latent_bits = None  # what rounding adds is not the question
    with torch.no_grad():
        before = model.encode(batch)
        for encoder in model.encoders.values():
            encoder.project.weight.mul_(10)
            encoder.project.bias.mul_(10)
        after = model.encode(batch)
    assert set(after) == set(Modality)
    for m, tokens in after.items():
        assert (tokens.values - before[m].values).abs()[tokens.mask].max() < 0.02
