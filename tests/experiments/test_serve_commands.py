"""`omni-lab serve` answers over the network, and only whom it should."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from omni_lab.experiments.cli import main
from tests.serving.conftest import exporter, make_batch, parts, routed, router, served_folder, with_latents

__all__ = ["exporter", "make_batch", "parts", "routed", "router", "served_folder", "with_latents"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_a_folder_is_served_until_it_is_interrupted(served_folder: Path) -> None:
    port = free_port()
    words = ["-m", "omni_lab", "serve", str(served_folder), "--no-speech", "--port", str(port), "--budget", "0.5"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["OMNI_LAB_API_KEYS"] = "one,two"
    server = subprocess.Popen([sys.executable, *words, "--key", "three"], stderr=subprocess.PIPE, env=environment)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < end and server.poll() is None, "it does not start"
                time.sleep(0.1)
        body = {"messages": [{"role": "user", "content": "what is it?"}]}
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        assert httpx.post(address, json=body).status_code == 401
        for key in ("one", "two", "three"):
            found = httpx.post(address, json=body, headers={"Authorization": f"Bearer {key}"})
            assert found.status_code == 200 and found.json()["model"] == "model"
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=30)[1].decode()
    finally:
        server.kill()
    assert f"http://127.0.0.1:{port} answers" in said and '"status": 200' in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from elsewhere: give a --key"),
        (["--port", "70000"], "70000 is not in the range"),
        (["--batch-size", "0"], "0 is not in the range"),
        (["emoji_routd", "--no-speech"], "unknown recipe 'emoji_routd'; the nearest of .* is 'emoji_routed'"),
    ],
)
def test_what_cannot_be_served_is_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OMNI_LAB_API_KEYS", raising=False)
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
