from __future__ import annotations

import pytest

from omni_lab.utils.lookup import lookup


def test_a_known_name_is_looked_up() -> None:
    assert lookup("two", {"one": 1, "two": 2}, "number") == 2


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^unknown number 'tow'; the nearest of \['one', 'two'\] is 'two'$"):
        lookup("tow", {"one": 1, "two": 2}, "number")


def test_where_no_name_is_near_all_are_named() -> None:
    with pytest.raises(LookupError, match=r"^unknown number 'xyz'; expected one of \['one', 'two'\]$"):
        lookup("xyz", {"one": 1, "two": 2}, "number", error=LookupError)
