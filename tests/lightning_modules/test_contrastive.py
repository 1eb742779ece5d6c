from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omni_lab.batch import Modality, Tokens
from omni_lab.config.schema import Profile
from omni_lab.lightning_modules.contrastive import (
    ContrastiveModel,
    LitContrastive,
    contrastive_loss,
    embed,
    late_interaction,
    positive_pairs,
)
from omni_lab.model import encode_inputs
from omni_lab.training.fit import initial_model, load_or_train
from omni_lab.training.recipes import ContrastiveRecipe, get_recipe
from omni_lab.worlds import datamodules as module_of_data
from omni_lab.worlds.contrastive_views import UNNAMED, UNWRITTEN
from tests.training.test_emoji_world_training import assert_a_stop_changes_nothing


@pytest.fixture
def alignment(tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContrastiveRecipe:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    recipe = get_recipe("emoji_alignment", tiny_profile)
    assert isinstance(recipe, ContrastiveRecipe)
    return recipe


def unit(*rows: list[float]) -> Tensor:
    return F.normalize(torch.tensor(rows), dim=-1)


def test_the_contrastive_loss_by_hand() -> None:
    first, second = unit([1.0, 0.0], [0.0, 1.0]), unit([1.0, 0.0], [1.0, 1.0])
    logits = [[2.0, 2 / math.sqrt(2)], [0.0, 2 / math.sqrt(2)]]

    def surprise(row: list[float], right: int) -> float:
        return math.log(sum(math.exp(x) for x in row)) - row[right]

    rows = (surprise(logits[0], 0) + surprise(logits[1], 1)) / 2
    columns = (surprise([logits[0][0], logits[1][0]], 0) + surprise([logits[0][1], logits[1][1]], 1)) / 2
    loss = contrastive_loss(2.0 * first @ second.T, torch.eye(2).bool())
    assert loss.item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_all_that_is_right_is_equally_right() -> None:
    """Against a loop over anchors and their positives, of which the two sides may have different ones."""
    rng = torch.Generator().manual_seed(0)
    first, second = (unit(*torch.randn(5, 3, generator=rng).tolist()) for _ in range(2))
    right = torch.eye(5).bool() | (torch.rand(5, 5, generator=rng) < 0.3)
    assert not torch.equal(right, right.T)

    def one_way(anchors: Tensor, others: Tensor, matches: Tensor) -> float:
        losses = []
        for anchor, match in zip(anchors, matches, strict=True):
            surprise = -torch.log_softmax(3.0 * others @ anchor, dim=0)
            losses.append(surprise[[i for i in range(5) if match[i]]].mean())
        return float(torch.stack(losses).mean())

    loss = contrastive_loss(3.0 * first @ second.T, right)
    assert loss.item() == pytest.approx((one_way(first, second, right) + one_way(second, first, right.T)) / 2, abs=1e-6)
    sure, alike = 100 * torch.eye(4), torch.eye(4).bool()
    assert contrastive_loss(sure, alike) < 1e-6 < contrastive_loss(sure.roll(1, 0), alike)


# Six views: a frog said by a woman and by a man, a key, "where is the frog?", "what blinks?", and a key whose text only
# says that a man speaks.
TARGETS = {
    "thing": torch.tensor([0, 0, 1, 0, 1, 1]),
    "written": torch.tensor([0, 0, 1, 900, 901, UNWRITTEN]),
    "said": torch.tensor([[0, -3], [0, -3], [1, -3], [0, 900], [UNNAMED, 901], [1, -3]]),
    "speaker": torch.tensor([[0, 0], [UNWRITTEN, 1], [UNWRITTEN, 1], [UNWRITTEN, 0], [1, 1], [1, 1]]),
}


def test_what_a_text_is_right_for() -> None:
    samples, right = positive_pairs(TARGETS, Modality.TEXT, Modality.AUDIO)
    assert samples.tolist() == list(range(6))
    assert [row.nonzero().squeeze(1).tolist() for row in right] == [
        [0, 3],  # "a woman says: frog": hers, and her question about it
        [0, 1, 3],  # "frog": whoever says it
        [2, 5],
        [3],  # the question is not asked by a name
        [4],
        [1, 2, 4, 5],  # "a man says:"
    ]


def test_what_names_nothing_is_not_compared_with_what_is_seen() -> None:
    samples, right = positive_pairs(TARGETS, Modality.TEXT, Modality.IMAGE)
    assert samples.tolist() == [0, 1, 2, 3]
    assert right.tolist() == [[t in (0, 1, 3), t in (0, 1, 3), t == 2, t in (0, 1, 3)] for t in (0, 1, 2, 3)]
    assert positive_pairs(TARGETS, Modality.IMAGE, Modality.AUDIO)[0].tolist() == [0, 1, 2, 3, 5]
    assert positive_pairs(TARGETS, Modality.IMAGE, Modality.VIDEO)[0].tolist() == list(range(6))


def test_late_interaction_against_a_loop_over_tokens() -> None:
    rng = torch.Generator().manual_seed(0)
    first = Tokens(torch.randn(3, 4, 8, generator=rng), torch.arange(4) < torch.tensor([[4], [1], [3]]))
    second = Tokens(torch.randn(2, 5, 8, generator=rng), torch.arange(5) < torch.tensor([[2], [5]]))
    second = replace(second, entry_index=torch.tensor([1, 0, 1]))  # samples may share their entries
    found = late_interaction(first, second)

    def real(tokens: Tokens, sample: int) -> list[Tensor]:
        values = F.normalize(F.layer_norm(tokens.expand_entries().values[sample], (8,)), dim=-1)
        return [value for value, kept in zip(values, tokens.sample_mask[sample], strict=True) if kept]

    for i, j in itertools.product(range(3), range(3)):
        a, b = real(first, i), real(second, j)
        there = sum(max(float(x @ y) for y in b) for x in a) / len(a)
        back = sum(max(float(x @ y) for x in a) for y in b) / len(b)
        assert found[i, j].item() == pytest.approx((there + back) / 2, abs=1e-6)


def test_every_gallery_holds_each_thing_once(alignment: ContrastiveRecipe) -> None:
    data = alignment.data_module()
    found, again = list(data.loader("test")), list(data.loader("test"))
    assert len(found) == module_of_data.NUM_EVAL_BATCHES and len(data.loader("train")) == 2
    for batch, same in zip(found, again, strict=True):
        assert sorted(batch.targets["thing"].tolist()) == list(range(8))
        assert set(batch.inputs) == set(Modality) and bool(batch.present.all())
        assert all(torch.equal(batch.inputs[m].values, same.inputs[m].values) for m in Modality)
    assert not torch.equal(found[0].inputs[Modality.IMAGE].values, found[1].inputs[Modality.IMAGE].values)


def test_pulling_one_pair_together_lowers_the_loss(alignment: ContrastiveRecipe) -> None:
    """Forty updates on one batch of views."""
    data = alignment.data_module()
    batch = next(iter(data.loader("validation")))
    model = alignment.build_model(data)
    module = LitContrastive(model, alignment.training)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = module._loss(batch, encode_inputs(model.encoders, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5 and losses[-1] < 0.5 * losses[0]


def test_the_temperature_is_bounded(alignment: ContrastiveRecipe) -> None:
    data = alignment.data_module()
    model = alignment.build_model(data)
    module = LitContrastive(model, alignment.training)
    streams = {
        m: Tokens(torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(m.column)), torch.ones(6, 2).bool())
        for m in Modality
    }
    with torch.no_grad():
        model.log_scales.fill_(math.log(100.0))
        at_most = module._contrastive_loss(streams, TARGETS)
        model.log_scales.fill_(20.0)
        assert torch.equal(module._contrastive_loss(streams, TARGETS), at_most)


@pytest.mark.parametrize("stop_after", [3, 4, 6])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_alignment_stopped_and_resumed_ends_with_the_same_bits(
    alignment: ContrastiveRecipe, tmp_path: Path, stop_after: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches an epoch, for two epochs, all views different."""
    monkeypatch.setattr(module_of_data, "NUM_EVAL_BATCHES", 1)
    model = replace(alignment.model, text=replace(alignment.model.text, dropout=dropout))
    alignment = replace(alignment, model=model, views=32)
    assert_a_stop_changes_nothing(alignment, tmp_path, stop_after=stop_after)


def test_an_alignment_trains_saves_and_loads(alignment: ContrastiveRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_or_train(alignment)
    assert first.origin.startswith("trained just now")
    assert len(first.metadata["history"]) == 2
    assert {"train loss", "validation loss", "recall@1"} < set(first.metadata["history"][-1])
    assert 0 <= first.metadata["history"][-1]["recall@1"] <= 1
    monkeypatch.setattr(LitContrastive, "training_step", lambda *a: pytest.fail("trained again"))
    again = load_or_train(alignment)
    assert again.origin.startswith("trained here earlier")
    assert isinstance(again.model, ContrastiveModel)
    batch = next(iter(again.data.loader("test")))
    (views, things), (others, _) = (embed(t.model, [batch, batch]) for t in (first, again))
    assert things.tolist() == batch.targets["thing"].tolist() * 2
    for m in Modality:
        assert len(views[m]) == 16 and torch.equal(views[m], others[m])
        assert torch.allclose(views[m].norm(dim=-1), torch.ones(16), atol=1e-5)


def test_other_views_make_another_checkpoint(alignment: ContrastiveRecipe) -> None:
    data = alignment.data_module()
    folders = {replace(alignment, **change).work_folder(data) for change in ({}, {"views": 24}, {"views_per_batch": 4})}
    assert len(folders) == 3


def test_a_training_begins_with_the_aligned_encoders(alignment: ContrastiveRecipe, tiny_profile: Profile) -> None:
    recipe = get_recipe("emoji_reading", tiny_profile)
    assert recipe.init_from == alignment
    aligned = load_or_train(alignment).model.encoders.state_dict()
    data = recipe.data_module()
    first, new = initial_model(recipe, data), recipe.build_model(data)
    assert all(torch.equal(value, aligned[name]) for name, value in first.encoders.state_dict().items())
    assert any(not torch.equal(value, aligned[name]) for name, value in new.encoders.state_dict().items())
    assert all(torch.equal(v, new.fusion.state_dict()[k]) for k, v in first.fusion.state_dict().items())
    assert first.encoders["video"].vision is first.encoders["image"]
    alone = replace(recipe, init_from=None)
    assert alone.work_folder(data) != recipe.work_folder(data), "where it starts is part of what it is"

    without = get_recipe("emoji_world_without_video", tiny_profile)
    data = without.data_module()
    assert set(initial_model(without, data).encoders) == {"text", "image", "audio"}


def test_the_whole_series_trains(tiny_profile: Profile, alignment: ContrastiveRecipe) -> None:
    trained = load_or_train(get_recipe("emoji_world", tiny_profile))
    assert trained.metadata["history"][-1]["train loss"] > 0
    assert trained.metadata["command"] == "omni-lab train emoji_world --profile tiny --seed 0"
    assert load_or_train(alignment).origin.startswith("trained here earlier")
