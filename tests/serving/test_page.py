"""The page to talk to, in Chromium, with a recorded file as its microphone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from omni_lab.serving.app import create_app
from omni_lab.serving.engine import Engine
from omni_lab.serving.server import BackgroundServer
from omni_lab.serving.settings import ServerConfig
from omni_lab.serving.turn_detection import EnergyDetector
from tests.serving.conftest import Beeps
from tests.serving.test_media import png, wav

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(url: str, tmp_path: Path) -> Iterator[Any]:
    """At 400 pixels, with a microphone that is silent, then buzzes, then is silent again."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    t = np.arange(48_000)
    buzz = 0.3 * np.sign(np.sin(2 * np.pi * 150 * t[:33_600] / 48_000))
    microphone = tmp_path / "microphone.wav"
    microphone.write_bytes(wav(np.concatenate([np.zeros(48_000), buzz, np.zeros(96_000)]), 48_000))
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    flags += [f"--use-file-for-fake-audio-capture={microphone}", "--autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_context(viewport={"width": 400, "height": 900}, permissions=["microphone"]).new_page()
        page.requests, page.errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
        page.goto(url)
        page.wait_for_function("document.getElementById('status').textContent.startsWith('Connected to tiny')")
        yield page
        assert not page.errors
        assert all(request.startswith((url, url.replace("http", "ws"), "data:", "blob:")) for request in page.requests)
        browser.close()


def test_a_written_question_about_a_picture(page: Any) -> None:
    page.set_input_files("#file", files=[{"name": "red.png", "mimeType": "image/png", "buffer": png(40, 30)}])
    page.wait_for_selector("#shown:not([hidden])")
    page.fill("#text", "what is it?")
    page.press("#text", "Enter")
    page.wait_for_selector("#ran:not([hidden])")
    assert page.locator("#log .answer").last.inner_text().startswith("Model\nanswer")
    assert {item.split(":")[0] for item in page.locator("#encoders li").all_inner_texts()} == {"text", "image"}
    assert "%" in page.inner_text("#saved") and "to first sound" in page.inner_text("#stages")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sideways"


def test_a_spoken_question_is_heard_and_answered(page: Any) -> None:
    page.click("#talk")
    page.wait_for_selector("#talk[aria-pressed=true]")
    page.wait_for_selector("#ran:not([hidden])", timeout=20_000)
    page.wait_for_function("document.querySelector('#log .user span').textContent.includes('seconds')")
    assert page.inner_text("#encoders").startswith("audio")
    assert page.inner_text("#status").startswith("First sound after")
    page.click("#talk")
    page.wait_for_selector("#talk[aria-pressed=false]")


def test_every_control_has_a_name(page: Any) -> None:
    named = (
        "e => e.getAttribute('aria-label') || e.textContent.trim() || [...(e.labels || [])].map(l => l.textContent)[0]"
    )
    for control in page.locator("button, input:not([type=file]), [role=button]").all():
        assert control.evaluate(named), control.evaluate("e => e.outerHTML")


def test_files_are_open_and_say_what_they_may_load(engine: Engine) -> None:
    config = ServerConfig(keys=("secret",), voice_detector=EnergyDetector)
    with BackgroundServer(create_app(engine, speech=Beeps(), config=config)) as url:
        for name in ("", "page.js", "page.css", "worklet.js"):
            found = httpx.get(f"{url}/{name}")
            assert found.status_code == 200 and "default-src 'self'" in found.headers["content-security-policy"]
