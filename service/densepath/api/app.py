"""The application: all routes, the edge and the OpenAPI document, put together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

import densepath
from densepath.api import admin, openapi, playground, routes
from densepath.api import rewards as scoring
from densepath.api.compat import completions, openrlhf, sglang
from densepath.api.compat import vllm_generate as token_generate
from densepath.api.compat.errors import answer_of
from densepath.api.edge import Edge, route_error
from densepath.api.keys import Guard
from densepath.api.service import Service
from densepath.api.swap import Swapping


def create_app(
    service: Service,
    *,
    engine: str,
    guard: Guard | None = None,
    allowed_hosts: Collection[str] = (),
    examples: Sequence[Mapping[str, Any]] = (),
    swapping: Swapping | None = None,
) -> FastAPI:
    """All routes over one `Service`. Without `allowed_hosts`, the Host header may be any.

    The playground offers `examples`: prompts with two responses each. Without `swapping`, the pair stays as
    it is.
    """
    app = FastAPI(
        title="densepath",
        version=densepath.__version__,
        summary="Dense rewards from two checkpoints of one SFT run",
        docs_url=None,  # FastAPI's page loads its scripts from another site
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the client's path and Host
    )
    for router in (
        scoring.router(service),
        routes.health(service),
        routes.about(service, engine),
        routes.tokenizing(service),
        completions.router(service),
        token_generate.router(service),
        sglang.router(service),
        openrlhf.router(service),
        playground.router(examples),
        admin.router(service, swapping),
    ):
        app.include_router(router)
    app.add_exception_handler(HTTPException, _raise_route_error)
    app.add_middleware(
        Edge,
        lifecycle=service.lifecycle,
        guard=guard or Guard(),
        max_body_bytes=service.limits.max_body_bytes,
        request_seconds=service.limits.request_seconds,
        bodies=service.bodies,
        metrics=service.metrics,
        traces=service.traces,
        shape_error=answer_of,
        allowed_hosts=allowed_hosts,
    )
    app.openapi = partial(openapi.document, app, app.openapi)  # type: ignore[method-assign]  # FastAPI's own hook
    return app


async def _raise_route_error(request: Request, error: Exception) -> Response:
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
    raise route_error(error.status_code if isinstance(error, HTTPException) else 500, methods)
