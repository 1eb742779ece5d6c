"""The events of one response, in their order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from omni_lab.serving.chat import new_id
from omni_lab.serving.media import PCM_RATE
from omni_lab.serving.realtime_session import Conversation, Item, milliseconds


class ResponseStream:
    """From `response.created` to `response.done`. spoken: by sound and its transcript, else by text.

    start: seconds of `time.perf_counter` when it was asked for. reason: why it was cancelled.
    """

    def __init__(
        self, emit: Callable[..., Awaitable[None]], conversation: Conversation, *, spoken: bool, start: float
    ) -> None:
        self.emit, self.conversation, self.spoken, self.start = emit, conversation, spoken, start
        self.id, self.reason, self.sent = new_id("resp"), "client_cancelled", 0  # sent: samples at 24 kHz
        kind, field = ("output_audio", "transcript") if spoken else ("output_text", "text")
        self.field = field
        self.item = Item(new_id("item"), "assistant", [{"type": kind, field: ""}], status="in_progress")
        self._opened = False

    async def begin(self) -> None:
        await self.emit("response.created", response=self._described("in_progress"))

    async def open(self) -> None:
        """The item that the answer becomes."""
        previous = self.conversation.add(self.item)
        self._opened = True
        await self.emit("response.output_item.added", response_id=self.id, output_index=0, item=self.item.shown)
        await self.emit("conversation.item.added", previous_item_id=previous, item=self.item.shown)
        await self.emit("response.content_part.added", part=self._part(), **self._place)

    async def write(self, text: str) -> None:
        """A written answer, word by word."""
        for i, word in enumerate(text.split(" ")):
            await self._tell("response.output_text.delta", f"{' ' * (i > 0)}{word}")

    async def transcript(self, text: str) -> None:
        """What will be heard."""
        await self._tell("response.output_audio_transcript.delta", text)

    async def sound(self, encoded: str, samples: int) -> None:
        """A piece of a spoken answer, PCM at 24 kHz in base64."""
        self.sent += samples
        await self.emit("response.output_audio.delta", delta=encoded, **self._place)

    async def finish(self, *, usage: Mapping[str, int], told: Mapping[str, Any]) -> None:
        """A whole answer. told: what ran for it."""
        await self._end("completed")
        tokens = {
            f"{new}_tokens": usage[f"{old}_tokens"] for old, new in (("prompt", "input"), ("completion", "output"))
        }
        tokens["total_tokens"] = usage["total_tokens"]
        await self.emit("response.done", response=self._described("completed", usage=tokens, omni_lab=told))

    async def stop(self, status: str, why: Mapping[str, Any]) -> None:
        """An answer that is cut off, or failed."""
        if self._opened:
            await self._end("incomplete")
        await self.emit("response.done", response=self._described(status, status_details={**why}))

    @property
    def _place(self) -> dict[str, Any]:
        return {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}

    async def _tell(self, kind: str, delta: str) -> None:
        self.item.content[0][self.field] += delta
        await self.emit(kind, delta=delta, **self._place)

    async def _end(self, status: str) -> None:
        """The last events of the item."""
        self.item.status, self.item.spoken_ms = status, milliseconds(self.sent, PCM_RATE)
        text = self.item.content[0][self.field]
        if self.spoken:
            await self.emit("response.output_audio.done", **self._place)
            await self.emit("response.output_audio_transcript.done", transcript=text, **self._place)
        else:
            await self.emit("response.output_text.done", text=text, **self._place)
        await self.emit("response.content_part.done", part=self._part(), **self._place)
        await self.emit("response.output_item.done", response_id=self.id, output_index=0, item=self.item.shown)
        order = [*self.conversation.items]
        place = order.index(self.item.id) if self.item.id in order else 0
        previous = order[place - 1] if place else None
        await self.emit("conversation.item.done", previous_item_id=previous, item=self.item.shown)

    def _part(self) -> dict[str, Any]:
        return {"type": "audio" if self.spoken else "text", self.field: self.item.content[0][self.field]}

    def _described(self, status: str, **more: Any) -> dict[str, Any]:
        output = [self.item.shown] if self._opened else []
        kinds = ["audio"] if self.spoken else ["text"]
        told = {"status_details": None, "usage": None, **more}
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "output": output,
            "output_modalities": kinds,
        } | told
