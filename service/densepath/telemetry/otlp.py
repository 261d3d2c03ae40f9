"""A tracer of OpenTelemetry. A separate thread sends its spans to a collector, by OTLP over HTTP."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import densepath

#: The longest time to send the last batch in, seconds, even if the collector does not answer.
CLOSE_SECONDS = 2.0

log = structlog.get_logger()


class Collected:
    """A tracer for one service, with its own provider, so that nothing else in the process is affected."""

    def __init__(self, exporter: SpanExporter) -> None:
        defaults = {"service.name": "densepath", "service.version": densepath.__version__}
        self._provider = TracerProvider(
            resource=Resource(defaults).merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(_QuietExporter(exporter)))
        self.tracer = self._provider.get_tracer("densepath", densepath.__version__)
        # OpenTelemetry logs every failed attempt to reach a collector. _QuietExporter logs only the first.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    @classmethod
    def by_environment(cls) -> Collected:
        """A tracer for the collector in OpenTelemetry's variables. Raises ValueError if one is invalid."""
        return cls(OTLPSpanExporter())

    def close(self) -> None:
        """Send the remaining spans, within CLOSE_SECONDS."""
        # The provider's own shutdown may take 30 seconds.
        last = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        last.start()
        last.join(CLOSE_SECONDS)


class _QuietExporter(SpanExporter):
    """Logs once that the collector does not accept spans, and once that it accepts them again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter, self._taken = exporter, True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        taken = result is SpanExportResult.SUCCESS
        if taken != self._taken:
            self._taken = taken
            log.warning("traces_are_accepted_again" if taken else "traces_are_not_accepted")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
