"""A span for each request and each of its stages. They are sent if the environment names a collector.

OpenTelemetry's own variables switch traces on and configure them. There is no other option. A span holds
routes, counts and codes, and never what a client sent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType

from opentelemetry import context, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import bound_contextvars

from densepath.errors import DensepathError, InvalidRequestError

#: Either variable switches traces on. The second one is for traces only, and has the whole URL.
VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span:
    """A span of OpenTelemetry. It is the current span inside its `with` block."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        if error is not None:
            self._failed(error)
        context.detach(self._token)
        self._span.end()

    def count(self, **numbers: int) -> None:
        """Record counts of the stage: items, tokens, bytes."""
        self._span.set_attributes({f"densepath.{what}": number for what, number in numbers.items()})

    def answered(
        self, *, method: str, route: str | None, status: int, request_id: str, code: str | None
    ) -> None:
        """Record how the request ended: the error's `code`, and the `route` as a template, or None."""
        self._span.update_name(f"{method} {route}" if route else method)
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.response.status_code": status,
            "densepath.request_id": request_id,
        }
        if route:
            attributes["http.route"] = route
        if code:
            attributes["error.type"] = code
        self._span.set_attributes(attributes)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)

    def _failed(self, error: BaseException) -> None:
        """Record the error's code or class, and never its message."""
        match error:
            case DensepathError():
                kind, ours = error.code, error.status >= 500
            case asyncio.CancelledError():
                kind, ours = "cancelled", False
            case _:
                kind, ours = type(error).__name__, True
        self._span.set_attribute("error.type", kind)
        if ours:
            self._span.set_status(StatusCode.ERROR)


#: Used instead of a span for requests that have none.
NO_SPAN = nullcontext(Span(trace.INVALID_SPAN))


class Traces:
    """The traces of one service: with a tracer they are on, without one they are off.

    `close` sends the remaining spans, within a limited time.
    """

    def __init__(self, tracer: trace.Tracer | None = None, close: Callable[[], None] = lambda: None) -> None:
        self._tracer = tracer or trace.NoOpTracer()
        # Without a tracer, a request continues no trace, and its log lines have no trace id.
        self._propagator = TraceContextTextMapPropagator() if tracer else CompositePropagator([])
        self.close = close

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of a whole request, in the trace that its `traceparent` names.

        Every log line that is written during the request has the id of the trace.
        """
        # `tracestate` is left out: it is free text from the client.
        parent = self._propagator.extract({"traceparent": headers.get("traceparent", "")})
        span = self._tracer.start_span("request", parent, SpanKind.SERVER)
        identity = span.get_span_context()
        trace_id = trace.format_trace_id(identity.trace_id)
        in_lines = bound_contextvars(trace_id=trace_id) if identity.is_valid else nullcontext()
        with in_lines, Span(span) as current:
            yield current

    def stage(self, name: str) -> Span:
        """The span of one stage of the current request."""
        return Span(self._tracer.start_span(name))


def open_traces() -> Traces:
    """The traces that the environment asks for.

    Raises InvalidRequestError if it asks for traces that cannot be opened.
    """
    named = [name for name in VARIABLES if os.environ.get(name)]
    if not named:
        return Traces()
    try:
        from densepath.telemetry.otlp import Collected
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            f"{named[0]} asks for traces, which need the package {error.name}: install densepath[otel], or "
            "unset the variable"
        ) from error
    try:
        collected = Collected.by_environment()
    except ValueError as error:
        raise InvalidRequestError(
            f"OpenTelemetry rejects one of its environment variables: {error}"
        ) from error
    return Traces(collected.tracer, collected.close)
