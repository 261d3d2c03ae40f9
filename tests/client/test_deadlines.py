"""A deadline holds whatever the other side does, and an answer has a largest size. Real sockets.

A client without this waits for as long as the other side likes, and the test's own timeout ends it.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from client.conftest import Blocking
from densepath.client import Client
from densepath.errors import DeadlineExceededError, InternalError

pytestmark = pytest.mark.timeout(60)

ITEM = {"prompt_token_ids": [1], "response_token_ids": [7]}
LIMITS = {"max_items": 256, "max_body_bytes": 1 << 25, "max_queued_tokens": 1 << 22}
PAIR = json.dumps({"version": "v1", "limits": LIMITS}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-safetensors\r\n"
DEADLINE = 0.4

#: What is sent first, and what is sent again and again after it.
DRIPS = {
    "body": (HEAD + b"Content-Length: 60000\r\n\r\n", b"x"),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "head": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "status line": (b"", b"H"),
    "1xx": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "silence": (b"", b""),
}


class Server:
    """Answers GET /v1/pair, and then does on each connection what `handle` does, until the test ends."""

    def __init__(self, handle: Callable[[socket.socket, threading.Event], None]) -> None:
        self.handle, self.done = handle, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while not self.done.is_set():
            connection, _ = self.listener.accept()
            self.threads.append(threading.Thread(target=self.serve, args=(connection,)))
            self.threads[-1].start()

    def serve(self, connection: socket.socket) -> None:
        connection.settimeout(30)
        with closing(connection):
            try:
                if connection.recv(12, socket.MSG_PEEK) == b"GET /v1/pair":
                    connection.recv(65536)
                    length = f"Content-Length: {len(PAIR)}\r\nConnection: close\r\n\r\n".encode()
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + length + PAIR
                    )
                else:
                    self.handle(connection, self.done)
            except OSError:
                pass  # the client has gone

    def close(self) -> None:
        self.done.set()
        socket.create_connection(self.listener.getsockname()).close()  # wakes accept
        for thread in self.threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
        self.listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    servers = []

    def start(handle: Callable[[socket.socket, threading.Event], None]) -> str:
        servers.append(Server(handle))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def open_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    clients = []

    def make(url: str) -> Any:
        clients.append(request.param(url))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def dripping(first: bytes, again: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def handle(connection: socket.socket, done: threading.Event) -> None:
        connection.sendall(first)
        while not done.wait(0.05):
            connection.sendall(again)

    return handle


@pytest.mark.parametrize("what", DRIPS)
def test_row_50_a_drip_does_not_hold_a_call_past_its_deadline(
    open_client: Callable[..., Any], serve: Callable[..., str], what: str
) -> None:
    client = open_client(serve(dripping(*DRIPS[what])))
    with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
        client.score([ITEM], deadline=DEADLINE)


def test_a_service_that_reads_nothing_does_not_hold_a_call_past_its_deadline(
    open_client: Callable[..., Any], serve: Callable[..., str]
) -> None:
    client = open_client(serve(lambda connection, done: done.wait(30) and None))
    item = {"prompt_token_ids": [1], "response_token_ids": [7] * 2_500_000}
    client.pair()
    with pytest.raises(DeadlineExceededError):
        client.score([item], deadline=1.5)


def test_a_handshake_that_does_not_end_does_not_hold_a_call_past_its_deadline(
    open_client: Callable[..., Any], serve: Callable[..., str]
) -> None:
    client = open_client(serve(lambda connection, done: done.wait(30) and None).replace("http:", "https:"))
    with pytest.raises(DeadlineExceededError):
        client.score([ITEM], deadline=DEADLINE)


def test_a_name_that_resolves_slowly_does_not_hold_a_call_past_its_deadline(
    open_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        over.wait(30)
        raise socket.gaierror("no such name")

    client = open_client("http://slow.invalid:8000")
    monkeypatch.setattr("socket.getaddrinfo", slow)
    try:
        with pytest.raises(DeadlineExceededError):
            client.score([ITEM], deadline=DEADLINE)
    finally:
        over.set()


def test_a_name_with_a_deadline_is_resolved_and_reached(
    open_client: Callable[..., Any], serve: Callable[..., str]
) -> None:
    handle = dripping(b"HTTP/1.1 422 x\r\nContent-Length: 2\r\n\r\n{}", b"")
    client = open_client(serve(handle).replace("127.0.0.1", "localhost"))
    with pytest.raises(ValueError, match="status 422"):
        client.score([ITEM], deadline=20)


@pytest.mark.parametrize("status", [b"200 OK", b"500 x"])
@pytest.mark.parametrize("declared", [True, False])
def test_an_answer_without_end_is_refused(
    open_client: Callable[..., Any], serve: Callable[..., str], status: bytes, declared: bool
) -> None:
    length = b"Content-Length: 9999999999" if declared else b"Transfer-Encoding: chunked"
    sent = 0

    def endless(connection: socket.socket, done: threading.Event) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + length + b"\r\n\r\n")
        while not done.is_set():
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536

    client = open_client(serve(endless))
    with pytest.raises(InternalError, match=r"larger than \d+ bytes"):
        client.score([ITEM])
    assert sent < 32 << 20  # what is left of it is in the buffers of the sockets


def test_a_small_body_that_unpacks_without_end_is_refused(connect: Any, service: Any) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    service.instead = [
        lambda request: httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=bomb)
    ]
    with pytest.raises(InternalError, match="larger than"):
        connect(service).score([ITEM])


def test_readiness_is_known_within_a_time(
    open_client: Callable[..., Any], serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sync", "aio"):
        monkeypatch.setattr(f"densepath.client.{module}.READY_SECONDS", 0.2)
    assert not open_client(serve(dripping(*DRIPS["head"]))).ready()
