from __future__ import annotations

from pathlib import Path

import pytest

from omni_lab.utils.progress import STATUS_ENV_VAR, in_notebook, plural, track_progress


def test_items_pass_through_and_the_runner_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATUS_ENV_VAR, str(tmp_path / "status"))
    assert not in_notebook()
    assert list(track_progress(iter("abc"), "reading", total=3, unit="letter")) == ["a", "b", "c"]
    assert (tmp_path / "status").read_text() == "reading: 3 of 3 letters"
    assert list(map(plural, ("batch", "penalty", "set", "class"))) == ["batches", "penalties", "sets", "classes"]
