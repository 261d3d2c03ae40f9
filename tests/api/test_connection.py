"""What only a raw connection shows: slow and smuggled requests, early answers, connections that go on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from api.bodies import CANARY, GOOD, body
from api.running import Running, make_service, read_all, running
from densepath.api.protocol import BoundedProtocol
from densepath.config import Limits
from densepath.pair.pair import Pair

JSON_HEAD = b"Host: x\r\nContent-Type: application/json\r\n"
POST = b"POST /v1/rewards HTTP/1.1\r\n" + JSON_HEAD
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


def sized(content: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(content) + content


def answers(received: bytes) -> list[tuple[int, bytes]]:
    """The status and body of each answer on a connection; every one has its length."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        lengths = [int(line[15:]) for line in lines[1:] if line.lower().startswith(b"content-length:")]
        assert len(lengths) == (status != 100), head
        found.append((status, rest[: sum(lengths)]))
        received = rest[sum(lengths) :]
    return found


def only_code(received: bytes) -> tuple[int, str]:
    """Status and code of the one answer."""
    [(status, content)] = answers(received)
    assert b"x-request-id: " in received.lower()
    assert CANARY.encode() not in received
    return status, json.loads(content)["error"]["code"]


@pytest.mark.parametrize(
    "request_bytes",
    {
        "length and chunks": POST + b"Transfer-Encoding: chunked\r\n" + sized(b"0\r\n\r\n" + LIVE + b"\r\n"),
        "chunks and length": POST
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + LIVE
        + b"\r\n",
        "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}" + LIVE + b"\r\n",
        "a length below 0": POST + b"Content-Length: -1\r\n\r\n" + LIVE + b"\r\n",
        "a length of 400 digits": POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
        "an unknown coding": POST + b"Transfer-Encoding: c4n4ry\r\n\r\n" + LIVE + b"\r\n",
        "a space before the colon": POST + b"Content-Length : 2\r\n\r\n{}" + LIVE + b"\r\n",
        "line feeds alone": LIVE.replace(b"\r", b"") + b"\n" + LIVE + b"\r\n",
        "a line feed alone in a header": LIVE + b"X-A: c4n4ry\nX-B: a\r\n\r\n" + LIVE + b"\r\n",
        "a chunk that ends in a line feed": POST
        + b"Transfer-Encoding: chunked\r\n\r\n1\n{\n0\n\n"
        + LIVE
        + b"\r\n",
        "a bad chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + LIVE + b"\r\n",
        "no HTTP": b"c4n4ry c4n4ry\r\n\r\n",
        "a NUL in a header": LIVE + b"X-A: \x00c4n4ry\r\n\r\n",
        "a bare CR in a header": LIVE + b"X-A: a\rX-B: c4n4ry\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    }.items(),
    ids=lambda pair: pair[0],
)
def test_row_38_what_is_not_http_gets_one_answer(request_bytes: tuple[str, bytes], served: Running) -> None:
    assert only_code(served.speak(request_bytes[1])) == (400, "malformed_body")
    served.idle()


def test_headers_over_the_limit_end(served: Running) -> None:
    with served.connect() as raw:
        raw.sendall(LIVE)
        try:
            for _ in range(200):
                raw.sendall(b"X-A: " + CANARY.encode() * 1000 + b"\r\n")
        except OSError:
            pytest.fail("the connection was reset before the answer could be read")
        assert only_code(read_all(raw)) == (400, "malformed_body")


def test_row_39_slow_headers_are_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "header_seconds", 0.2)
    with running(make_service(pair)) as served:
        assert only_code(served.speak(LIVE)) == (408, "request_timeout")
        assert only_code(served.speak(b"")) == (408, "request_timeout")
        with served.connect() as raw:  # the second request of a connection
            raw.sendall(LIVE + b"\r\n" + LIVE)
            assert [status for status, _ in answers(read_all(raw))] == [200, 408]
        with served.connect() as raw:  # a kept connection may rest
            raw.sendall(LIVE + b"\r\n")
            raw.recv(65536)
            served.speak(LIVE)  # takes longer than the bound
            raw.sendall(LIVE + b"Connection: close\r\n\r\n")
            assert answers(read_all(raw))[0][0] == 200


