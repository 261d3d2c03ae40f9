"""A real `densepath serve` in its own process, and other commands.

Most are forked from a process that has imported torch and vLLM (`forked`): these imports are nearly all of
what a start costs. With `fresh`, a command is a new interpreter, as its users start it. So are the served
demo, the pairs of `test_served_pair.py`, of which one is killed by SIGKILL, and what is installed from the
wheel in `release/test_install.py` (serve and score). So is each other command once: sft, train and report by
the demo in `demo/test_method.py`, eval and probe of the pages in `docs`, check in `engine/test_start.py`.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

import forked

STARTED_WITHIN = 240.0  # seconds: a first import of vLLM on two busy cores


@dataclass(frozen=True)
class Demo:
    """The demo pair, served by the real engine."""

    url: str
    sft: Path
    reference: Path
    log: Path


@dataclass(frozen=True)
class Service:
    """A service that may not be ready yet."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    cache: Path


#: Below those that Linux gives to connections, and in each process of `make test` others.
_ports = list(range(10_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), 32_768, 16))
random.SystemRandom().shuffle(_ports)


def free_port() -> int:
    """A port that was free a moment ago, and that no other test is given."""
    while True:
        port = _ports.pop()
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start(
    *options: str | Path,
    log: Path,
    env: dict[str, str] | None = None,
    port: int | None = None,
    python: str | Path = sys.executable,
    fresh: bool = False,
) -> tuple[subprocess.Popen[bytes], str]:
    """Start the service; it may not be ready yet."""
    port = port or free_port()
    command = [str(Path(python).with_name("densepath")), "serve", "--port", str(port), *map(str, options)]
    with log.open("ab") as output, forked.new_interpreters() if fresh else nullcontext():
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(env or {})})
    return process, f"http://127.0.0.1:{port}"


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path, within: float = STARTED_WITHIN) -> None:
    """Until /readyz answers 200; its log is in the message when it never does."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)  # between two looks at the condition
    raise AssertionError(f"the service is not ready (exit {process.poll()}):\n{log.read_text()[-4000:]}")


def stop(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, and the exit status."""
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)


@contextmanager
def serving(
    *options: str | Path,
    log: Path,
    env: dict[str, str] | None = None,
    within: float = STARTED_WITHIN,
    python: str | Path = sys.executable,
    fresh: bool = False,
) -> Iterator[str]:
    """The URL of a service that is ready; it must drain and exit 0 at the end."""
    process, url = start(*options, log=log, env=env, python=python, fresh=fresh)
    try:
        wait_ready(process, url, log, within)
        yield url
        assert stop(process) == 0, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()


def finish(
    command: Sequence[str | Path],
    *,
    within: float,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a group of its own: nothing that it started is left, whatever happens."""
    starts = forked.NewInterpreter if fresh else forked.Popen
    process = starts(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=within)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
