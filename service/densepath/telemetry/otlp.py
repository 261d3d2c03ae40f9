"""Traces by OpenTelemetry, sent by a thread of their own to a collector that speaks OTLP over HTTP."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import densepath
from densepath.errors import DensepathError
from densepath.telemetry.traces import Span, Traces

#: At the end, for the last batch; a collector that is away costs this and no more.
CLOSE_SECONDS = 2.0

log = structlog.get_logger()


class CollectedTraces(Traces):
    """Traces of one service. Its provider is its own: what else is in the process stays as it was."""

    def __init__(self, exporter: SpanExporter) -> None:
        defaults = {"service.name": "densepath", "service.version": densepath.__version__}
        self._provider = TracerProvider(
            resource=Resource(defaults).merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(_QuietExporter(exporter)))
        self._tracer = self._provider.get_tracer("densepath", densepath.__version__)
        self._propagator = TraceContextTextMapPropagator()
        # It says at each try that a collector is away; _QuietExporter says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    @classmethod
    def to_collector(cls) -> CollectedTraces:
        """To the collector of OpenTelemetry's variables. Raises ValueError where one makes no sense."""
        return cls(OTLPSpanExporter())

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of a whole request; every log line meanwhile has its trace's id."""
        # `tracestate` is left out: it is free text of the client's.
        parent = self._propagator.extract({"traceparent": headers.get("traceparent", "")})
        span = self._tracer.start_span("request", parent, SpanKind.SERVER)
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        with structlog.contextvars.bound_contextvars(trace_id=trace_id), _current(span):
            yield _OpenSpan(span)

    @contextmanager
    def stage(self, name: str) -> Iterator[Span]:
        """A child of the span of the request that is being answered."""
        span = self._tracer.start_span(name)
        with _current(span):
            try:
                yield _OpenSpan(span)
            except BaseException as error:
                _failed(span, error)
                raise

    def close(self) -> None:
        """Send what is left, within CLOSE_SECONDS."""
        # The provider's own end waits for 30 seconds.
        last = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        last.start()
        last.join(CLOSE_SECONDS)


class _OpenSpan(Span):
    """A span that is sent when it ends."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def count(self, **numbers: int) -> None:
        self._span.set_attributes({f"densepath.{what}": number for what, number in numbers.items()})

    def answered(
        self, *, method: str, route: str | None, status: int, request_id: str, code: str | None
    ) -> None:
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


class _QuietExporter(SpanExporter):
    """Says once that the collector does not take spans, and once that it takes them again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter, self._taken = exporter, True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        taken = result is SpanExportResult.SUCCESS
        if taken != self._taken:
            self._taken = taken
            log.warning("traces_are_taken_again" if taken else "traces_are_not_taken")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


@contextmanager
def _current(span: trace.Span) -> Iterator[None]:
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        yield


def _failed(span: trace.Span, error: BaseException) -> None:
    """The error's code or class, and never its words."""
    match error:
        case DensepathError():
            kind, ours = error.code, error.status >= 500
        case asyncio.CancelledError():
            kind, ours = "cancelled", False
        case _:
            kind, ours = type(error).__name__, True
    span.set_attribute("error.type", kind)
    if ours:
        span.set_status(StatusCode.ERROR)
