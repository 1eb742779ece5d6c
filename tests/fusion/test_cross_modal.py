from __future__ import annotations

import pytest
import torch

from omni_lab.batch import Modality, Tokens
from omni_lab.fusion.cross_modal import CrossModalFusion
from omni_lab.fusion.cross_modal_attention import CrossModalAttention
from omni_lab.routing.route import CrossModalPath, all_cross_modal_paths

TEXT, IMAGE, AUDIO = Modality.TEXT, Modality.IMAGE, Modality.AUDIO
DIM = 8
PAIRS = all_cross_modal_paths([TEXT, IMAGE, AUDIO])


def tokens(batch: int, length: int, seed: int) -> Tokens:
    values = torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed))
    return Tokens(values, torch.ones(batch, length, dtype=torch.bool))


def fusion(*paths: CrossModalPath) -> CrossModalFusion:
    torch.manual_seed(0)
    return CrossModalFusion(paths=paths, dim=DIM, depth=2, num_heads=2).eval()


def test_all_paths_are_the_directed_pairs() -> None:
    assert len(all_cross_modal_paths([TEXT, IMAGE, AUDIO])) == 6
    assert CrossModalPath(TEXT, IMAGE) in all_cross_modal_paths([TEXT, IMAGE]) and CrossModalPath(
        TEXT, TEXT
    ) not in all_cross_modal_paths([TEXT, IMAGE])


def test_an_absent_key_modality_adds_nothing() -> None:
    streams = {TEXT: tokens(2, 3, 1), IMAGE: tokens(2, 4, 2)}
    absent = Tokens(streams[IMAGE].values, torch.zeros(2, 4, dtype=torch.bool))
    network = fusion(*all_cross_modal_paths([TEXT, IMAGE]))
    masked = network({TEXT: streams[TEXT], IMAGE: absent}).tokens[TEXT].values
    missing = network({TEXT: streams[TEXT]}).tokens[TEXT].values
    assert (masked - missing).abs().max() < 1e-6
    assert (network(streams).tokens[TEXT].values - missing).abs().max() > 1e-3


def test_one_sample_without_an_image_leaves_the_others_alone() -> None:
    network = fusion(*all_cross_modal_paths([TEXT, IMAGE]))
    text, image = tokens(3, 3, 1), tokens(3, 4, 2)
    mask = image.mask.clone()
    mask[1] = False
    whole = network({TEXT: text, IMAGE: image}).tokens[TEXT].values
    partly = network({TEXT: text, IMAGE: Tokens(image.values, mask)}).tokens[TEXT].values
    assert torch.allclose(whole[[0, 2]], partly[[0, 2]], atol=1e-6)
    assert (whole[1] - partly[1]).abs().max() > 1e-3


def test_a_stream_without_incoming_paths_passes_through() -> None:
    streams = {TEXT: tokens(2, 3, 1), IMAGE: tokens(2, 4, 2)}
    fused = fusion(CrossModalPath(TEXT, IMAGE))(streams).tokens
    assert fused[IMAGE] is streams[IMAGE]
    assert (fused[TEXT].values - streams[TEXT].values).abs().max() > 1e-3


@pytest.mark.parametrize("paths", [[CrossModalPath(TEXT, IMAGE)], all_cross_modal_paths([TEXT, IMAGE])])
def test_shared_images_equal_expanded_ones(paths: list[CrossModalPath]) -> None:
    rows = torch.tensor([0, 1, 1, 0])
    shared = Tokens(tokens(2, 4, 2).values, torch.ones(2, 4, dtype=torch.bool), entry_index=rows)
    network, text = fusion(*paths), tokens(4, 3, 1)
    once, apart = network({TEXT: text, IMAGE: shared}), network({TEXT: text, IMAGE: shared.expand_entries()})
    for m in (TEXT, IMAGE):
        assert (once.tokens[m].expand_entries().values - apart.tokens[m].expand_entries().values).abs().max() < 1e-6


def test_weights_come_from_the_same_forward() -> None:
    streams = {TEXT: tokens(2, 3, 1), IMAGE: tokens(2, 4, 2)}
    network = fusion(*all_cross_modal_paths([TEXT, IMAGE]))
    plain, shown = network(streams), network(streams, need_weights=True)
    assert (plain.tokens[TEXT].values - shown.tokens[TEXT].values).abs().max() < 1e-5
    assert not any(plain.attention)
    assert [set(layer) for layer in shown.attention] == [set(all_cross_modal_paths([TEXT, IMAGE]))] * 2
    assert shown.attention[0][CrossModalPath(TEXT, IMAGE)].shape == (2, 2, 3, 4)


def test_a_path_owns_its_weights() -> None:
    path = CrossModalAttention(dim=DIM, num_heads=2)
    both = fusion(*all_cross_modal_paths([TEXT, IMAGE]))
    one = fusion(CrossModalPath(TEXT, IMAGE))
    count = [sum(p.numel() for p in network.parameters()) for network in (both, one, path)]
    assert count[0] - count[1] > 2 * count[2], "two layers lose one path each, and a block"


def test_a_path_runs_only_for_samples_that_have_both_ends() -> None:
    """And what comes out is what each sample alone would get."""
    everything = {TEXT: tokens(2, 3, 1), IMAGE: tokens(2, 4, 2), AUDIO: tokens(2, 5, 3)}
    rows = {TEXT: [0, 1, 1, -1], IMAGE: [0, -1, 1, 1], AUDIO: [-1, -1, 0, 1]}
    streams = {m: Tokens(t.values, t.mask, entry_index=torch.tensor(rows[m])) for m, t in everything.items()}
    network = fusion(*PAIRS)
    counts: dict[str, int] = {}
    for name, path in network.layers[0].cross.items():
        path.register_forward_hook(
            lambda module, args, out, name=name: counts.update({name: counts.get(name, 0) + len(out.values)})
        )
    fused = network(streams, need_weights=True)
    both = {f"{q}_from_{k}": sum(a >= 0 and b >= 0 for a, b in zip(rows[q], rows[k], strict=True)) for q, k in PAIRS}
    assert counts == both
    for i in range(4):
        alone = {
            m: Tokens(t.values[[rows[m][i]]], t.mask[[rows[m][i]]]) for m, t in everything.items() if rows[m][i] >= 0
        }
        expected = network(alone, need_weights=True)
        for m in everything:
            mine = fused.tokens[m].expand_entries()
            assert bool(mine.mask[i].any()) == (m in alone)
            if m in alone:
                assert torch.allclose(mine.values[i], expected.tokens[m].values[0], atol=1e-5)
        for path, weights in fused.attention[0].items():
            known = expected.attention[0].get(path)
            assert torch.allclose(weights[i], known[0] if known is not None else torch.zeros(()), atol=1e-5)
