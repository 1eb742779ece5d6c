from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython import display

from omni_lab.utils.progress import in_notebook, plural, read_progress, track_progress


def test_items_pass_through_and_a_notebook_shows_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_notebook()
    assert list(track_progress(iter("abc"), "reading", total=3, unit="letter")) == ["a", "b", "c"]
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda html: shown.append(html.data))
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr(display, "display", lambda *a, **k: handle)
    assert list(track_progress(iter("abc"), "reading", total=3, unit="letter")) == ["a", "b", "c"]
    assert shown[-1].endswith("</progress> reading: 3 of 3 letters")
    assert len(shown) == 2, "at once and at the end, not for every item"


def test_plurals() -> None:
    assert list(map(plural, ("batch", "penalty", "set", "class"))) == ["batches", "penalties", "sets", "classes"]


def test_progress_is_read_from_a_notebook_that_is_being_executed(tmp_path: Path) -> None:
    executed = tmp_path / "executed.ipynb"
    assert read_progress(executed) == {}, "not there yet"
    cells = [
        nbformat.v4.new_code_cell(metadata={"papermill": {"status": status}})
        for status in ("completed", "running", "pending")
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), executed)
    assert read_progress(executed) == {"completed": 1, "total": 3, "line": "cell 1 of 3"}
    for place, line in ((0, "earlier"), (1, "finished: 2 of 2 steps"), (1, "training: 5 of 9 steps, epoch 1 of 2")):
        html = f'<progress value="1" max="2"></progress> {line}<table><td>1</td></table>'
        cells[place].outputs.append(nbformat.v4.new_output("display_data", {"text/html": html}))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), executed)
    assert read_progress(executed)["line"] == "cell 1 of 3: training: 5 of 9 steps, epoch 1 of 2"
    executed.write_text(executed.read_text()[:200])
    assert read_progress(executed) == {}, "half written"
