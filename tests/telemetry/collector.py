"""A collector on loopback that speaks OTLP over HTTP: it keeps every span that is sent to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass
class Collector:
    """What has arrived, and how to wait for more."""

    url: str
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def take(self, path: str, body: bytes) -> None:
        """One export."""
        sent = ExportTraceServiceRequest.FromString(body)
        with self.arrived:
            assert path == "/v1/traces"
            self.bodies.append(body)
            for of_resource in sent.resource_spans:
                self.resources.append(plain(of_resource.resource.attributes))
                for scope in of_resource.scope_spans:
                    self.spans.extend(scope.spans)
            self.arrived.notify_all()

    def until(self, condition: Callable[[list[Any]], bool], within: float = 20) -> list[Any]:
        """The spans, once there are those that are waited for."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: condition(self.spans), within), names(self.spans)
            return list(self.spans)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(self.path, body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def names(spans: list[Any]) -> list[str]:
    """The spans' names, in the order of their starts."""
    return [span.name for span in sorted(spans, key=lambda span: span.start_time_unix_nano)]
