from __future__ import annotations

from pathlib import Path

import pytest

from omni_lab.progress import STATUS_VARIABLE, in_notebook, plural, track


def test_items_pass_through_and_the_runner_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATUS_VARIABLE, str(tmp_path / "status"))
    assert not in_notebook()
    assert list(track(iter("abc"), "reading", total=3, unit="letter")) == ["a", "b", "c"]
    assert (tmp_path / "status").read_text() == "reading: 3 of 3 letters"
    assert list(map(plural, ("batch", "penalty", "set", "class"))) == ["batches", "penalties", "sets", "classes"]
