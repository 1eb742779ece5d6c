"""The official client holds a conversation by voice; whatever a client sends, the session goes on."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection, connect

from omni_lab.serving.app import create_app
from omni_lab.serving.engine import Engine
from omni_lab.serving.server import BackgroundServer
from omni_lab.serving.settings import ServerConfig
from omni_lab.serving.turn_detection import EnergyDetector
from tests.serving.conftest import Beeps
from tests.serving.test_media import gif, png
from tests.serving.test_openai_api import data_url

pytestmark = pytest.mark.slow
RATE = 24_000


def pcm(seconds: float, *, loud: bool = True) -> bytes:
    """A buzz that any detector of energy takes for a voice, or near silence."""
    t = np.arange(round(seconds * RATE)) / RATE
    wave = 0.3 * np.sign(np.sin(2 * np.pi * 150 * t)) if loud else 0.0005 * np.sin(2 * np.pi * 50 * t)
    return (wave * 32767).astype("<i2").tobytes()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


class Talker:
    """A client that shows all events that it gets."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def until(self, kind: str, *, timeout: float = 20) -> list[dict[str, Any]]:
        events = []
        while not events or events[-1]["type"] != kind:
            events.append(json.loads(self.socket.recv(timeout=timeout)))
        return events

    def push_to_talk(self, **more: Any) -> None:
        self.until("session.created")
        audio = {"input": {"turn_detection": None, **more.pop("input", {})}, **more}
        self.send("session.update", session={"type": "realtime", "audio": audio})
        self.until("session.updated")

    def say(self, seconds: float = 0.5, **options: bool) -> None:
        content = pcm(seconds, **options)
        for start in range(0, len(content), 4800):
            self.send("input_audio_buffer.append", audio=encoded(content[start : start + 4800]))


@pytest.fixture
def talker(url: str) -> Iterator[Talker]:
    with connect(f"{url.replace('http', 'ws')}/v1/realtime?model=tiny") as socket:
        yield Talker(socket)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    found = [event["type"] for event in events]
    return [kind for i, kind in enumerate(found) if i == 0 or kind != found[i - 1]]


ANSWER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


def test_a_spoken_question_about_a_picture(talker: Talker) -> None:
    talker.push_to_talk(output={"voice": "high"})
    content = [{"type": "input_image", "image_url": data_url(png())}]
    talker.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    picture = talker.until("conversation.item.done")[-1]["item"]["id"]
    talker.say()
    talker.send("input_audio_buffer.commit")
    committed = talker.until("conversation.item.done")
    assert kinds(committed) == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    assert committed[0]["previous_item_id"] == picture and committed[1]["item"]["role"] == "user"
    talker.send("response.create")
    events = talker.until("response.done")
    assert kinds(events) == ANSWER
    assert len({event["event_id"] for event in events}) == len(events)
    deltas = [event for event in events if event["type"] == "response.output_audio.delta"]
    done = events[-1]["response"]
    for delta in deltas:
        assert delta["response_id"] == done["id"] and delta["item_id"] == done["output"][0]["id"]
        assert (delta["output_index"], delta["content_index"]) == (0, 0)
    transcript = done["output"][0]["content"][0]["transcript"]
    assert sum(len(base64.b64decode(d["delta"])) for d in deltas) == 2 * 2400 * len(transcript)
    assert done["status"] == "completed" and set(done["omni_lab"]["encoders"]) == {"audio", "image"}
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"]

    talker.send("conversation.item.truncate", item_id=done["output"][0]["id"], content_index=0, audio_end_ms=150)
    assert talker.until("conversation.item.truncated")[-1]["audio_end_ms"] == 150
    talker.send("conversation.item.delete", item_id=picture)
    assert talker.until("conversation.item.deleted")[-1]["item_id"] == picture
    talker.send("response.create", response={"output_modalities": ["text"]})
    events = talker.until("response.done")
    assert "response.output_text.delta" in kinds(events) and "response.output_audio.delta" not in kinds(events)
    assert set(events[-1]["response"]["omni_lab"]["encoders"]) == {"audio"}, "the picture is gone"


