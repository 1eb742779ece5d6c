from __future__ import annotations

import sys

import pytest

from omni_lab.data.sources.base import SPLITS, SourceError
from omni_lab.data.sources.hsk import SPLIT_FRACTIONS, hsk_sentences, split_of


def test_every_sentence_has_both_languages_and_a_level() -> None:
    pairs = [p for split in hsk_sentences().values() for p in split]
    assert len(pairs) == 4354 and len({p.id for p in pairs}) == 4354
    assert all(p.chinese.strip() and p.english.strip() for p in pairs)
    assert {p.level for p in pairs} == {1, 2, 3, 4, 5, 6}


def test_splits_have_their_shares_of_every_level() -> None:
    splits = hsk_sentences()
    assert tuple(splits) == SPLITS
    total = sum(map(len, splits.values()))
    for split, share in zip(SPLITS, SPLIT_FRACTIONS, strict=True):
        assert len(splits[split]) / total == pytest.approx(share, abs=0.02)
        assert {p.level for p in splits[split]} == {1, 2, 3, 4, 5, 6}


def test_no_chinese_sentence_is_in_two_splits() -> None:
    splits = [{p.chinese for p in pairs} for pairs in hsk_sentences().values()]
    assert sum(map(len, splits)) == len(set.union(*splits))


def test_splits_are_stable() -> None:
    assert hsk_sentences() == hsk_sentences()
    assert [split_of(s) for s in ("你好！", "他是谁？", "谢谢。")] == ["test", "validation", "train"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hsk_sentences_audio", None)
    with pytest.raises(SourceError, match="hsk-sentences-audio is missing: install worlds.txt"):
        hsk_sentences()
