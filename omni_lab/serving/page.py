"""The page to talk to: files that are served as they are, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/worklet.js": "worklet.js"}
POLICY = "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' ws: wss:; frame-ancestors 'none'"


def add_page(app: FastAPI) -> None:
    folder = Path(__file__).parent / "page"
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

    def add(path: str, name: str) -> None:
        @app.get(path, include_in_schema=False)
        async def file() -> Response:
            return FileResponse(folder / name, headers=headers)

    for path, name in FILES.items():
        add(path, name)
