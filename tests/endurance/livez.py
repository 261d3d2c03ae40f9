"""Asks /livez again and again, and beside it a server that does nothing: what the machine itself takes."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter


class _Nothing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _serve_nothing(told: Connection) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Nothing)
    told.send(server.server_port)
    server.serve_forever()


def _seconds(port: int) -> float:
    began = perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/livez", headers={"Connection": "close"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 200, answer.status
    return perf_counter() - began


class Livez:
    """Inside the block, `seconds` grows with each question, `idle_seconds` with those to the idle server."""

    def __init__(self, port: int, every: float = 0.05) -> None:
        self.seconds: list[float] = []
        self.idle_seconds: list[float] = []
        self.error: Exception | None = None
        self._port, self._every, self._end = port, every, threading.Event()
        told, child = get_context("spawn").Pipe(duplex=False)
        self._idle = get_context("spawn").Process(target=_serve_nothing, args=(child,), daemon=True)
        self._idle.start()
        self._idle_port = told.recv()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        try:
            while not self._end.wait(self._every):
                self.seconds.append(_seconds(self._port))
                self.idle_seconds.append(_seconds(self._idle_port))
        except Exception as error:
            self.error = error

    def __enter__(self) -> Livez:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=90)
        self._idle.kill()
        self._idle.join()
        if self.error is not None:
            raise AssertionError(f"/livez: {self.error!r}")
