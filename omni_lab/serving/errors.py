"""Errors in the format of OpenAI's interface, which its clients understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni_lab.serving.batching import DeadlineExceededError, QueueFullError
from omni_lab.serving.media import MediaError
from omni_lab.serving.models import UnknownModelError


class ApiError(Exception):
    """A refusal. status: of HTTP. kind, code, param: as OpenAI's errors have them."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.kind, self.code, self.param = message, status, kind, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @classmethod
    def of(cls, error: BaseException, *, param: str | None = None) -> ApiError:
        """What an error of the engine means to a client. One that is unknown tells nothing of the inside."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, QueueFullError):
            seconds = str(max(1, round(error.retry_after)))
            headers = {"Retry-After": seconds}
            return cls(str(error), status=429, kind="rate_limit_error", code="queue_full", headers=headers)
        if isinstance(error, DeadlineExceededError):
            return cls(
                f"timed out: {error}", status=503, kind="server_error", code="timeout", headers={"Retry-After": "1"}
            )
        if isinstance(error, UnknownModelError):
            return cls(error.args[0], status=404, code="model_not_found", param="model")
        if isinstance(error, MediaError):
            return cls(str(error), code="invalid_media", param=param)
        if isinstance(error, ValueError):
            return cls(str(error), code="invalid_value", param=param)
        return cls("the server failed to answer", status=500, kind="server_error", code="internal_error")
