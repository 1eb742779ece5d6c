"""How a server is set up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omni_lab.serving.media import Limits


@dataclass(frozen=True)
class ServerConfig:
    """keys: bearer tokens, one of which is demanded; none: anybody may ask. per_minute: requests of one client.
    timeout: seconds that a request may wait."""

    limits: Limits = Limits()
    keys: Sequence[str] = ()
    per_minute: float | None = None
    timeout: float = 10.0
