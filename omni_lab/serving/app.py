"""The server's application: all interfaces over one engine."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from omni_lab.serving.engine import Engine
from omni_lab.serving.errors import ApiError
from omni_lab.serving.guard import Guard
from omni_lab.serving.kserve import add_kserve
from omni_lab.serving.openai_api import add_audio, add_openai
from omni_lab.serving.page import add_page
from omni_lab.serving.realtime import add_realtime
from omni_lab.serving.settings import ServerConfig
from omni_lab.serving.speech import Speech

CODES = {400: "invalid_body", 404: "not_found", 405: "method_not_allowed"}


def create_app(engine: Engine, *, speech: Speech | None = None, config: ServerConfig | None = None) -> FastAPI:
    """The application over an engine. speech: None: answers are written only, and nothing is transcribed."""
    config = config or ServerConfig()
    app = FastAPI(title="omni-lab", description="Questions about pictures, sounds and clips.", docs_url=None)
    app.state.engine, app.state.speech, app.state.config = engine, speech, config
    _add_errors(app)
    add_openai(app, engine, speech, config)
    if speech is not None:
        add_audio(app, speech, config)
        add_realtime(app, engine, speech, config)
        add_page(app)
    add_kserve(app, engine, config)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        engine.telemetry.queue.set(engine.waiting)
        return PlainTextResponse(engine.telemetry.render(), media_type="text/plain; version=0.0.4")

    guard = {"body_bytes": config.limits.body_bytes, "keys": config.keys, "per_minute": config.per_minute}
    app.add_middleware(Guard, telemetry=engine.telemetry, **guard)  # type: ignore[arg-type]
    return app


def _add_errors(app: FastAPI) -> None:
    def respond(request: Request, error: ApiError) -> Response:
        v2 = request.url.path.startswith("/v2")
        content = {"error": error.message} if v2 else error.body
        return JSONResponse(content, status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return respond(request, ApiError(message, code="invalid_value", param=where or None))

    @app.exception_handler(HTTPException)
    async def refused_by_the_framework(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return respond(request, ApiError(message, status=error.status_code, code=CODES.get(error.status_code)))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return respond(request, ApiError.of(error))
