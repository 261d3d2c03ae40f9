"""`GET /` and `/playground/…`: the page's files, read once from the package, and examples for the page."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from densepath.errors import RouteNotFoundError

PAGE = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Of every answer here. Nothing is loaded from elsewhere, nothing runs or styles that is not a file of the
#: package, and no other site can frame or embed it.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked again each time, and answered 304 where it is unchanged
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def router(examples: Sequence[Mapping[str, Any]]) -> APIRouter:
    """The routes of the page, which offers `examples`. They are not in the OpenAPI document."""
    routes = APIRouter(include_in_schema=False)
    static = _read_static()

    @routes.get("/")
    async def page(request: Request) -> Response:
        """The playground."""
        return static[PAGE].answer(request)

    @routes.get("/playground/examples")
    async def demo_examples() -> Response:
        """Examples of the demo, each with a wrong response besides; none for a pair of one's own."""
        return JSONResponse(list(examples), headers=HEADERS)

    @routes.get("/playground/{name}")
    async def file(name: str, request: Request) -> Response:
        """A file of the page: only the names that were read at the start are answered."""
        if name == PAGE or name not in static:
            raise RouteNotFoundError("there is no such route: see /openapi.json")
        return static[name].answer(request)

    return routes


def _read_static() -> dict[str, _File]:
    found = {}
    for file in (files(__package__) / "static").iterdir():
        media_type = MEDIA_TYPES.get(PurePath(file.name).suffix)
        if media_type is not None:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[file.name] = _File(content, media_type, etag)
    return found
