"""From a request to the engine and back: errors become refusals, and whoever leaves is not answered."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import Request

from omni_lab.serving.chat import Question
from omni_lab.serving.engine import Engine, EngineAnswer
from omni_lab.serving.errors import ApiError
from omni_lab.serving.models import ServedModel, UnknownModelError

T = TypeVar("T")
CLIENT_GONE = 499  # nginx's status for it; nobody sees it but the log


def find_model(engine: Engine, name: str, version: int | None = None) -> ServedModel:
    """Raises ApiError for an unknown one."""
    try:
        return engine.models.get(name, version)
    except UnknownModelError as error:
        raise ApiError.of(error) from error


async def ask(
    request: Request, engine: Engine, served: ServedModel, question: Question, timeout: float
) -> EngineAnswer:
    """The engine's answer. A client that leaves takes its request out of the queue. Raises ApiError."""
    try:
        future = engine.submit(question.sample, model=served.name, version=served.version, timeout=timeout)
        return await _unless_gone(request, future)
    except ApiError:
        raise
    except Exception as error:
        raise ApiError.of(error) from error


async def _unless_gone(request: Request, future: Future[T]) -> T:
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, leaving = asyncio.wrap_future(future), asyncio.ensure_future(gone())
    waiting: set[asyncio.Future[Any]] = {answer, leaving}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if answer.done():
        leaving.cancel()
        return answer.result()
    future.cancel()
    raise ApiError("the client has left", status=CLIENT_GONE, code="client_gone")
