"""The state of a realtime session: its settings, its conversation, the sound that comes in."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import soxr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omni_lab.batch import SAMPLE_RATE
from omni_lab.serving import media
from omni_lab.serving.chat import new_id
from omni_lab.serving.errors import ApiError
from omni_lab.serving.media import PCM_RATE, Limits
from omni_lab.serving.turn_detection import TurnDetector, VoiceProbability

MAX_ITEMS = 256


class _Settings(BaseModel):
    model_config = ConfigDict(extra="allow")  # what only OpenAI's models know has no effect


class AudioFormat(_Settings):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class ServerVad(_Settings):
    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=2000)
    silence_duration_ms: int = Field(default=500, ge=50, le=5000)
    create_response: bool = True
    interrupt_response: bool = True


class InputAudio(_Settings):
    format: AudioFormat = AudioFormat()
    turn_detection: ServerVad | None = ServerVad()
    transcription: dict[str, Any] | None = None


class OutputAudio(_Settings):
    format: AudioFormat = AudioFormat()
    voice: str = ""


class SessionAudio(_Settings):
    input: InputAudio = InputAudio()
    output: OutputAudio = OutputAudio()


class SessionSettings(_Settings):
    type: Literal["realtime"] = "realtime"
    output_modalities: list[Literal["text", "audio"]] = Field(default=["audio"], min_length=1, max_length=1)
    instructions: str = ""
    audio: SessionAudio = SessionAudio()

    def updated(self, changes: Any) -> SessionSettings:
        """With some fields changed, at any depth. Raises ApiError naming a wrong one."""
        if not isinstance(changes, dict):
            raise ApiError("session: expected an object", code="invalid_value", param="session")
        if changes.get("tools"):
            raise ApiError("session.tools are not supported", code="unsupported_parameter", param="session.tools")
        try:
            return SessionSettings.model_validate(_merged(self.model_dump(), changes))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["session", *map(str, first["loc"])])
            raise ApiError(f"{where}: {first['msg']}", code="invalid_value", param=where) from error


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}


@dataclass
class Item:
    """A message of the conversation. sound: of its spoken part, [S] at 16 kHz. spoken_ms: of a spoken answer, how much
    was sent."""

    id: str
    role: str
    content: list[dict[str, Any]]
    status: str = "completed"
    sound: np.ndarray | None = None
    spoken_ms: int = 0

    @property
    def shown(self) -> dict[str, Any]:
        """As clients see it: sounds are left out."""
        parts = [{k: v for k, v in part.items() if k != "audio"} for part in self.content]
        item = {"id": self.id, "object": "realtime.item", "type": "message", "status": self.status}
        return item | {"role": self.role, "content": parts}


@dataclass
class Conversation:
    """Items in their order."""

    items: OrderedDict[str, Item] = field(default_factory=OrderedDict)

    def add(self, item: Item, *, after: str | None = None) -> str | None:
        """Adds an item, at the end by default; returns the id of the one before it. Raises ApiError for an id that is
        taken, for an unknown place ("root" is the beginning), and for too many items."""
        if item.id in self.items:
            raise ApiError(f"item {item.id!r} exists already", code="item_exists", param="item.id")
        if len(self.items) >= MAX_ITEMS:
            raise ApiError(f"a conversation may have {MAX_ITEMS} items: delete some", code="too_many_items")
        order = [*self.items]
        if after is not None and after != "root" and after not in self.items:
            raise ApiError(f"no item {after!r}", code="item_not_found", param="previous_item_id")
        place = 0 if after == "root" else len(order) if after is None else order.index(after) + 1
        previous = order[place - 1] if place else None
        self.items[item.id] = item
        for later in order[place:]:
            self.items.move_to_end(later)
        return previous

    def get(self, item_id: Any) -> Item:
        """Raises ApiError for an unknown one."""
        if not isinstance(item_id, str) or item_id not in self.items:
            raise ApiError(f"no item {item_id!r}", code="item_not_found", param="item_id")
        return self.items[item_id]


def read_item(given: Any, limits: Limits) -> Item:
    """An item that a client sends. Raises ApiError naming the part that is wrong."""
    if not isinstance(given, dict) or given.get("type") != "message":
        raise ApiError("item.type: expected message", code="invalid_value", param="item.type")
    role, content = given.get("role"), given.get("content")
    if role not in ("user", "assistant", "system"):
        raise ApiError("item.role: expected user, assistant or system", code="invalid_value", param="item.role")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ApiError("item.content: expected a list of parts", code="invalid_value", param="item.content")
    item_id = given.get("id") or new_id("item")
    if not isinstance(item_id, str) or len(item_id) > 64:
        raise ApiError("item.id: expected a text of at most 64 characters", code="invalid_value", param="item.id")
    item = Item(item_id, role, content)
    for i, part in enumerate(content):
        if part.get("type") == "input_audio":
            name = f"item.content[{i}].audio"
            try:
                encoded = part.get("audio")
                if not isinstance(encoded, str):
                    raise media.MediaError(f"{name}: expected base64")
                sound = media.read_pcm16(media.decode_base64(encoded, name=name, limits=limits), name=name)
                if len(sound) > limits.seconds * SAMPLE_RATE:
                    seconds = len(sound) / SAMPLE_RATE
                    raise media.MediaError(f"{name}: lasts {seconds:.1f} s: expected at most {limits.seconds:g} s")
            except media.MediaError as error:
                raise ApiError.of(error, param=name) from error
            item.sound = sound
    return item


class InputBuffer:
    """The sound that a client sends, at 16 kHz, and the turns that are found in it.

    settings: of turn detection; None: the client says when it is done.
    """

    def __init__(
        self, settings: ServerVad | None, limits: Limits, *, voice_detector: Callable[[], VoiceProbability]
    ) -> None:
        self.limits, self.voice_detector = limits, voice_detector
        self._to_16k = soxr.ResampleStream(PCM_RATE, SAMPLE_RATE, 1, dtype="float32")
        self._pieces: list[np.ndarray] = []
        self._first = 0  # the number of the first sample that is kept
        self.received = 0  # samples at 16 kHz, since the session began
        self.configure(settings)

    def configure(self, settings: ServerVad | None) -> None:
        """Begins to find turns anew."""
        self.settings = settings
        self.detector: TurnDetector | None = None
        self.started: int | None = None  # the sample at which the turn begins, with the padding before it
        if settings is not None:
            silence = settings.silence_duration_ms / 1e3
            self.detector = TurnDetector(self.voice_detector(), threshold=settings.threshold, silence=silence)
            self._offset = self.received

    @property
    def seconds(self) -> float:
        return (self.received - self._first) / SAMPLE_RATE

    def append(self, content: bytes) -> list[tuple[str, int]]:
        """Adds PCM at 24 kHz; returns ("started" or "stopped", ms since the session began) in order. Raises ApiError
        for half samples, and where a client that says itself when it is done goes on for too long."""
        if len(content) % 2:
            raise ApiError(
                f"audio: {len(content)} bytes: expected samples of two bytes", code="invalid_value", param="audio"
            )
        samples = self._to_16k.resample_chunk(np.frombuffer(content, "<i2").astype(np.float32) / 32768)
        if self.detector is None and self.seconds + len(samples) / SAMPLE_RATE > self.limits.seconds:
            message = f"audio: more than {self.limits.seconds:g} s: commit or clear the buffer"
            raise ApiError(message, code="input_audio_buffer_full", param="audio")
        self._pieces.append(samples)
        self.received += len(samples)
        if self.detector is None or self.settings is None:
            return []
        events: list[tuple[str, int]] = []
        for kind, sample in self.detector.feed(samples):
            place = sample + self._offset
            if kind == "started":
                self.started = max(self._first, place - self.settings.prefix_padding_ms * SAMPLE_RATE // 1000)
                place = self.started
            events.append((kind, place * 1000 // SAMPLE_RATE))
        if self.started is None:  # nobody speaks: what is older than the padding is forgotten
            padding = (self.settings.prefix_padding_ms + 200) * SAMPLE_RATE // 1000
            self._forget(self.received - padding)
        elif self.seconds > self.limits.seconds:
            events.append(("stopped", self.received * 1000 // SAMPLE_RATE))
        return events

    def take(self) -> np.ndarray:
        """The sound since the turn began, [S] at 16 kHz; the buffer is empty then. Raises ApiError if there is none."""
        if self.started is not None:
            self._forget(self.started)
        found = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)
        if len(found) < SAMPLE_RATE // 10:
            seconds = len(found) / SAMPLE_RATE
            message = f"the input audio buffer holds {seconds:.2f} s: expected at least 0.1 s"
            raise ApiError(message, code="input_audio_buffer_commit_empty")
        self.clear()
        return found

    def clear(self) -> None:
        self._pieces, self._first, self.started = [], self.received, None
        if self.detector is not None:
            self.detector.speaking = False

    def _forget(self, before: int) -> None:
        """Samples before this one."""
        kept = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)
        drop = min(len(kept), max(0, before - self._first))
        self._pieces, self._first = [kept[drop:]], self._first + drop


def session_object(session_id: str, model: str, settings: SessionSettings, voices: list[str]) -> Mapping[str, Any]:
    """A session as clients see it."""
    shown = settings.model_dump()
    shown["audio"]["output"]["voice"] = shown["audio"]["output"]["voice"] or (voices[0] if voices else "")
    return {"id": session_id, "object": "realtime.session", "model": model, "max_output_tokens": "inf", **shown}


def milliseconds(samples: int, rate: int) -> int:
    return math.floor(1000 * samples / rate)
