"""Log lines: one JSON object each, whatever a client sends and whoever writes."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from typing import Any

import pytest
import structlog

from api.bodies import CANARY, GOOD
from api.running import make_service, running
from densepath.pair.pair import Pair
from densepath.telemetry.logs import MOST_WARNINGS, configure_logs


def lines(written: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in written.splitlines()]
    assert all(isinstance(line, dict) for line in found)
    return found


def test_row_40_a_request_is_one_line_without_what_was_sent(
    capsys: pytest.CaptureFixture[str], pair: Pair
) -> None:
    odd = CANARY + "\x1b[31m" + "%0a%1b" + "z" * 3000
    configure_logs()
    with running(make_service(pair), keys=("k3y",)) as served:
        capsys.readouterr()
        key = {"Authorization": "Bearer k3y"}
        served.client.get("/v1/pair", headers={**key, "X-Request-Id": "mine"})
        served.client.get(f"/{CANARY}%0a%1b[31m", headers={**key, "X-Request-Id": CANARY + "\\n" * 99})
        served.client.post("/v1/rewards", json={"items": [GOOD], "model": odd}, headers=key)
        served.client.post("/v1/rewards", json={"items": [GOOD]})
        served.client.get("/livez")  # probes are counted and not logged
        served.speak(b"not HTTP\r\n\r\n")
        served.idle()
        written = capsys.readouterr().err
    found = lines(written)
    requests = [line for line in found if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 404, 404, 401]
    assert [line["code"] for line in requests] == [
        None,
        "route_not_found",
        "model_not_found",
        "invalid_api_key",
    ]
    assert requests[0]["request_id"] == "mine"
    assert [line["route"] for line in requests] == ["/v1/pair", "other", "/v1/rewards", "other"]
    for line in found:
        assert {"event", "level", "timestamp"} <= line.keys()
    assert CANARY not in written
    assert "k3y" not in written
    assert "\x1b" not in written


def test_row_40_what_libraries_say_is_such_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    logging.getLogger("uvicorn.error").warning("two\nlines of %s", "\x1b[31m")
    try:
        raise ValueError("three\nmore")
    except ValueError:
        logging.getLogger("other").exception("it failed")
    logging.getLogger("other").info("not worth a line")
    first, second = lines(capsys.readouterr().err)
    assert first["event"] == "two\nlines of \x1b[31m"
    assert first["level"] == "warning"
    assert "ValueError: three\nmore" in second["exception"]


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    structlog.get_logger("densepath").info("hello", text="a\nb\x1b", number=1)
    written = capsys.readouterr()
    assert written.out == ""
    [line] = lines(written.err)
    assert line["text"] == "a\nb\x1b"
    assert written.err.count("\n") == 1


def test_a_line_that_cannot_be_written_fails_no_request(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    closed = io.StringIO()
    closed.close()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stderr", closed)
        configure_logs()
    with running(make_service(pair)) as served:
        assert served.client.get("/v1/pair").status_code == 200
        assert served.client.post("/v1/rewards", json={"items": [GOOD]}).status_code == 200


def test_a_full_or_closed_pipe_stops_nothing(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    read, write = os.pipe()
    with monkeypatch.context() as patched, open(write, "w") as stream:
        patched.setattr("sys.stderr", stream)
        patched.setattr("densepath.telemetry.logs.MOST_LINES", 1 << 30)
        configure_logs()
        log = structlog.get_logger("densepath")
        with running(make_service(pair)) as served:
            log.info("one that is cut", text="x" * 1_000_000)
            for _ in range(20):
                assert served.client.get("/v1/pair").status_code == 200
            first = b""
            while not first.endswith(b"x" * 10) or len(first) < 60_000:
                first += os.read(read, 1 << 20)
            time.sleep(1.0)  # the next second says what was dropped
            assert served.client.get("/v1/pair").status_code == 200
            after = b""
            while b'"log_lines_dropped"' not in after or not after.endswith(b"\n"):
                after += os.read(read, 1 << 20)
            found = [json.loads(line) for line in after.decode().splitlines()[1:]]  # after the cut one
            [dropped] = [line["count"] for line in found if line["event"] == "log_lines_dropped"]
            assert dropped >= 20  # the last request's line may have come when there was room again
            os.close(read)
            for _ in range(5):
                assert served.client.get("/v1/pair").status_code == 200


def test_one_event_has_a_bounded_number_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    for number in range(1000):
        logging.getLogger("asyncio").error("socket.accept() out of system resource")
        logging.getLogger("other").warning("number %s", number)
    found = lines(capsys.readouterr().err)
    assert len(found) <= 2 * 2 * MOST_WARNINGS + 1  # the test may see two seconds
    assert {line["event"] for line in found} > {"socket.accept() out of system resource", "number 0"}
