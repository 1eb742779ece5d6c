"""TODO"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest_match(name: str, known: Iterable[str]) -> str:
    """Which of the known names looks most like this one, for an error message."""
    return (difflib.get_close_matches(name, known, n=1, cutoff=0.0) or ["(there is none)"])[0]
