"""The edge of the service, one ASGI layer: request ids, keys, early refusals, errors, metrics, log lines."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from densepath.admission import ByteBudget
from densepath.api.keys import Guard, is_admin
from densepath.api.lifecycle import Lifecycle
from densepath.errors import (
    BodyTooLargeError,
    DeadlineExceededError,
    DensepathError,
    DrainingError,
    InternalError,
    InvalidApiKeyError,
    InvalidRequestError,
    MalformedBodyError,
    MethodNotAllowedError,
    RouteNotFoundError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from densepath.telemetry.metrics import Metrics
from densepath.telemetry.traces import NO_SPAN, Span, Traces

OPEN_ROUTES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::\d*)?")
#: What a browser on this machine calls it. A name that a web page points at this machine is none of these.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Only the playground's page asks in this way: it makes the browser show a login dialogue.
BASIC = b'Basic realm="densepath", charset="UTF-8"'
CLIENT_CLOSED = 499  # nginx's number; only logged and counted, since nobody is there to read it

#: The status and the JSON of an error on a path.
ShapeError = Callable[[DensepathError, str], tuple[int, dict[str, Any]]]

log = structlog.get_logger()


class ClientDisconnectedError(Exception):
    """The client has closed the connection, so nobody reads an answer."""


class Edge:
    """Wraps the whole application. Every error is turned into the contract's JSON here, in one place."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifecycle: Lifecycle,
        guard: Guard,
        max_body_bytes: int,
        request_seconds: float,
        bodies: ByteBudget,
        metrics: Metrics,
        traces: Traces,
        shape_error: ShapeError,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self.app = app
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self.lifecycle, self.guard = lifecycle, guard
        self.max_body_bytes, self.bodies = max_body_bytes, bodies
        self.request_seconds = request_seconds
        self.metrics, self.traces, self.shape_error = metrics, traces, shape_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self.shape_error)
        counted = scope["path"] not in OPEN_ROUTES
        with self.traces.request(Headers(scope=scope)) if counted else NO_SPAN as span:
            try:
                with self.lifecycle.answering() if counted else nullcontext():
                    await self._answer(scope, receive, exchange)
            finally:
                self._record(exchange, counted, span)

    async def _answer(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        try:
            declared, scope["state"]["caller"] = self._refuse_early(scope["path"], Headers(scope=scope))
            with self.bodies.hold(declared) as scope["state"]["body"]:
                await self._within_limit(scope, receive, exchange.send)
        except ClientDisconnectedError:
            exchange.status = CLIENT_CLOSED
        except DensepathError as error:
            await exchange.fail(error)
        except Exception:
            log.exception("request_failed", request_id=exchange.request_id)
            await exchange.fail(
                InternalError("an internal error: search the service's log for this request id")
            )

    async def _within_limit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, which is cancelled when it takes longer than any request may."""
        try:
            # A swap loads a pair, which has no bound, and it has shown the admin key.
            seconds = None if is_admin(scope["path"]) else self.request_seconds
            async with asyncio.timeout(seconds) as limit:
                await self.app(scope, receive, send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceededError(
                f"the request took longer than this service's {self.request_seconds:g} seconds; the work is "
                "cancelled"
            ) from None

    def _refuse_early(self, path: str, headers: Headers) -> tuple[int, bytes | None]:
        """Refuse what can be refused before the body is read.

        Returns the declared bytes of the body, 0 for a probe, whose body is never read; and the hash of the
        caller's key, if there is one.
        """
        if self.allowed_hosts and path not in OPEN_ROUTES and host_name(headers) not in self.allowed_hosts:
            raise InvalidRequestError(
                "the Host header names a host that this service is not: the operator lists its names with "
                "--allowed-hosts",
                param="Host",
            )
        caller = None
        if path not in OPEN_ROUTES:
            caller = self.guard.check(path, headers.get("authorization", ""))
        if "content-encoding" in headers:
            raise UnsupportedMediaTypeError("a body with a Content-Encoding is refused: send it as it is")
        if "transfer-encoding" in headers and "content-length" in headers:
            raise MalformedBodyError("Content-Length and Transfer-Encoding together are refused")
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_body_bytes:
            raise too_large(self.max_body_bytes)
        return (int(declared) if declared.isdecimal() and path not in OPEN_ROUTES else 0), caller

    def _record(self, exchange: _Exchange, counted: bool, span: Span) -> None:
        metrics, scope = self.metrics, exchange.scope
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        elapsed = time.perf_counter() - exchange.began
        metrics.requests.labels(route, method, str(exchange.status)).inc()
        metrics.request_seconds.labels(route).observe(elapsed)
        code = exchange.error.code if exchange.error else None
        if code is not None:
            metrics.rejections.labels(code).inc()
        span.answered(
            method=method,
            route=None if route == "other" else route,
            status=exchange.status,
            request_id=exchange.request_id,
            code=code,
        )
        if counted:
            log.info(
                "request",
                request_id=exchange.request_id,
                method=method,
                route=route,
                status=exchange.status,
                seconds=round(elapsed, 6),
                code=code,
            )


def allowed_hosts(setting: str | None, *, guarded: bool) -> Collection[str]:
    """The names of `--allowed-hosts` and those of this machine. None allows any, which is right with keys.

    A web page whose name leads to this machine has no key, and it never sends the machine's own names.
    """
    if setting is None:
        return () if guarded else LOOPBACK_HOSTS
    names = [name.strip().strip("[]") for name in setting.split(",") if name.strip()]
    return () if "*" in names else (*LOOPBACK_HOSTS, *names)


def host_name(headers: Headers) -> str:
    """The Host header in lower case without its port, and an IPv6 address without its brackets."""
    match = HOST.fullmatch(headers.get("host", ""))
    return (match[1] or match[2]).lower().removesuffix(".") if match else ""


def too_large(max_body_bytes: int) -> BodyTooLargeError:
    """The error of a body that is larger than the limit."""
    return BodyTooLargeError(
        f"the body is over this service's limit of {max_body_bytes} bytes: split it into several requests"
    )


def route_error(status: int, methods: Iterable[str]) -> DensepathError:
    """The contract's error for a status of Starlette's router, on a path that takes `methods`."""
    if status == 405:
        error = MethodNotAllowedError("this route does not take this method: see /openapi.json")
        error.allow = ", ".join(sorted(methods))
        return error
    if status == 404:
        return RouteNotFoundError("there is no such route: see /openapi.json")
    return InternalError("the request could not be routed")


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, shape_error: ShapeError) -> None:
        self.scope = scope
        self._shape_error = shape_error
        self.began = time.perf_counter()
        sent_id = Headers(scope=scope).get("x-request-id", "")
        # Kept only in this shape: it goes to the log and into a header.
        self.request_id = sent_id if REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(
            request_id=self.request_id, began=asyncio.get_running_loop().time()
        )
        self.status = 0
        self.error: DensepathError | None = None
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a message of the answer, with the request id in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self.request_id
        await self._send(message)

    async def fail(self, error: DensepathError) -> None:
        """Answer with an error. An answer that has already begun can only be cut off."""
        self.error = error
        if self.status:
            log.error("answer_cut", request_id=self.request_id, code=error.code)
            raise error
        status, detail = self._shape_error(error, self.scope["path"])
        body = json.dumps(detail).encode()
        await self.send(
            {"type": "http.response.start", "status": status, "headers": self._headers(error, body)}
        )
        await self.send({"type": "http.response.body", "body": body})

    def _headers(self, error: DensepathError, body: bytes) -> list[tuple[bytes, bytes]]:
        headers: list[tuple[bytes, Any]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        retry_after = error.retry_after or (1 if isinstance(error, UnavailableError) else None)
        if retry_after is not None:
            headers.append((b"retry-after", str(retry_after).encode()))
        if isinstance(error, MethodNotAllowedError):
            headers.append((b"allow", error.allow.encode()))
        if isinstance(error, InvalidApiKeyError):
            headers.append((b"www-authenticate", b"Bearer"))
            if self.scope["path"] == "/" or self.scope["path"].startswith("/playground/"):
                headers.append((b"www-authenticate", BASIC))
        if error.status in (400, 408, 413, 415) or isinstance(error, DrainingError):
            # The rest of the body is unread, or the next request belongs to another replica.
            headers.append((b"connection", b"close"))
        return headers