def test_the_server_hears_when_somebody_starts_and_stops(talker: Talker) -> None:
    created = talker.until("session.created")[-1]["session"]
    assert created["audio"]["input"]["turn_detection"]["type"] == "server_vad" and created["model"] == "tiny"
    changes = {
        "turn_detection": {"silence_duration_ms": 200, "prefix_padding_ms": 100},
        "transcription": {"model": "x"},
    }
    talker.send("session.update", session={"audio": {"input": changes}})
    updated = talker.until("session.updated")[-1]["session"]["audio"]["input"]["turn_detection"]
    assert updated["silence_duration_ms"] == 200 and updated["threshold"] == 0.5
    talker.say(0.6, loud=False)
    talker.say(0.6)
    talker.say(0.5, loud=False)
    events = talker.until("response.done")
    found = kinds(events)
    order = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed"]
    assert [kind for kind in found if kind.startswith("input_audio_buffer")] == order
    by_kind = {event["type"]: event for event in events}
    assert 350 <= by_kind[order[0]]["audio_start_ms"] <= 600, "with the padding before it"
    assert 1350 <= by_kind[order[1]]["audio_end_ms"] <= 1550
    assert by_kind[order[0]]["item_id"] == by_kind[order[2]]["item_id"]
    assert [kind for kind in found if kind in ANSWER and not kind.startswith("conv")] == [
        kind for kind in ANSWER if not kind.startswith("conv")
    ]
    name = "conversation.item.input_audio_transcription"
    if f"{name}.completed" not in by_kind:
        by_kind |= {event["type"]: event for event in talker.until(f"{name}.completed")}
    assert by_kind[f"{name}.completed"]["transcript"] in ("0.9 seconds", "1.0 seconds", "1.1 seconds")


class Slow(Beeps):
    """Speaks for as long as it takes."""

    def speak(self, text: str, voice: str) -> Iterator[np.ndarray]:
        def pieces() -> Iterator[np.ndarray]:
            for _ in range(200):
                time.sleep(0.05)
                yield np.full(800, 0.1, np.float32)

        return pieces()


def test_an_answer_can_be_interrupted(engine: Engine) -> None:
    config = ServerConfig(voice_detector=EnergyDetector)
    server = BackgroundServer(create_app(engine, speech=Slow(), config=config))
    address = f"ws://127.0.0.1:{server.port}/v1/realtime"
    with server, connect(address) as socket:
        talker = Talker(socket)
        talker.until("session.created")
        talker.send("session.update", session={"audio": {"input": {"turn_detection": {"silence_duration_ms": 200}}}})
        talker.say(0.5)
        talker.say(0.4, loud=False)
        talker.until("response.output_audio.delta")
        talker.say(0.3)
        events = talker.until("response.done")
        started = kinds(events).index("input_audio_buffer.speech_started")
        assert "response.output_audio.delta" not in kinds(events)[started:], "nothing is said after that"
        done = events[-1]["response"]
        assert done["status"] == "cancelled" and done["status_details"]["reason"] == "turn_detected"
        assert done["output"][0]["status"] == "incomplete"
        talker.say(0.4, loud=False)
        talker.until("response.output_audio.delta")
        talker.send("response.create")
        assert talker.until("error")[-1]["error"]["code"] == "conversation_already_has_active_response"
        talker.send("response.cancel", event_id="mine")
        done = talker.until("response.done")[-1]["response"]
        assert done["status"] == "cancelled" and done["status_details"]["reason"] == "client_cancelled"
        talker.send("response.cancel", event_id="again")
        error = talker.until("error")[-1]["error"]
        assert error["code"] == "response_cancel_not_active" and error["event_id"] == "again"


def test_the_official_client(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    with client.realtime.connect(model="tiny") as connection:
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        content: Any = [{"type": "input_text", "text": "what is it?"}]
        connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        connection.response.create()
        text = ""
        for event in connection:
            if event.type == "response.output_text.delta":
                text += event.delta
            elif event.type == "response.done":
                assert event.response.status == "completed" and event.response.output
                break
    assert text.startswith("answer")


ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "what"}]}


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("{", "invalid_json"),
        ("[]", "invalid_event"),
        ('{"type": 3}', "invalid_event"),
        ({"type": "session.destroy"}, "unknown_event"),
        ({"type": "session.update"}, "invalid_value"),
        ({"type": "session.update", "session": {"audio": {"output": {"voice": "none"}}}}, "invalid_value"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 8000}}}}}, "invalid_value"),
        ({"type": "session.update", "session": {"tools": [1]}}, "unsupported_parameter"),
        ({"type": "input_audio_buffer.append"}, "invalid_value"),
        ({"type": "input_audio_buffer.append", "audio": "%%"}, "invalid_media"),
        ({"type": "input_audio_buffer.append", "audio": "YWJj"}, "invalid_value"),
        ({"type": "input_audio_buffer.append", "audio": encoded(pcm(6))}, "input_audio_buffer_full"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
        ({"type": "conversation.item.create"}, "invalid_value"),
        ({"type": "conversation.item.create", "item": ITEM, "previous_item_id": "none"}, "item_not_found"),
        ({"type": "conversation.item.create", "item": ITEM | {"role": "cat"}}, "invalid_value"),
        ({"type": "conversation.item.create", "item": ITEM | {"content": [{"type": "smell"}]}}, "invalid_value"),
        (
            {
                "type": "conversation.item.create",
                "item": ITEM | {"content": [{"type": "input_image", "image_url": "x"}]},
            },
            "invalid_media",
        ),
        ({"type": "conversation.item.delete", "item_id": "none"}, "item_not_found"),
        ({"type": "conversation.item.truncate", "item_id": "none"}, "item_not_found"),
        ({"type": "response.create", "response": {"output_modalities": ["smell"]}}, "invalid_value"),
        ({"type": "response.cancel"}, "response_cancel_not_active"),
    ],
)
def test_mistakes_are_told_and_the_session_goes_on(talker: Talker, event: Any, code: str) -> None:
    talker.push_to_talk()
    talker.socket.send(event if isinstance(event, str) else json.dumps({"event_id": "mine", **event}))
    error = talker.until("error")[-1]["error"]
    assert error["code"] == code and error["message"] and error["type"] == "invalid_request_error"
    assert error["event_id"] == (None if isinstance(event, str) else "mine")
    talker.send("conversation.item.create", item=ITEM)
    talker.send("response.create", response={"output_modalities": ["text"]})
    assert talker.until("response.done")[-1]["response"]["status"] == "completed"


