"""OpenAI's realtime interface over a websocket: JSON text frames, PCM at 24 kHz in base64, the general event names."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.concurrency import run_in_threadpool

from omni_lab.serving import media
from omni_lab.serving.asking import find_model
from omni_lab.serving.chat import ConversationReader, new_id
from omni_lab.serving.engine import Engine
from omni_lab.serving.errors import ApiError
from omni_lab.serving.models import ServedModel
from omni_lab.serving.realtime_answers import Responder, readable_parts
from omni_lab.serving.realtime_session import (
    Conversation,
    InputBuffer,
    Item,
    SessionSettings,
    milliseconds,
    read_item,
    session_object,
)
from omni_lab.serving.settings import ServerConfig
from omni_lab.serving.speech import Speech

log = logging.getLogger("omni_lab.server")
Event = Mapping[str, Any]
SEND_SECONDS = 30.0  # after which a client that does not read is given up
SUBPROTOCOL = "realtime"


class RealtimeSession:
    """One conversation. send: to the client. Mistakes of the client become error events, and the session goes on."""

    def __init__(
        self,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        *,
        engine: Engine,
        served: ServedModel,
        speech: Speech,
        config: ServerConfig,
    ) -> None:
        self._send, self.served, self.speech, self.config = send, served, speech, config
        self.id, self.settings = new_id("sess"), SessionSettings()
        self.conversation = Conversation()
        detection = self.settings.audio.input.turn_detection
        self.buffer = InputBuffer(detection, config.limits, voice_detector=config.voice_detector)
        self.responder = Responder(
            self.emit, self.conversation, engine=engine, served=served, speech=speech, config=config
        )
        self._transcribing: set[asyncio.Task[None]] = set()
        self._next_item = new_id("item")  # the id of the item that the input buffer becomes
        self._handlers: dict[str, Callable[[Event], Awaitable[None]]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit_event,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.truncate": self._truncate_item,
            "conversation.item.delete": self._delete_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_event,
        }

    async def emit(self, kind: str, **fields: Any) -> None:
        """Sends an event. Raises WebSocketDisconnect if the client does not read."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send({"type": kind, "event_id": new_id("event"), **fields})
        except TimeoutError as error:
            raise WebSocketDisconnect(1013, "the client does not read") from error

    async def start(self) -> None:
        await self.emit("session.created", session=self._described())

    async def close(self) -> None:
        """Stops what is under way."""
        with suppress(Exception):  # its last events find a closed socket
            await self.responder.cancel("client_cancelled")
        for task in [*self._transcribing]:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def receive(self, text: str) -> None:
        """Handles an event of the client."""
        event_id = None
        try:
            try:
                event = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ApiError(f"not JSON ({error})", code="invalid_json") from error
            if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                raise ApiError("expected an object with a type", code="invalid_event", param="type")
            event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
            handler = self._handlers.get(event["type"])
            if handler is None:
                message = f"unknown event {event['type'][:64]!r}: expected one of {[*self._handlers]}"
                raise ApiError(message, code="unknown_event", param="type")
            await handler(event)
        except ApiError as error:
            await self.fail(error, event_id)

    async def fail(self, error: ApiError, event_id: str | None = None) -> None:
        await self.emit("error", error={**error.body["error"], "event_id": event_id})

    def _described(self) -> Mapping[str, Any]:
        return session_object(self.id, self.served.name, self.settings, [*self.speech.voices])

    async def _update(self, event: Event) -> None:
        changed = self.settings.updated(event.get("session"))
        voice = changed.audio.output.voice
        if voice and voice not in self.speech.voices:
            message = f"session.audio.output.voice: expected one of {[*self.speech.voices]}: got {voice!r}"
            raise ApiError(message, code="invalid_value", param="session.audio.output.voice")
        detection = changed.audio.input.turn_detection
        if detection != self.settings.audio.input.turn_detection:
            self.buffer.configure(detection)
        self.settings = changed
        await self.emit("session.updated", session=self._described())

    async def _append(self, event: Event) -> None:
        encoded = event.get("audio")
        if not isinstance(encoded, str):
            raise ApiError("audio: expected base64", code="invalid_value", param="audio")
        try:
            content = media.decode_base64(encoded, name="audio", limits=self.config.limits)
        except media.MediaError as error:
            raise ApiError.of(error, param="audio") from error
        for kind, ms in self.buffer.append(content):
            if kind == "started":
                await self.emit("input_audio_buffer.speech_started", audio_start_ms=ms, item_id=self._next_item)
                detection = self.settings.audio.input.turn_detection
                if detection is not None and detection.interrupt_response:
                    await self.responder.cancel("turn_detected")
            else:
                await self._speech_stopped(ms)

    async def _speech_stopped(self, ms: int) -> None:
        await self.emit("input_audio_buffer.speech_stopped", audio_end_ms=ms, item_id=self._next_item)
        await self._commit()
        detection = self.settings.audio.input.turn_detection
        if detection is not None and detection.create_response:
            await self.responder.cancel("turn_detected")
            await self.responder.respond({}, self.settings)

    async def _commit_event(self, event: Event) -> None:
        await self._commit()

    async def _commit(self) -> None:
        """The input buffer becomes an item of the user."""
        sound = self.buffer.take()
        item = Item(self._next_item, "user", [{"type": "input_audio", "transcript": None}], sound=sound)
        self._next_item = new_id("item")
        previous = self.conversation.add(item)
        await self.emit("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)
        await self._announce(item, previous)
        if self.settings.audio.input.transcription is not None:
            task = asyncio.create_task(self._transcribe(item, sound))
            self._transcribing.add(task)
            task.add_done_callback(self._transcribing.discard)

    async def _transcribe(self, item: Item, sound: np.ndarray) -> None:
        """Tells what was said, while or after the answer is given."""
        name, place = "conversation.item.input_audio_transcription", {"item_id": item.id, "content_index": 0}
        text, pieces = "", self.speech.transcribe(sound)
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                text += piece
                await self.emit(f"{name}.delta", delta=piece, **place)
        except (RuntimeError, ValueError) as error:
            await self.emit(f"{name}.failed", error=ApiError.of(error).body["error"], **place)
            return
        item.content[0]["transcript"] = text
        seconds = {"type": "duration", "seconds": round(milliseconds(len(sound), 16_000) / 1e3, 3)}
        await self.emit(f"{name}.completed", transcript=text, usage=seconds, **place)

    async def _clear(self, event: Event) -> None:
        self.buffer.clear()
        await self.emit("input_audio_buffer.cleared")

    async def _create_item(self, event: Event) -> None:
        after = event.get("previous_item_id")
        if after is not None and not isinstance(after, str):
            raise ApiError("previous_item_id: expected a text", code="invalid_value", param="previous_item_id")
        item = await run_in_threadpool(read_item, event.get("item"), self.config.limits)
        if item.role == "user":  # a picture that cannot be read is refused now, not when an answer needs it
            reader = ConversationReader(self.served, self.config.limits)
            await run_in_threadpool(reader.add, readable_parts(item), name="item.content")
        await self._announce(item, self.conversation.add(item, after=after))

    async def _announce(self, item: Item, previous: str | None) -> None:
        for kind in ("added", "done"):
            await self.emit(f"conversation.item.{kind}", previous_item_id=previous, item=item.shown)

    async def _retrieve_item(self, event: Event) -> None:
        item = self.conversation.get(event.get("item_id"))
        await self.emit("conversation.item.retrieved", item=item.shown)

    async def _delete_item(self, event: Event) -> None:
        item = self.conversation.get(event.get("item_id"))
        del self.conversation.items[item.id]
        await self.emit("conversation.item.deleted", item_id=item.id)

    async def _truncate_item(self, event: Event) -> None:
        """Forgets what of an answer was not heard."""
        item, end, index = (
            self.conversation.get(event.get("item_id")),
            event.get("audio_end_ms"),
            event.get("content_index"),
        )
        if item.role != "assistant" or item.content[0]["type"] != "output_audio":
            raise ApiError("only spoken answers can be truncated", code="invalid_value", param="item_id")
        if index != 0:
            raise ApiError(f"content_index: expected 0: got {index!r}", code="invalid_value", param="content_index")
        if not isinstance(end, int) or isinstance(end, bool) or not 0 <= end <= item.spoken_ms:
            message = f"audio_end_ms: expected 0 to {item.spoken_ms}: got {end!r}"
            raise ApiError(message, code="invalid_value", param="audio_end_ms")
        item.content[0]["transcript"], item.spoken_ms = "", end
        await self.emit("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=end)

    async def _create_response(self, event: Event) -> None:
        options = event.get("response") or {}
        if not isinstance(options, dict):
            raise ApiError("response: expected an object", code="invalid_value", param="response")
        await self.responder.respond(options, self.settings)

    async def _cancel_event(self, event: Event) -> None:
        wanted = event.get("response_id")
        active = self.responder.active
        if active is None or wanted not in (None, active.id):
            raise ApiError("no such response is under way", code="response_cancel_not_active", param="response_id")
        await self.responder.cancel("client_cancelled")


def add_realtime(app: FastAPI, engine: Engine, speech: Speech, config: ServerConfig) -> None:
    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket, model: str = "") -> None:
        """A conversation."""
        offered = socket.headers.get("sec-websocket-protocol", "")
        names = [name.strip() for name in offered.split(",")]
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in names else None)
        try:
            served = find_model(engine, model)
        except ApiError as error:
            await socket.send_json({"type": "error", "event_id": new_id("event"), **error.body})
            await socket.close(1008, error.message[:120])
            return
        lock = asyncio.Lock()  # events of a response and of the input come from different tasks

        async def send(event: dict[str, Any]) -> None:
            async with lock:
                await socket.send_text(json.dumps(event, ensure_ascii=False))

        session = RealtimeSession(send, engine=engine, served=served, speech=speech, config=config)
        try:
            await session.start()
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                if message.get("text") is None:
                    await session.fail(ApiError("expected text frames of JSON", code="invalid_event"))
                else:
                    await session.receive(message["text"])
        except (WebSocketDisconnect, RuntimeError):  # a socket that is closed in between
            pass
        finally:
            await session.close()
