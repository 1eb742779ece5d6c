"""The official client, unmodified, talks to a real server."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
import wave
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from omni_lab.serving.app import create_app
from omni_lab.serving.batching import BatchingConfig
from omni_lab.serving.engine import Engine
from omni_lab.serving.media import read_picture
from omni_lab.serving.models import ModelRepository, ServedModel
from omni_lab.serving.server import BackgroundServer
from omni_lab.serving.settings import ServerConfig
from tests.serving.test_media import LIMITS, bomb, gif, png, wav

pytestmark = pytest.mark.slow


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image(content: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(content)}}


def voice(content: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


SOUND = wav(np.sin(np.arange(16_000) / 10) * 0.3)


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def chat(client: openai.OpenAI, *messages: Any, **options: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=[*messages], **options)


def test_a_question_about_a_picture(client: openai.OpenAI, served: ServedModel) -> None:
    found = chat(client, user("what is it?", image(png(30, 20))))
    pixels = read_picture(png(30, 20), (3, 64, 64), name="picture", limits=LIMITS)
    sample = served.sample("what is it?", image=pixels)
    (expected,) = served.answer([sample], served.decide([sample]))
    assert found.choices[0].message.content == expected.text and found.choices[0].finish_reason == "stop"
    assert found.usage.prompt_tokens == 4 and found.model == "tiny"
    told = found.omni_lab
    assert set(told["encoders"]) == {"text", "image"} and 0 <= told["flops_saved"] < 1
    assert set(told["milliseconds"]) == {"decide", "answer", "total", "waiting"}


def test_spoken_questions_clips_and_several_turns(client: openai.OpenAI) -> None:
    clip = {"type": "video", "video": [data_url(png(color=(i, 0, 0))) for i in (0, 99)]}
    animation = {"type": "video_url", "video_url": {"url": data_url(gif(3), "image/gif")}}
    cases = [
        ((user(voice(SOUND)),), {"audio"}),
        ((user(image(png())), user(voice(SOUND))), {"audio", "image"}),
        (
            (user(image(png()), "what is it?"), {"role": "assistant", "content": "red"}, user("where")),
            {"text", "image"},
        ),
        ((user("where", voice(SOUND)), user("what")), {"text"}),
        ((user("what", clip),), {"text", "video"}),
        ((user("what", animation, voice(SOUND)),), {"text", "video", "audio"}),
        ((user("what", image(gif(2))),), {"text", "video"}),
        (({"role": "system", "content": "be brief"}, {"role": "user", "content": "what is it?"}), {"text"}),
    ]
    for messages, modalities in cases:
        assert set(chat(client, *messages).omni_lab["encoders"]) == modalities


def test_a_stream_tells_the_same_in_pieces(client: openai.OpenAI) -> None:
    whole = chat(client, user("what is it?", image(png())))
    chunks = [*chat(client, user("what is it?", image(png())), stream=True, stream_options={"include_usage": True})]
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert deltas[0].role == "assistant" and len({c.id for c in chunks}) == 1
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "stop"]
    assert chunks[-1].usage.completion_tokens == 2 and chunks[-2].omni_lab["encoders"]


def test_answers_are_spoken(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "low", "format": "wav"}}
    message = chat(client, user("what is it?"), **options).choices[0].message
    with wave.open(io.BytesIO(base64.b64decode(message.audio.data))) as file:
        assert file.getframerate() == 24_000
        assert file.getnframes() == 2400 * len(message.audio.transcript)
    assert message.content is None and message.audio.transcript.startswith("answer")
    options["audio"] = {"voice": "low", "format": "pcm16"}
    pieces = [c.choices[0].delta for c in chat(client, user("what is it?"), stream=True, **options) if c.choices]
    audio = [d.audio for d in pieces if getattr(d, "audio", None)]
    assert audio[0].transcript == message.audio.transcript and audio[-1].expires_at > time.time()
    pcm = b"".join(base64.b64decode(a.data) for a in audio if a.data)
    assert len(pcm) == 2 * 2400 * len(message.audio.transcript)


def test_speech_transcription_and_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").owned_by == "omni-lab"
    spoken = client.audio.speech.create(model="tiny", voice="high", input="hello", response_format="wav").read()
    with wave.open(io.BytesIO(spoken)) as file:
        assert file.getnframes() == 5 * 2400
    raw = client.audio.speech.create(model="tiny", voice="high", input="hello", response_format="pcm").read()
    assert len(raw) == 2 * 5 * 2400
    assert client.audio.transcriptions.create(model="tiny", file=("a.wav", SOUND)).text == "1.0 seconds"
    events = [*client.audio.transcriptions.create(model="tiny", file=("a.wav", SOUND), stream=True)]
    assert [e.type for e in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]


@pytest.mark.parametrize(
    ("messages", "options", "status", "message"),
    [
        ([user("what", image(b"no"))], {}, 400, r"messages\[0\].content\[1\]: not a readable image"),
        ([user("what", image(bomb()))], {}, 400, "decompression bomb|pixels: expected at most"),
        ([user("what", image(png(2000, 1000)))], {}, 400, "2000 x 1000 pixels: expected at most 1000000"),
        ([user("what", voice(SOUND[:9000]))], {}, 400, "truncated|header tells"),
        ([user("what", voice(wav(np.zeros(0))))], {}, 400, "zero samples"),
        ([user("what", voice(wav(np.zeros(100_000))))], {}, 400, "lasts 6.2 s: expected at most 5 s"),
        ([user("what", {"type": "image_url", "image_url": {"url": "http://x/y.png"}})], {}, 400, "fetches nothing"),
        ([user("what", {"type": "image_url", "image_url": {"url": "data:;base64,%%"}})], {}, 400, "not valid base64"),
        ([user("what", {"type": "smell"})], {}, 400, "expected text, image_url, input_audio, video or video_url"),
        ([user("what", *[image(png())] * 4)], {}, 400, "more than 3 images"),
        ([user("w" * 501)], {}, 400, "501 characters: expected at most 500"),
        ([user(image(png()))], {}, 400, "expected a question, written or spoken"),
        ([{"role": "assistant", "content": "hi"}], {}, 400, "expected a message of the role user"),
        ([{"role": "nobody", "content": "hi"}], {}, 400, "messages.0.role"),
        ([], {}, 400, "messages: List should have at least 1 item"),
        ([user("what")], {"model": "tyni"}, 404, "unknown model 'tyni'; the nearest of .* is 'tiny'"),
        ([user("what")], {"n": 2}, 400, "n must be 1: got 2"),
        ([user("what")], {"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ([user("what")], {"response_format": {"type": "json_object"}}, 400, "response_format must be text"),
        ([user("what")], {"modalities": ["audio"], "audio": {"voice": "no", "format": "wav"}}, 400, "audio.voice"),
        (
            [user("what")],
            {"modalities": ["audio"], "audio": {"voice": "low", "format": "wav"}, "stream": True},
            400,
            "audio.format must be pcm16 when streaming",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_in_the_format_of_openai(
    url: str, messages: list[Any], options: dict[str, Any], status: int, message: str
) -> None:
    body = {"model": "tiny", "messages": messages} | options
    found = httpx.post(f"{url}/v1/chat/completions", json=body)
    error = found.json()["error"]
    assert found.status_code == status and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["code"]
    with pytest.raises(openai.APIStatusError, match=message):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        client.chat.completions.create(**body)


def test_bodies_keys_and_rates_are_bounded(engine: Engine, url: str) -> None:
    large = httpx.post(f"{url}/v1/chat/completions", content=b"x" * 2_000_001)
    assert large.status_code == 413 and "2000001 bytes: expected at most 2000000" in large.text

    def endless() -> Any:
        for _ in range(30):
            yield b"x" * 100_000

    assert httpx.post(f"{url}/v1/chat/completions", content=endless()).status_code == 413
    assert httpx.post(f"{url}/v1/chat/completions", content=b"{").status_code == 400
    assert httpx.get(f"{url}/nowhere").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{url}/v1/chat/completions").status_code == 405

    config = ServerConfig(keys=("secret", "other"), per_minute=60)
    with BackgroundServer(create_app(engine, config=config)) as guarded:
        for key, code in (("", "no API key"), ("wrong", "wrong API key")):
            refused = httpx.get(f"{guarded}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
            assert refused.status_code == 401 and code in refused.text
        assert httpx.get(f"{guarded}/v2/health/ready").status_code == 200, "for load balancers"
        assert httpx.get(f"{guarded}/metrics").status_code == 401
        client = openai.OpenAI(base_url=f"{guarded}/v1", api_key="other", max_retries=0)
        for _ in range(20):
            client.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            for _ in range(5):
                client.models.list()
        assert int(caught.value.response.headers["retry-after"]) >= 1
        client = openai.OpenAI(base_url=f"{guarded}/v1", api_key="secret", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="does not speak"):
            chat(client, user("what"), modalities=["text", "audio"], audio={"voice": "low", "format": "wav"})


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_who_leaves_is_not_answered_and_who_is_too_many_comes_back_later(served: ServedModel) -> None:
    models, running, go = ModelRepository(), threading.Event(), threading.Event()
    models.add(served)
    decide = served.decide

    def held(samples: Any) -> Any:
        running.set()
        assert go.wait(20)
        return decide(samples)

    served.decide = held  # type: ignore[method-assign]
    engine = Engine(models, config=BatchingConfig(max_queue_size=1))
    body = {"model": "tiny", "messages": [user("what")]}
    try:
        with BackgroundServer(create_app(engine)) as url:
            first = threading.Thread(target=httpx.post, args=(f"{url}/v1/chat/completions",), kwargs={"json": body})
            first.start()
            assert running.wait(10)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.3)
            wait_until(lambda: all(e.future.cancelled() for q in engine.deciding._queues.values() for e in q))
            second = threading.Thread(target=httpx.post, args=(f"{url}/v1/chat/completions",), kwargs={"json": body})
            second.start()
            wait_until(lambda: engine.stats["decide"].cancelled == 1 and engine.waiting == 1)
            refused = httpx.post(f"{url}/v1/chat/completions", json=body)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
            go.set()
            first.join(20)
            second.join(20)
        engine.close()
    finally:
        go.set()
        served.decide = decide  # type: ignore[method-assign]
    assert engine.stats["decide"].cancelled == 1


def test_a_client_that_sends_slowly_or_stops_reading_holds_nobody_up(url: str, client: openai.OpenAI) -> None:
    port = int(url.rpartition(":")[2])
    slow = socket.create_connection(("127.0.0.1", port))
    slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    deaf = socket.create_connection(("127.0.0.1", port))
    body = json.dumps({"model": "tiny", "messages": [user("what")], "stream": True}).encode()
    deaf.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    deaf.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert chat(client, user("what")).choices[0].message.content
    slow.close()
    deaf.close()
    assert chat(client, user("what")).choices[0].message.content


def test_kserve(url: str, served: ServedModel) -> None:
    assert httpx.get(f"{url}/v2").json()["name"] == "omni-lab"
    assert httpx.get(f"{url}/v2/health/live").status_code == httpx.get(f"{url}/v2/health/ready").status_code == 200
    told = httpx.get(f"{url}/v2/models/tiny/versions/1").json()
    assert [i["name"] for i in told["inputs"]] == ["question", "image", "video", "audio"]
    assert httpx.get(f"{url}/v2/models/tiny/ready").json()["ready"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    question = {"name": "question", "datatype": "BYTES", "shape": [2], "data": ["what is it?", "where"]}
    pictures = {"name": "image", "datatype": "UINT8", "shape": [2, 3, 64, 64], "data": pixels.ravel().tolist()}
    found = httpx.post(f"{url}/v2/models/tiny/infer", json={"id": "7", "inputs": [question, pictures]}).json()
    outputs = {o["name"]: o["data"] for o in found["outputs"]}
    samples = [served.sample(q, image=p) for q, p in zip(question["data"], pixels, strict=True)]
    expected = [served.answer([s], served.decide([s]))[0] for s in samples]
    assert outputs["answer"] == [a.text for a in expected] and found["id"] == "7" and found["model_version"] == "1"
    assert outputs["probability"] == pytest.approx([a.confidence for a in expected], abs=1e-3)
    for changed, message in (
        ({"datatype": "FP32"}, "image: expected UINT8: got 'FP32'"),
        ({"shape": [2, 3, 64, 63]}, "image: data that does not fit"),
        ({"shape": [1, 6, 64, 64]}, "same number of rows"),
        ({"shape": [2, 3, 32, 128]}, r"image: expected shape \[-1, 3, 64, 64\]"),
        ({"data": [300] * pixels.size}, "image: expected whole numbers from 0 to 255"),
        ({"name": "smell"}, "unknown input 'smell'"),
    ):
        wrong = httpx.post(f"{url}/v2/models/tiny/infer", json={"inputs": [question, pictures | changed]})
        assert wrong.status_code == 400 and set(wrong.json()) == {"error"}
        assert re.search(message, wrong.json()["error"]), wrong.json()
    assert httpx.post(f"{url}/v2/models/tiny/versions/9/infer", json={"inputs": [question]}).status_code == 404


def test_metrics_tell_what_ran(url: str, client: openai.OpenAI) -> None:
    chat(client, user("what", image(png())))
    found = httpx.get(f"{url}/metrics").text
    assert 'omni_requests_total{endpoint="/v1/chat/completions",status="200"} 1.0' in found
    assert 'omni_combinations_total{modalities="text+image"} 1.0' in found
    assert 'omni_batch_size_count{stage="decide"} 1.0' in found and "omni_queue_depth 0.0" in found
