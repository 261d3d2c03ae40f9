"""SIGTERM to a real process: readiness drops, what is in flight is finished, and it exits 0."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

import httpx
import pytest

from api.bodies import GOOD
from api.drained import STUCK_ID

HERE = Path(__file__).parent
SERVICE = HERE.parents[1] / "service"
STUCK = {**GOOD, "response_token_ids": [5, STUCK_ID]}


class Process:
    """A service in a process of its own."""

    def __init__(self, popen: subprocess.Popen[str], port: int) -> None:
        self.popen = popen
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.pool = ThreadPoolExecutor(8)
        self.logged: list[dict[str, object]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read_log)
        self.reader.start()

    def _read_log(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def until_logged(self, event: str | None) -> None:
        """Read log lines, each of them JSON, up to this event, or to the end."""
        while line := self._lines.get(timeout=30):
            self.logged.append(json.loads(line))
            if self.logged[-1]["event"] == event:
                return
        assert event is None, f"the service ended without {event}: {self.logged}"

    def post(self, *items: object) -> httpx.Response:
        return self.client.post("/v1/rewards", json={"items": list(items)})

    def start_stuck(self) -> Future[httpx.Response]:
        """A request that is in the engine once this returns."""
        before = self.running()
        answer = self.pool.submit(self.post, STUCK)
        while self.running() == before:
            assert not answer.done(), answer.result().text
        return answer

    def running(self) -> str:
        [line] = [
            line
            for line in self.client.get("/metrics").text.splitlines()
            if line.startswith("densepath_running_sequences")
        ]
        return line

    def open_gate(self) -> None:
        stdin: IO[str] | None = self.popen.stdin
        assert stdin is not None
        stdin.write("\n")
        stdin.flush()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def ends(self) -> int:
        """Its exit status; whatever it still writes is JSON lines."""
        self.until_logged(None)
        return self.popen.wait(timeout=30)


class Start(Protocol):
    """Starts a service, up to this stage."""

    def __call__(self, drain_seconds: float, stage: str | None = None) -> Process: ...


@pytest.fixture
def start(pair_dirs: tuple[Path, Path], tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def begin(drain_seconds: float, stage: str | None = None) -> Process:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        arguments = [str(port), str(drain_seconds), *map(str, pair_dirs), str(tmp_path)]
        arguments += [stage] if stage else []
        popen = subprocess.Popen(
            [sys.executable, HERE / "drained.py", *arguments],
            env={**os.environ, "PYTHONPATH": str(SERVICE)},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(Process(popen, port))
        if stage is None:
            started[-1].until_logged("ready")
        with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as first:  # it may not listen yet
            while stage is not None:
                with contextlib.suppress(httpx.ConnectError):
                    if stage in first.get(f"http://127.0.0.1:{port}/readyz").text:
                        break
            assert first.get(f"http://127.0.0.1:{port}/readyz").status_code == (503 if stage else 200)
        return started[-1]

    yield begin
    for process in started:
        process.popen.kill()
        process.pool.shutdown()
        process.client.close()
        process.reader.join()
        for stream in (process.popen.stdin, process.popen.stderr):
            assert stream is not None
            stream.close()
        process.popen.wait()


def refused(process: Process, path: str = "/readyz") -> str:
    answer = process.client.get(path) if path != "/v1/rewards" else process.post(GOOD)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    return str(answer.json()["error"]["code"])


def test_row_24_a_drain_loses_nothing(start: Start) -> None:
    process = start(30.0)
    assert process.client.get("/readyz").status_code == 200
    stuck = [process.start_stuck() for _ in range(3)]
    assert process.post(GOOD).status_code == 200
    process.signal()
    process.until_logged("draining")
    assert refused(process) == refused(process, "/health") == "draining"
    assert refused(process, "/v1/rewards") == "draining"
    assert process.client.get("/livez").status_code == 200
    assert not any(answer.done() for answer in stuck)
    process.open_gate()
    for answer in stuck:
        assert answer.result().status_code == 200
        assert len(answer.result().json()["items"][0]["rewards"]) == 2
    assert process.ends() == 0
    with pytest.raises(httpx.ConnectError):
        process.client.get("/livez")


def test_row_24_under_load_every_request_that_was_read_is_answered(start: Start) -> None:
    process = start(30.0)
    ended: list[int] = []

    def load() -> None:
        # Connections that come as the listener closes are refused or reset, before a request is read.
        with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=process.client.base_url) as own:
            while True:
                answer = own.post("/v1/rewards", json={"items": [GOOD] * 5}, headers={"Connection": "close"})
                ended.append(answer.status_code)

    loads = [process.pool.submit(load) for _ in range(4)]
    stuck = process.start_stuck()
    while 200 not in ended:
        assert not any(each.done() for each in loads)
    process.signal()
    process.until_logged("draining")
    while 503 not in ended:
        assert not any(each.done() for each in loads)
    process.open_gate()
    assert stuck.result().status_code == 200
    assert process.ends() == 0
    for each in loads:
        each.result()
    assert set(ended) == {200, 503}
    logged = [line["status"] for line in process.logged if line["event"] == "request"]
    assert Counter(logged) == Counter([*ended, 200])


def test_an_idle_service_leaves_at_once(start: Start) -> None:
    process = start(30.0)
    process.signal(signal.SIGINT)
    assert process.ends() == 0


@pytest.mark.parametrize("stage", ["starting", "verifying", "degraded"])
def test_a_service_that_is_not_ready_leaves_at_once(stage: str, start: Start) -> None:
    process = start(600.0, stage)
    assert refused(process) == "engine_unavailable"
    assert process.client.get("/livez").status_code == 200
    process.signal()
    assert process.ends() == 0


def test_row_25_what_is_left_after_the_bound_is_told_so(start: Start) -> None:
    process = start(0.2)
    stuck = process.start_stuck()
    process.signal()
    assert stuck.result().status_code == 503
    assert stuck.result().json()["error"]["code"] == "draining"
    assert process.ends() == 0


def test_row_25_a_second_signal_ends_the_wait(start: Start) -> None:
    process = start(600.0)
    stuck = process.start_stuck()
    process.signal()
    process.until_logged("draining")
    process.signal()
    assert stuck.result().json()["error"]["code"] == "draining"
    assert process.ends() == 0


def test_a_body_that_is_still_on_its_way_is_told_so(start: Start) -> None:
    process = start(0.2)
    address = (process.client.base_url.host, process.client.base_url.port)
    with socket.create_connection(address, timeout=10) as raw:
        raw.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n{")
        assert raw.recv(25, socket.MSG_WAITALL).startswith(b"HTTP/1.1 100")  # it is being read
        process.signal()
        assert raw.recv(1000).startswith(b"HTTP/1.1 503")
    assert process.ends() == 0


def test_a_client_that_does_not_read_cannot_hold_the_process(start: Start) -> None:
    process = start(1.0)
    address = (process.client.base_url.host, process.client.base_url.port)
    content = json.dumps({"items": [{**GOOD, "id": "x" * 100_000}] * 200}).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(10)
        raw.connect(address)
        raw.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        raw.recv(1)  # the answer, of which nothing more is read
        process.signal()
        assert process.ends() == 0
