"""What every request passes first: its size, its key, how many of them there are; and what is logged about it."""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from omni_lab.serving.errors import ApiError
from omni_lab.serving.page import FILES
from omni_lab.serving.telemetry import Telemetry

log = logging.getLogger("omni_lab.server")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
OPEN = ("/v2/health/live", "/v2/health/ready", *FILES)  # for everybody
SUBPROTOCOL_KEY = "openai-insecure-api-key."  # how browsers, which send no headers, give a key to a websocket
MAX_CLIENTS = 10_000


class RateLimit:
    """A bucket of tokens for each client (Turner 1986). per_minute: requests; None: any number."""

    def __init__(self, per_minute: float | None, *, burst: int = 20) -> None:
        self.per_minute, self.burst = per_minute, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def take(self, client: str, now: float) -> float:
        """Takes a token; returns 0, or the seconds until there is one."""
        if self.per_minute is None:
            return 0.0
        tokens, since = self._buckets.pop(client, (float(self.burst), now))
        rate = self.per_minute / 60
        tokens = min(self.burst, tokens + (now - since) * rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / rate
        self._buckets[client] = (tokens - (wait == 0.0), now)
        while len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait


class Guard:
    """ASGI middleware. keys: one of which a client must send as a bearer token; none: anybody may ask."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        telemetry: Telemetry,
        body_bytes: int,
        keys: Sequence[str] = (),
        per_minute: float | None = None,
    ) -> None:
        self.app, self.telemetry, self.body_bytes, self.keys = app, telemetry, body_bytes, keys
        self.limit = RateLimit(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id, start, status = secrets.token_hex(8), time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = request_id
        read, excess = 0, None

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal read, excess
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.body_bytes:
                excess = self._too_large(read)
                raise excess
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if excess is not None:  # whatever became of the half of a body
                return
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            self._check(scope, headers)
            await self.app(scope, bounded if scope["type"] == "http" else receive, noted)
            if excess is not None:
                raise excess
        except ApiError as error:
            if status:  # half of an answer is on its way
                raise
            status = error.status
            self.telemetry.refused.labels(error.code or "refused").inc()
            await _refuse(scope, receive, send, error, request_id)
        finally:
            self._log(scope, status, time.perf_counter() - start, request_id)

    def _check(self, scope: Scope, headers: MutableMapping[str, str]) -> None:
        """Raises ApiError for a request that may not pass."""
        key = _bearer(headers)
        if self.keys and scope["path"] not in OPEN and not any(hmac.compare_digest(key, k) for k in self.keys):
            message = "wrong API key" if key else "no API key: send it as `Authorization: Bearer KEY`"
            raise ApiError(message, status=401, kind="authentication_error", code="invalid_api_key")
        client = key or str((scope.get("client") or ("?",))[0])
        wait = 0.0 if scope["path"] in OPEN else self.limit.take(client, time.monotonic())
        if wait:
            raise ApiError(
                f"more than {self.limit.per_minute:g} requests a minute: try again in {wait:.1f} s",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(max(1, round(wait)))},
            )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.body_bytes:
            raise self._too_large(int(length))

    def _too_large(self, size: int) -> ApiError:
        return ApiError(
            f"a body of {size} bytes: expected at most {self.body_bytes}", status=413, code="body_too_large"
        )

    def _log(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = scope.get("route")
        endpoint = getattr(route, "path", None) or ("unknown" if status in (0, 404) else scope["path"])
        self.telemetry.requests.labels(endpoint, str(status)).inc()
        self.telemetry.latency.labels(endpoint).observe(seconds)
        fields = {"request_id": request_id, "path": scope["path"], "status": status, "ms": round(1e3 * seconds, 2)}
        log.info("%s", scope.get("method", "WS"), extra={"fields": fields})


def _bearer(headers: MutableMapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    offered = [word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")]
    return next((word.removeprefix(SUBPROTOCOL_KEY) for word in offered if word.startswith(SUBPROTOCOL_KEY)), "")


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ApiError, request_id: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
        return
    v2 = scope["path"].startswith("/v2")
    content = json.dumps({"error": error.message} if v2 else error.body).encode()
    headers = {"content-type": "application/json", "x-request-id": request_id, **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
