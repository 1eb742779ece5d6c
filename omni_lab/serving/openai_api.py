"""OpenAI's interface: models, chat completions, transcription and speech."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from omni_lab.serving import media
from omni_lab.serving.asking import ask, find_model
from omni_lab.serving.chat import (
    AudioOptions,
    ChatRequest,
    Completion,
    ConversationReader,
    Question,
    details,
    new_id,
    usage,
)
from omni_lab.serving.engine import Engine, EngineAnswer
from omni_lab.serving.errors import ApiError
from omni_lab.serving.models import ServedModel
from omni_lab.serving.settings import ServerConfig
from omni_lab.serving.speech import Speech, to_pcm16, wav_file


class SpeechRequest(BaseModel):
    """What `POST /v1/audio/speech` takes."""

    model: str = ""
    input: str = Field(min_length=1)
    voice: str = ""
    response_format: Literal["wav", "pcm"] = "wav"
    stream_format: Literal["audio"] = "audio"

    model_config = ConfigDict(extra="allow")


def add_openai(app: FastAPI, engine: Engine, speech: Speech | None, config: ServerConfig) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that answer."""
        return {"object": "list", "data": [_model_card(m) for m in _newest(engine)]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model_card(find_model(engine, name))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answers the last question of a conversation, as text, and as speech if asked."""
        body.check()
        if body.speaks and speech is None:
            raise ApiError("this server does not speak", code="unsupported_parameter", param="modalities")
        options = body.audio or AudioOptions()
        if body.speaks and speech is not None and options.voice not in speech.voices:
            message = f"audio.voice: expected one of {[*speech.voices]}: got {options.voice!r}"
            raise ApiError(message, code="invalid_value", param="audio.voice")
        served = find_model(engine, body.model)
        reader = ConversationReader(served, config.limits)
        question = await run_in_threadpool(reader.read, body.messages)
        found = await ask(request, engine, served, question, config.timeout)
        completion = Completion(served.name)
        if body.stream:
            events = _chunks(completion, body, question, found, speech if body.speaks else None, options)
            return StreamingResponse(_sse(events), media_type="text/event-stream")
        audio = None
        if body.speaks and speech is not None:
            audio = await run_in_threadpool(_spoken, speech, found.answer.text, options)
        return JSONResponse(completion.whole(question, found, audio=audio))


def _spoken(speech: Speech, text: str, options: AudioOptions) -> dict[str, Any]:
    """A spoken answer, whole."""
    try:
        pcm = b"".join(to_pcm16(speech.speak(text, options.voice)))
    except ValueError as error:
        raise ApiError.of(error, param="audio") from error
    content = wav_file(pcm) if options.format == "wav" else pcm
    return {"id": new_id("audio"), "data": base64.b64encode(content).decode(), "expires_at": int(time.time()) + 3600}


def _chunks(
    completion: Completion,
    body: ChatRequest,
    question: Question,
    found: EngineAnswer,
    speech: Speech | None,
    options: AudioOptions,
) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed completion, in the order that the official client expects."""
    text = found.answer.text
    yield completion.chunk({"role": "assistant", "content": "", "refusal": None})
    if speech is None:
        for i, word in enumerate(text.split(" ")):
            yield completion.chunk({"content": f"{' ' * (i > 0)}{word}"})
    else:
        audio_id = new_id("audio")
        yield completion.chunk({"audio": {"id": audio_id, "transcript": text}})
        for pcm in to_pcm16(speech.speak(text, options.voice)):
            if pcm:
                yield completion.chunk({"audio": {"id": audio_id, "data": base64.b64encode(pcm).decode()}})
        yield completion.chunk({"audio": {"id": audio_id, "expires_at": int(time.time()) + 3600}})
    yield completion.chunk({}, finish="stop", omni_lab=details(found))
    if (body.stream_options or {}).get("include_usage"):
        yield completion.last(usage=usage(question, text))


def _sse(events: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    """Server-sent events; an error on the way is told as one."""
    try:
        for event in events:
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
    except Exception as error:  # the status is sent already
        yield f"data: {json.dumps(ApiError.of(error).body)}\n\n"
    yield "data: [DONE]\n\n"


def add_audio(app: FastAPI, speech: Speech, config: ServerConfig) -> None:
    @app.post("/v1/audio/transcriptions")
    async def transcriptions(
        file: UploadFile,
        model: Annotated[str, Form()] = "",
        response_format: Annotated[str, Form()] = "json",
        stream: Annotated[bool, Form()] = False,
    ) -> Response:
        """What was said in a sound file."""
        if response_format not in ("json", "text"):
            raise ApiError("response_format: expected json or text", code="invalid_value", param="response_format")
        content = await file.read()
        try:
            waveform = await run_in_threadpool(media.read_sound, content, name="file", limits=config.limits)
        except ValueError as error:
            raise ApiError.of(error, param="file") from error
        if stream:
            return StreamingResponse(_sse(_transcript_events(speech, waveform)), media_type="text/event-stream")
        text = await run_in_threadpool(lambda: "".join(speech.transcribe(waveform)))
        return PlainTextResponse(text) if response_format == "text" else JSONResponse({"text": text})

    @app.post("/v1/audio/speech")
    async def speak(body: SpeechRequest) -> Response:
        """Speech of a text, in pieces as they are made."""
        if len(body.input) > config.limits.characters:
            message = f"input: {len(body.input)} characters: expected at most {config.limits.characters}"
            raise ApiError(message, code="invalid_value", param="input")
        try:
            pieces = speech.speak(body.input, body.voice or speech.voices[0])
        except ValueError as error:
            raise ApiError.of(error, param="input") from error
        if body.response_format == "pcm":
            return StreamingResponse(to_pcm16(pieces), media_type="audio/pcm")
        pcm = await run_in_threadpool(lambda: b"".join(to_pcm16(pieces)))
        return Response(wav_file(pcm), media_type="audio/wav")


def _transcript_events(speech: Speech, waveform: Any) -> Iterator[dict[str, Any]]:
    text = ""
    for piece in speech.transcribe(waveform):
        text += piece
        yield {"type": "transcript.text.delta", "delta": piece}
    yield {"type": "transcript.text.done", "text": text}


def _newest(engine: Engine) -> list[ServedModel]:
    return [*{model.name: model for model in engine.models.list()}.values()]


def _model_card(model: ServedModel) -> dict[str, Any]:
    card = {"id": model.name, "object": "model", "created": int(model.loaded_at), "owned_by": "omni-lab"}
    return card | {"version": model.version, "modalities": [*model.modalities]}
