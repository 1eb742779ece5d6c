from __future__ import annotations

import pytest

from omni_lab.utils.exercises import check_answer


def test_an_answer_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_answer(4, lambda a: a == 4) is True
    assert check_answer(5, lambda a: a == 4, hint="count again") is False
    assert capsys.readouterr().out == "right\nnot right yet. count again\n"


@pytest.mark.parametrize("answer", [None, ...])
def test_what_is_not_answered_is_not_judged(answer: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_answer(answer, lambda a: 1 / 0) is False
    assert capsys.readouterr().out == "not answered yet\n"


def test_an_answer_of_another_kind_is_wrong_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_answer("four", lambda a: abs(a - 4) < 0.1) is False
    assert capsys.readouterr().out.startswith("not right yet (TypeError: ")
