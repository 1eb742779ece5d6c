"""Look up names, with errors that help against typing mistakes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def lookup(name: str, known: Mapping[str, T], what: str, *, error: type[Exception] = ValueError) -> T:
    """`known[name]`. An unknown name raises `error`: "unknown {what} 'x'; the nearest of ['a', 'y'] is 'y'"."""
    if name not in known:
        nearest = (difflib.get_close_matches(f"{name}", known, n=1, cutoff=0.0) or ["(there is none)"])[0]
        raise error(f"unknown {what} {name!r}; the nearest of {[*known]} is {nearest!r}")
    return known[name]
