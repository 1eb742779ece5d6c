"""Self-checks of exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def check_answer(answer: Any, is_right: Callable[[Any], Any], hint: str = "") -> bool:
    """Says whether the answer to an exercise is right, and returns it.

    answer: None, or `...`, while the exercise is not answered: then only that is said.
    is_right: maps the answer to something true or false. If it raises, the answer is wrong: the message says why.
    hint: printed after a wrong answer.
    """
    if answer is None or answer is ...:
        print("not answered yet")
        return False
    try:
        right, problem = bool(is_right(answer)), ""
    except Exception as error:  # a learner's answer may be anything
        right, problem = False, f" ({type(error).__name__}: {error})"
    print("right" if right else ". ".join(filter(None, [f"not right yet{problem}", hint])))
    return right