@pytest.mark.parametrize("head", [POST, POST.replace(b"1.1", b"1.0"), POST + b"Connection: close\r\n"])
def test_row_39_a_slow_body_is_refused(head: bytes, pair: Pair) -> None:
    with running(make_service(pair, limits=Limits(body_seconds=0.2))) as served:
        assert only_code(served.speak(head + b"Content-Length: 100\r\n\r\n{")) == (408, "request_timeout")
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
        if b"1.0" not in head:
            assert only_code(served.speak(chunked)) == (408, "request_timeout")
        served.idle()


def test_row_07_a_declared_body_over_the_limit_is_refused_unread(served: Running) -> None:
    head = POST + b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n"
    assert only_code(served.speak(head)) == (413, "body_too_large")


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["kept", "closed"])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_client_that_is_still_sending_can_read_its_413(
    headers: dict[str, str], chunked: bool, served: Running
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield CANARY.encode() * 20_000

    content: bytes | Iterator[bytes] = chunks() if chunked else b"".join(chunks())
    for _ in range(5):
        answer = served.client.post(
            "/v1/rewards", content=content, headers={"Content-Type": "application/json", **headers}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        content = chunks() if chunked else content
    assert served.score(GOOD).status_code == 200


def test_a_http_10_client_that_is_still_sending_can_read_its_413(served: Running) -> None:
    content = b"x" * 10_000_000
    received = served.speak(POST.replace(b"1.1", b"1.0") + sized(content))
    assert only_code(received) == (413, "body_too_large")


def send_for_ever(raw: socket.socket, chunk: bytes) -> None:
    while True:
        raw.sendall(chunk)


def test_row_08_endless_chunks_end(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.api.protocol.LINGER_SECONDS", 0.2)
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with served.connect() as raw:
        raw.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_for_ever(raw, chunk)
    served.idle()


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [("/v1/rewards", body({}), 422), ("/no", b"{}", 404), ("/livez", b"{}", 405), ("/tokenize", b"[]", 422)],
)
def test_a_connection_goes_on_after_an_error(path: str, content: bytes, status: int, served: Running) -> None:
    head = b"POST " + path.encode() + b" HTTP/1.1\r\n" + JSON_HEAD
    good = POST + b"Connection: close\r\n" + sized(body(GOOD))
    found = answers(served.speak(head + sized(content) + good))
    assert [code for code, _ in found] == [status, 200]
    assert json.loads(found[1][1])["object"] == "rewards"


def test_pipelined_requests_are_answered_in_order(served: Running) -> None:
    requests = [POST + sized(body({**GOOD, "id": str(i)})) for i in range(20)]
    received = served.speak(b"".join(requests) + LIVE + b"Connection: close\r\n\r\n")
    found = answers(received)
    assert [json.loads(content)["items"][0]["id"] for _, content in found[:-1]] == [str(i) for i in range(20)]
    assert found[-1][0] == 200


def test_head_has_no_body(served: Running) -> None:
    with served.connect() as raw:
        raw.sendall(LIVE.replace(b"GET", b"HEAD") + b"\r\n" + LIVE + b"Connection: close\r\n\r\n")
        head, rest = read_all(raw).split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200")
    assert rest.startswith(b"HTTP/1.1 200")


def test_expect_continue_is_answered_once_the_body_is_wanted(served: Running) -> None:
    content = body(GOOD)
    with served.connect() as raw:
        head = POST + b"Expect: 100-continue\r\nConnection: close\r\n"
        raw.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content))
        assert raw.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(content)
        assert answers(read_all(raw))[0][0] == 200


def test_an_upgrade_is_an_ordinary_request(served: Running) -> None:
    upgrade = b"Upgrade: websocket\r\nConnection: upgrade, close\r\n\r\n"
    assert [status for status, _ in answers(served.speak(LIVE + upgrade))] == [200]


def test_row_40_request_ids_are_echoed_or_made(served: Running) -> None:
    assert (
        served.client.get("/livez", headers={"X-Request-Id": "a.b_c-9"}).headers["x-request-id"] == "a.b_c-9"
    )
    for odd in ("", "a" * 65, "with space", "new\\nline", "ü"):
        answer = served.client.get("/livez", headers=httpx.Headers({"X-Request-Id": odd}, encoding="utf-8"))
        assert answer.headers["x-request-id"].isalnum()
        assert len(answer.headers["x-request-id"]) == 32
