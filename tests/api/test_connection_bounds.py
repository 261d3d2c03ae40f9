"""What one connection may take, and how many there may be: all of it without a key."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from api.bodies import GOOD
from api.running import Running, make_service, running
from api.test_connection import JSON_HEAD, LIVE, POST, answers, only_code
from densepath.api.protocol import HEADER_BYTES, PROBE_CONNECTIONS, BoundedProtocol
from densepath.config import Limits
from densepath.pair.pair import Pair

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
LINES = b"x-a: " + b"y" * 40 + b"\r\n"


def send_until_refused(raw: socket.socket, part: bytes, most: int) -> int:
    """Send `part` again and again; the bytes that were taken."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            raw.sendall(part)
            sent += len(part)
    return sent


def read_alive(raw: socket.socket) -> None:
    """Read one answer of /livez."""
    received = b""
    while not received.endswith(b'{"status":"alive"}'):
        received += raw.recv(65536)


@pytest.mark.parametrize(
    ("head", "part"),
    {
        "trailers": (LIVE + CHUNKED + b"0\r\n", LINES * 1000),
        "one trailer": (LIVE + CHUNKED + b"0\r\nx-a: ", b"y" * 50_000),
        "an extension of a chunk": (LIVE + CHUNKED + b"1;a=", b"y" * 50_000),
        "blank lines": (LIVE + b"\r\n", b"\r\n" * 30_000),
        "a body that nobody reads": (LIVE + b"Content-Length: 900000000\r\n\r\n", b"y" * 50_000),
    }.values(),
    ids=["trailers", "one trailer", "an extension of a chunk", "blank lines", "a body that nobody reads"],
)
def test_row_39_what_never_ends_is_ended(
    head: bytes, part: bytes, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densepath.api.protocol.LINGER_SECONDS", 0.2)
    with served.connect() as raw:
        raw.sendall(head)
        send_until_refused(raw, part, 900_000_000)  # the connection times out if it is still read
        assert send_until_refused(raw, b"x" * 100_000, 50_000_000) < 50_000_000
    assert served.score(GOOD).status_code == 200


@pytest.mark.parametrize("path", [b"/livez", b"/nowhere", b"/v1/pair"])
def test_an_answer_before_the_body_closes_the_connection(path: bytes, served: Running) -> None:
    for method in (b"GET", b"POST"):
        head = method + b" " + path + b" HTTP/1.1\r\n" + JSON_HEAD
        for framing in (b"Content-Length: 100\r\n\r\n{", CHUNKED + b"1\r\n{\r\n"):
            received = served.speak(head + framing)  # to the end of the connection
            assert b"connection: close" in received.lower()
            assert len(answers(received)) == 1


def test_blank_lines_on_a_resting_connection_are_timed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "header_seconds", 0.3)
    with running(make_service(pair)) as served, served.connect() as raw:
        raw.sendall(LIVE + b"\r\n")
        read_alive(raw)
        until = time.monotonic() + 20
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                raw.sendall(b"\r\n")
                raw.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    assert only_code(raw.recv(65536)) == (408, "request_timeout")
                    return
        pytest.fail("the connection was still open")


def test_headers_are_counted_within_one_packet_too(served: Running) -> None:
    received = served.speak(LIVE + LINES * (HEADER_BYTES // 40) + b"\r\n")
    assert only_code(received) == (400, "malformed_body")


def test_trailers_within_the_bound_change_nothing(served: Running) -> None:
    content = json.dumps({"items": [GOOD]}).encode()
    body = b"%x\r\n%s\r\n0\r\nContent-Type: text/plain\r\nX-Request-Timeout: 0\r\n\r\n" % (
        len(content),
        content,
    )
    received = served.speak(POST + CHUNKED + body + LIVE + b"Connection: close\r\n\r\n")
    assert [status for status, _ in answers(received)] == [200, 200]


def test_row_04_a_client_that_never_reads_is_cut_off(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "write_seconds", 0.2)
    items = [{"prompt_token_ids": [1], "response_token_ids": [5] * 60}] * 256
    content = json.dumps({"items": items, "include": ["logprobs", "returns", "tokens"]}).encode()
    with running(make_service(pair)) as served, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", served.port))
        raw.settimeout(10)
        with contextlib.suppress(OSError):
            for _ in range(20):
                raw.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        labels = {"route": "/v1/rewards", "method": "POST", "status": "200"}
        served.until(lambda: served.metric("densepath_http_requests_total", **labels) > 0)
        served.until(lambda: not served.connections)  # it still has not read a byte
        served.idle()


def test_row_39_beyond_the_most_connections_only_probes_are_answered(pair: Pair) -> None:
    limits = Limits(max_connections=4, max_connections_per_address=3)
    with running(make_service(pair, limits=limits)) as served, contextlib.ExitStack() as held:
        for _ in range(3):
            raw = held.enter_context(served.connect())
            raw.sendall(LIVE)  # never ends
        served.until(lambda: len(served.connections) == 3)
        for _ in range(3):
            assert answers(served.speak(LIVE + b"\r\n"))[0][0] == 200
            received = served.speak(POST + b"Content-Length: 2\r\n\r\n{}")
            assert only_code(received) == (503, "overloaded")
            assert b"retry-after: 1\r\n" in received
        for _ in range(PROBE_CONNECTIONS):
            held.enter_context(served.connect()).sendall(LIVE)
        served.until(lambda: len(served.connections) == 3 + PROBE_CONNECTIONS)
        assert answers(served.speak(LIVE + b"Connection: close\r\n\r\n"))[0][0] == 200


def test_a_resting_connection_makes_room(pair: Pair) -> None:
    with (
        running(make_service(pair, limits=Limits(max_connections=2))) as served,
        contextlib.ExitStack() as held,
    ):
        first, second = (held.enter_context(served.connect()) for _ in range(2))
        for raw in (first, second):
            raw.sendall(LIVE + b"\r\n")
            read_alive(raw)
        assert answers(served.speak(LIVE + b"\r\n"))[0][0] == 200
        closed = []
        for raw in (first, second):
            raw.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                closed.append(raw.recv(100))
        assert closed == [b""]
        served.until(lambda: len(served.connections) == 1)
        assert served.score(GOOD).status_code == 200


@pytest.mark.parametrize("path", [b"/v1/rewards", b"/tokenize"])
def test_row_39_a_request_is_bounded_in_total(path: bytes, pair: Pair) -> None:
    with running(make_service(pair, limits=Limits(request_seconds=0.3))) as served:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\n" % path + JSON_HEAD
        received = served.speak(head + b"Content-Length: 100\r\n\r\n{")  # its body has 30 seconds
        assert only_code(received) == (504, "deadline_exceeded")
        served.idle()


@pytest.mark.parametrize("chunked", [False, True])
def test_row_08_bodies_in_flight_are_bounded_together(chunked: bool, pair: Pair) -> None:
    size = 2 << 20
    limits = Limits(max_body_bytes=size)
    with running(make_service(pair, limits=limits)) as served, contextlib.ExitStack() as held:
        part = b"%x\r\n" % (size - 1) + b" " * (size - 1) + b"\r\n"
        head = POST + (CHUNKED + part if chunked else b"Content-Length: %d\r\n\r\n" % size)
        for count in range(1, 4):
            held.enter_context(served.connect()).sendall(head)
            served.until(lambda count=count: served.service.bodies.held_bytes >= count * (size - 1))
        assert only_code(served.speak(head)) == (503, "overloaded")
        assert served.score(GOOD).status_code == 200
        assert served.client.get("/livez").status_code == 200
        held.close()
        served.idle()
        assert served.service.bodies.held_bytes == 0
