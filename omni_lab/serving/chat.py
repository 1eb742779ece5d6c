"""OpenAI's chat completions: a conversation becomes one question with its media, the answer a completion."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from omni_lab.batch import ComputeLevel, Modality
from omni_lab.engine.stacking import Sample
from omni_lab.serving import media
from omni_lab.serving.engine import EngineAnswer
from omni_lab.serving.errors import ApiError
from omni_lab.serving.media import Limits, MediaError
from omni_lab.serving.models import ServedModel

UNSUPPORTED = ("tools", "tool_choice", "functions", "function_call", "logit_bias", "web_search_options")
AudioFormat = Literal["wav", "pcm16"]


class AudioOptions(BaseModel):
    """How a spoken answer sounds. format: pcm16 (24 kHz, mono) while streaming, else wav or pcm16."""

    voice: str = "f1"
    format: AudioFormat = "wav"


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None

    model_config = ConfigDict(extra="allow")


class ChatRequest(BaseModel):
    """What `POST /v1/chat/completions` takes. Settings of sampling have no effect: the likeliest answer is given."""

    model: str = ""
    messages: list[Message] = Field(min_length=1, max_length=256)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOptions | None = None
    n: int | None = 1
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None

    model_config = ConfigDict(extra="allow")

    def check(self) -> None:
        """Raises ApiError for what is asked and not supported."""
        extra = self.model_extra or {}
        for name in UNSUPPORTED:
            if extra.get(name):
                raise ApiError(f"{name} is not supported by this model", code="unsupported_parameter", param=name)
        if self.n not in (None, 1):
            raise ApiError(f"n must be 1: got {self.n}", code="unsupported_parameter", param="n")
        if self.logprobs:
            raise ApiError("logprobs are not supported", code="unsupported_parameter", param="logprobs")
        if (self.response_format or {}).get("type", "text") != "text":
            raise ApiError("response_format must be text", code="unsupported_parameter", param="response_format")
        if self.speaks and self.stream and (self.audio or AudioOptions()).format != "pcm16":
            raise ApiError("audio.format must be pcm16 when streaming", code="invalid_value", param="audio.format")

    @property
    def speaks(self) -> bool:
        return "audio" in (self.modalities or ())


class Question(NamedTuple):
    """What a conversation asks. spoken: whether its question is a sound. tokens: of the prompt, for `usage`."""

    sample: Sample
    text: str
    spoken: bool
    tokens: int


class ConversationReader:
    """Finds the question in a conversation: the text of the last message of the user, else its sound.

    Pictures and clips stay until others are sent; a sound beside a written question is what the question is about.
    """

    def __init__(self, served: ServedModel, limits: Limits) -> None:
        self.served, self.limits = served, limits
        self.media: dict[str, np.ndarray] = {}
        self.images = 0

    def read(self, messages: Sequence[Message]) -> Question:
        """Raises ApiError naming the part of the message."""
        asking = [i for i, message in enumerate(messages) if message.role == "user"]
        if not asking:
            raise ApiError("expected a message of the role user", code="invalid_value", param="messages")
        text = ""
        for i in asking:
            text = self.add(messages[i].content, name=f"messages[{i}].content")
            if i != asking[-1]:
                self.media.pop("audio", None)
        return self.question(text, param=f"messages[{asking[-1]}].content")

    def question(self, text: str, *, param: str) -> Question:
        """The question about all media that were added."""
        try:
            sample = self.served.sample(text, **self.media)
        except ValueError as error:
            raise ApiError.of(error, param=param) from error
        tokens = sample["text"].values.shape[1] if "text" in sample else 0
        return Question(sample, text, "text" not in sample, tokens)

    def add(self, content: str | list[dict[str, Any]] | None, *, name: str) -> str:
        """Keeps the media of a message, and returns its text."""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        texts = []
        for k, part in enumerate(parts):
            where = f"{name}[{k}]"
            try:
                texts.append(self._add_part(part, where))
            except MediaError as error:
                raise ApiError.of(error, param=where) from error
        text = " ".join(t for t in texts if t).strip()
        if len(text) > self.limits.characters:
            raise ApiError(
                f"{name}: {len(text)} characters: expected at most {self.limits.characters}",
                code="invalid_value",
                param=name,
            )
        return text

    def _add_part(self, part: dict[str, Any], name: str) -> str:
        kind = part.get("type")
        if kind in ("text", "input_text"):
            return _string(part.get("text"), f"{name}.text")
        if kind in ("image_url", "input_image"):
            given = part.get("image_url")
            url = given.get("url") if isinstance(given, dict) else given
            content = media.decode_data_url(_string(url, f"{name}.image_url"), name=name, limits=self.limits)
            if media.is_animation(content, name=name, limits=self.limits) and Modality.VIDEO in self.served.shapes:
                shape = self.served.shapes[Modality.VIDEO]
                self.media["video"] = media.read_clip(content, shape, name=name, limits=self.limits)
            else:
                self._take_image()
                shape = self._shape(Modality.IMAGE, name)
                self.media["image"] = media.read_picture(content, shape, name=name, limits=self.limits)
        elif kind == "input_audio":
            given = part.get("input_audio")
            data = _string((given if isinstance(given, dict) else {}).get("data"), f"{name}.input_audio.data")
            content = media.decode_base64(data, name=name, limits=self.limits)
            self.media["audio"] = media.read_sound(content, name=name, limits=self.limits)
        elif kind in ("video", "video_url"):
            self._add_video(part, name)
        else:
            known = "text, image_url, input_audio, video or video_url"
            raise ApiError(f"{name}.type: expected {known}: got {kind!r}", code="invalid_value", param=f"{name}.type")
        return ""

    def _add_video(self, part: dict[str, Any], name: str) -> None:
        """Frames as a list of data URLs, or an animation as one."""
        shape = self._shape(Modality.VIDEO, name)
        if part["type"] == "video":
            urls = part.get("video")
            if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
                raise MediaError(f"{name}.video: expected a list of data URLs, one for each frame")
            if len(urls) > self.limits.frames:
                raise MediaError(f"{name}.video: {len(urls)} frames: expected at most {self.limits.frames}")
            frames = [media.decode_data_url(url, name=f"{name}.video", limits=self.limits) for url in urls]
            self.media["video"] = media.read_frames(frames, shape, name=f"{name}.video", limits=self.limits)
            return
        given = part.get("video_url")
        url = given.get("url") if isinstance(given, dict) else given
        content = media.decode_data_url(_string(url, f"{name}.video_url"), name=name, limits=self.limits)
        self.media["video"] = media.read_clip(content, shape, name=name, limits=self.limits)

    def _shape(self, modality: Modality, name: str) -> tuple[int, ...]:
        if modality not in self.served.shapes:
            raise MediaError(f"{name}: this model has no encoder for {modality}: it has {[*self.served.modalities]}")
        return self.served.shapes[modality]

    def _take_image(self) -> None:
        self.images += 1
        if self.images > self.limits.images:
            raise MediaError(f"more than {self.limits.images} images in one conversation")


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise MediaError(f"{name}: expected a text: got {type(value).__name__}")
    return value


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def details(found: EngineAnswer) -> dict[str, Any]:
    """What nobody else tells: what ran for an answer, and how long it took."""
    answer = found.answer
    return {
        "confidence": round(answer.confidence, 4),
        "others": {text: round(p, 4) for text, p in answer.top[1:]},
        "encoders": {m: ComputeLevel(level).name.lower() for m, level in answer.levels.items()},
        "paths": [f"{layer}: {query} from {key}" for layer, query, key in answer.route.paths],
        "flops_saved": None if answer.flops_saved is None else round(answer.flops_saved, 4),
        "milliseconds": {stage: round(1e3 * seconds, 2) for stage, seconds in found.seconds.items()},
    }


def usage(question: Question, answer: str) -> dict[str, int]:
    """Tokens of the written question, and words of the answer."""
    words = len(answer.split())
    return {"prompt_tokens": question.tokens, "completion_tokens": words, "total_tokens": question.tokens + words}


class Completion:
    """A chat completion and its chunks, as OpenAI's clients read them."""

    def __init__(self, model: str) -> None:
        self.id, self.model, self.created = new_id("chatcmpl"), model, int(time.time())

    def whole(self, question: Question, found: EngineAnswer, *, audio: dict[str, Any] | None = None) -> dict[str, Any]:
        text = found.answer.text
        message: dict[str, Any] = {"role": "assistant", "content": None if audio else text, "refusal": None}
        if audio:
            message["audio"] = audio | {"transcript": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return self._head("chat.completion") | {
            "choices": [choice],
            "usage": usage(question, text),
            "omni_lab": details(found),
        }

    def chunk(self, delta: dict[str, Any], *, finish: str | None = None, **extra: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._head("chat.completion.chunk") | {"choices": [choice], **extra}

    def last(self, **extra: Any) -> dict[str, Any]:
        """A chunk without a choice, which carries the usage."""
        return self._head("chat.completion.chunk") | {"choices": [], **extra}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
