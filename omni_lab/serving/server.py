"""Runs the application: in the foreground for the command line, in the background for notebooks and tests."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from types import TracebackType

import uvicorn
from fastapi import FastAPI

from omni_lab.serving.telemetry import JsonFormatter

log = logging.getLogger("omni_lab.server")
DRAIN_SECONDS = 10  # that requests have when the server stops


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(app: FastAPI, *, host: str, port: int) -> None:
    """Serves until it is interrupted; requests under way are finished first. Logs go to stderr, as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    uvicorn.Server(_config(app, host, port)).run()


def _config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # `Guard` logs
        ws_max_size=4_000_000,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        server_header=False,
    )


class BackgroundServer:
    """A server in a thread, on loopback: `with BackgroundServer(app) as url: ...`. port: 0 takes a free one."""

    def __init__(self, app: FastAPI, *, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(_config(app, "127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        end = time.monotonic() + 30
        while not self._server.started:
            if time.monotonic() > end or not self._thread.is_alive():
                raise RuntimeError(f"the server on port {self.port} did not start")
            time.sleep(0.005)
        return self.url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(DRAIN_SECONDS + 5)
        self._socket.close()