def test_nothing_asked_is_a_failed_response(talker: Talker) -> None:
    talker.push_to_talk()
    talker.send("response.create")
    done = talker.until("response.done")[-1]["response"]
    assert done["status"] == "failed" and "expected a question" in done["status_details"]["error"]["message"]
    talker.socket.send(b"binary")
    assert talker.until("error")[-1]["error"]["code"] == "invalid_event"


def test_items_have_a_place_and_clips_are_items(talker: Talker) -> None:
    talker.push_to_talk()
    clip = ITEM | {"id": "clip", "content": [{"type": "input_image", "image_url": data_url(gif(3), "image/gif")}]}
    talker.send("conversation.item.create", item=ITEM | {"id": "first"})
    talker.send("conversation.item.create", item=clip, previous_item_id="root")
    added = [e for e in talker.until("conversation.item.done") + talker.until("conversation.item.done")]
    assert [e["previous_item_id"] for e in added if e["type"].endswith("added")] == [None, None]
    talker.send("conversation.item.create", item=ITEM | {"id": "first"})
    assert talker.until("error")[-1]["error"]["code"] == "item_exists"
    talker.send("conversation.item.create", item=ITEM, previous_item_id="clip")
    assert talker.until("conversation.item.done")[-1]["previous_item_id"] == "clip"
    talker.send("conversation.item.retrieve", item_id="clip")
    assert talker.until("conversation.item.retrieved")[-1]["item"]["id"] == "clip"
    talker.send("response.create", response={"output_modalities": ["text"]})
    assert set(talker.until("response.done")[-1]["response"]["omni_lab"]["encoders"]) == {"text", "video"}


def test_keys_and_models_are_checked(engine: Engine) -> None:
    with BackgroundServer(create_app(engine, speech=Beeps(), config=ServerConfig(keys=("secret",)))) as url:
        address = f"{url.replace('http', 'ws')}/v1/realtime"
        for headers, protocols in (
            ({"Authorization": "Bearer secret"}, None),
            ({}, ["realtime", "openai-insecure-api-key.secret"]),
        ):
            with connect(address, additional_headers=headers, subprotocols=protocols) as socket:  # type: ignore[arg-type]
                assert json.loads(socket.recv(timeout=10))["type"] == "session.created"
        with pytest.raises(Exception, match="403|1008"), connect(address) as socket:
            socket.recv(timeout=10)
        with connect(f"{address}?model=tyni", additional_headers={"Authorization": "Bearer secret"}) as socket:
            assert json.loads(socket.recv(timeout=10))["error"]["code"] == "model_not_found"


names = st.sampled_from(
    [
        *("session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear"),
        *("conversation.item.create", "conversation.item.truncate", "conversation.item.delete", "response.create"),
        *("response.cancel", "nothing"),
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5000)
    | st.text(max_size=8)
    | st.sampled_from([encoded(pcm(0.2)), "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "audio", "input", "id", "text"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
fields = st.sampled_from(["session", "audio", "item", "item_id", "response", "previous_item_id", "audio_end_ms"])
events = st.lists(st.tuples(names, st.dictionaries(fields, values, max_size=4)), max_size=8)


def test_any_events_in_any_order_leave_the_session_alive(url: str) -> None:
    address = f"{url.replace('http', 'ws')}/v1/realtime?model=tiny"

    @settings(max_examples=40, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True)
    @given(events)
    def check(sent: list[tuple[str, dict[str, Any]]]) -> None:
        with connect(address) as socket:
            talker = Talker(socket)
            talker.until("session.created")
            for kind, more in sent:
                talker.send(kind, **more)
            talker.send("conversation.item.retrieve", item_id="the end")
            last = talker.until("error")[-1]
            while "the end" not in last["error"]["message"]:
                last = talker.until("error")[-1]

    check()
