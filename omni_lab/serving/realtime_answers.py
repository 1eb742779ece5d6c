"""Answers in a realtime session: one at a time, each in a task of its own that can be cancelled."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import WebSocketDisconnect
from fastapi.concurrency import run_in_threadpool

from omni_lab.serving.chat import ConversationReader, Question, details, usage
from omni_lab.serving.engine import Engine
from omni_lab.serving.errors import ApiError
from omni_lab.serving.models import ServedModel
from omni_lab.serving.realtime_response import ResponseStream
from omni_lab.serving.realtime_session import Conversation, Item, SessionSettings
from omni_lab.serving.settings import ServerConfig
from omni_lab.serving.speech import Speech, to_pcm16

log = logging.getLogger("omni_lab.server")


class Responder:
    """Answers the latest question of a conversation. emit: sends an event to the client."""

    def __init__(
        self,
        emit: Callable[..., Awaitable[None]],
        conversation: Conversation,
        *,
        engine: Engine,
        served: ServedModel,
        speech: Speech,
        config: ServerConfig,
    ) -> None:
        self.emit, self.conversation, self.engine = emit, conversation, engine
        self.served, self.speech, self.config = served, speech, config
        self._response: ResponseStream | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def active(self) -> ResponseStream | None:
        """The response that is under way."""
        return self._response if self._task is not None and not self._task.done() else None

    async def cancel(self, reason: str) -> None:
        """Ends the response that is under way, if there is one; returns when its last event is sent."""
        task, self._task = self._task, None
        if task is None or task.done() or self._response is None:
            return
        self._response.reason = reason
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def respond(self, options: Mapping[str, Any], settings: SessionSettings) -> None:
        """Begins an answer. options: of `response.create`. Raises ApiError while another one is under way."""
        if self.active is not None:
            message = "a response is under way: cancel it, or wait for response.done"
            raise ApiError(message, code="conversation_already_has_active_response")
        kinds = options.get("output_modalities", settings.output_modalities)
        if kinds not in (["text"], ["audio"]):
            message = f"response.output_modalities: expected ['text'] or ['audio']: got {kinds!r}"
            raise ApiError(message, code="invalid_value", param="response.output_modalities")
        self._response = ResponseStream(
            self.emit, self.conversation, spoken=kinds == ["audio"], start=time.perf_counter()
        )
        voice = settings.audio.output.voice or self.speech.voices[0]
        self._task = asyncio.create_task(self._answer(self._response, voice))

    async def _answer(self, stream: ResponseStream, voice: str) -> None:
        """One response, from its creation to `response.done`, whatever happens in between."""
        try:
            await stream.begin()
            question = await run_in_threadpool(self._question)
            name, version = self.served.name, self.served.version
            future = self.engine.submit(question.sample, model=name, version=version, timeout=self.config.timeout)
            found = await asyncio.wrap_future(future)
            text = found.answer.text
            await stream.open()
            if stream.spoken:
                await self._speak(stream, text, voice)
            else:
                await stream.write(text)
            await stream.finish(usage=usage(question, text), told=details(found))
        except asyncio.CancelledError:
            await asyncio.shield(stream.stop("cancelled", {"type": "cancelled", "reason": stream.reason}))
        except WebSocketDisconnect:
            return
        except Exception as error:
            refusal = ApiError.of(error)
            if refusal.status >= 500:
                log.exception("a response failed")
            told = {"type": "failed", "error": {"type": refusal.kind, "code": refusal.code, "message": refusal.message}}
            with suppress(WebSocketDisconnect):
                await stream.stop("failed", told)

    async def _speak(self, stream: ResponseStream, text: str, voice: str) -> None:
        await stream.transcript(text)
        pieces = to_pcm16(self.speech.speak(text, voice))
        while (pcm := await asyncio.to_thread(next, pieces, None)) is not None:
            if pcm:
                if not stream.sent:
                    self.engine.telemetry.speech.observe(time.perf_counter() - stream.start)
                await stream.sound(base64.b64encode(pcm).decode(), len(pcm) // 2)

    def _question(self) -> Question:
        """The latest written or spoken question, and the media that were sent until now. Raises ApiError."""
        reader, text, sound = ConversationReader(self.served, self.config.limits), "", None
        for item in self.conversation.items.values():
            if item.role == "user":
                written = reader.add(readable_parts(item), name=item.id)
                if written or item.sound is not None:
                    text, sound = written, item.sound
        if sound is not None:
            reader.media["audio"] = sound
        return reader.question(text, param="response")


def readable_parts(item: Item) -> list[dict[str, Any]]:
    """The parts that `ConversationReader` reads."""
    return [part for part in item.content if part.get("type") != "input_audio"]
