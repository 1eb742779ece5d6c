"""How a server is set up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omni_lab.serving.media import Limits
from omni_lab.serving.turn_detection import VoiceProbability, best_detector


@dataclass(frozen=True)
class ServerConfig:
    """keys: bearer tokens, one of which is demanded; none: anybody may ask. per_minute: requests of one client.
    timeout: seconds that a request may wait. voice_detector: makes one for each realtime session."""

    limits: Limits = Limits()
    keys: Sequence[str] = ()
    per_minute: float | None = None
    timeout: float = 10.0
    voice_detector: Callable[[], VoiceProbability] = best_detector
