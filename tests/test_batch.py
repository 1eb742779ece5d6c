from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_lab.batch import NUM_MODALITIES, Modality, OmniBatch, Tokens
from omni_lab.data.collate import Sample, collate

RAW = {
    Modality.TEXT: lambda n: torch.arange(1, n + 1),
    Modality.IMAGE: lambda n: torch.full((3, 4, 4), n, dtype=torch.uint8),
    Modality.AUDIO: lambda n: torch.linspace(-1, 1, n),
    Modality.VIDEO: lambda n: torch.full((n, 3, 2, 2), n, dtype=torch.uint8),
}
MIXES = st.lists(st.dictionaries(st.sampled_from(list(Modality)), st.integers(1, 7)), min_size=1, max_size=6).filter(
    any
)


def make(mix: list[dict[Modality, int]]) -> list[Sample]:
    return [
        Sample(id=str(i), task="t", family="f", inputs={m: RAW[m](n) for m, n in lengths.items()})
        for i, lengths in enumerate(mix)
    ]


def test_modalities_have_one_fixed_order() -> None:
    assert NUM_MODALITIES == 4
    assert [m.value for m in Modality] == ["text", "image", "audio", "video"]
    assert [m.column for m in Modality] == [0, 1, 2, 3]


@given(MIXES)
@settings(max_examples=60, deadline=None)
def test_collate_keeps_every_input_and_masks_the_rest(mix: list[dict[Modality, int]]) -> None:
    samples = make(mix)
    batch = collate(samples)
    assert len(batch) == len(samples)
    assert batch.present.shape == (len(samples), NUM_MODALITIES)
    for b, sample in enumerate(samples):
        for m in Modality:
            assert batch.present[b, m.column].item() == (m in sample.inputs)
            if m not in sample.inputs:
                assert m not in batch.inputs or batch.inputs[m].entry_index[b] == -1
                continue
            modality_input = batch.inputs[m]
            row = int(modality_input.entry_index[b])
            value = sample.inputs[m]
            length = 1 if m is Modality.IMAGE else len(value)
            assert modality_input.mask[row].sum() == length
            assert modality_input.mask[row, :length].all(), "padding comes after the end"
            stored = modality_input.values[row] if m is Modality.IMAGE else modality_input.values[row, :length]
            assert torch.equal(stored, value)
            if m is not Modality.IMAGE:
                assert not modality_input.values[row, length:].any(), "padding is zero"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
@settings(deadline=None)
def test_equal_keys_are_stored_once(keys: list[int]) -> None:
    samples = [
        Sample(
            id=str(i),
            task="t",
            family="f",
            inputs={Modality.IMAGE: torch.full((3, 2, 2), key, dtype=torch.uint8)},
            dedup_keys={Modality.IMAGE: key},
        )
        for i, key in enumerate(keys)
    ]
    shared, separate = collate(samples), collate(samples, dedup=[])
    assert len(shared.inputs[Modality.IMAGE].values) == len(set(keys))
    assert len(separate.inputs[Modality.IMAGE].values) == len(keys)
    for batch in (shared, separate):
        gathered = batch.inputs[Modality.IMAGE].values[batch.inputs[Modality.IMAGE].entry_index]
        assert gathered[:, 0, 0, 0].tolist() == keys


def test_present_of_a_batch_without_any_modality() -> None:
    batch = OmniBatch(inputs={}, tasks=["t"] * 2, families=["f"] * 2, ids=["a", "b"])
    assert not batch.present.any()
    assert batch.present.shape == (2, NUM_MODALITIES)


def test_without_and_with_entry_index_leave_the_original_alone() -> None:
    batch = collate(make([{Modality.TEXT: 2, Modality.IMAGE: 1}, {Modality.TEXT: 3, Modality.IMAGE: 2}]))
    blind = batch.without(Modality.IMAGE)
    assert blind.present[:, Modality.IMAGE.column].tolist() == [False, False]
    swapped = batch.with_entry_index(Modality.IMAGE, torch.tensor([1, 0]))
    assert swapped.inputs[Modality.IMAGE].entry_index.tolist() == [1, 0]
    assert batch.inputs[Modality.IMAGE].entry_index.tolist() == [0, 1]
    assert batch.present.sum() == 4


def test_some_samples_of_a_batch_share_its_media() -> None:
    whole = collate(make([{Modality.TEXT: 2, Modality.IMAGE: 1}, {Modality.TEXT: 3}, {Modality.TEXT: 1}]))
    some = whole.select(torch.tensor([2, 0, 0]))
    assert [*some.ids] == [whole.ids[2], whole.ids[0], whole.ids[0]] and len(some) == 3
    assert some.present.tolist() == whole.present[[2, 0, 0]].tolist()
    for modality, one in some.inputs.items():
        assert one.values is whole.inputs[modality].values
        assert one.entry_index.tolist() == whole.inputs[modality].entry_index[[2, 0, 0]].tolist()
    assert all(torch.equal(t, whole.targets[name][[2, 0, 0]]) for name, t in some.targets.items())


def test_moving_a_batch_moves_every_tensor() -> None:
    batch = collate(make([{m: 2 for m in Modality}])).to("meta")
    assert all(t.device.type == "meta" for i in batch.inputs.values() for t in (i.values, i.mask, i.entry_index))


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=6))
def test_shared_tokens_equal_their_expansion(rows: list[int]) -> None:
    values = torch.arange(3 * 4 * 2, dtype=torch.float32).view(3, 4, 2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    shared = Tokens(values, mask, times=values[..., 0], entry_index=torch.tensor(rows))
    full = shared.expand_entries()
    assert len(shared) == len(full) == len(rows)
    assert torch.equal(shared.mean_pool(), full.mean_pool())
    for b, row in enumerate(rows):
        if row < 0:
            assert not full.mask[b].any()
            assert not full.mean_pool()[b].any()
        else:
            assert torch.equal(full.values[b], values[row])
            assert torch.equal(full.mask[b], mask[row])
            assert full.times is not None and torch.equal(full.times[b], values[row, :, 0])
            assert torch.allclose(full.mean_pool()[b], values[row][mask[row]].mean(dim=0))
