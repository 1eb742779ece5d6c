"""Look up names, with errors that help against typing mistakes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def lookup(name: str, known: Mapping[str, T], what: str, *, error: type[Exception] = ValueError) -> T:
    """`known[name]`. An unknown name raises `error`: "unknown {what} 'yy'; the nearest of ['a', 'y'] is 'y'", or where
    none is near "expected one of ['a', 'y']"."""
    if name not in known:
        nearest = difflib.get_close_matches(f"{name}", known, n=1, cutoff=0.4)
        hint = f"the nearest of {[*known]} is {nearest[0]!r}" if nearest else f"expected one of {[*known]}"
        raise error(f"unknown {what} {name!r}; {hint}")
    return known[name]
