"""A service in its own process, and what it holds: memory, tasks, connections, threads, descriptors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from live import free_port, stop, wait_ready

PROGRAM = Path(__file__).with_name("watched.py")
#: The engine uses one core, so that the service has one.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Held:
    """What all processes of a service hold; tasks and connections are those of the service itself."""

    memory_mb: float
    tasks: int
    connections: int
    threads: int
    descriptors: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.0f}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Watched:
    """A running service."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    window: Path

    def processes(self) -> list[psutil.Process]:
        """The service, and every process that it started."""
        service = psutil.Process(self.process.pid)
        return [service, *service.children(recursive=True)]

    def engine(self) -> list[psutil.Process]:
        """The processes of vLLM, none with another engine."""
        found = []
        for process in self.processes()[1:]:
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("VLLM"):
                    found.append(process)
        return found

    def memory_mb(self) -> float:
        """RSS of all processes, in MB."""
        return sum(_of(each, lambda p: p.memory_info().rss) for each in self.processes()) / 1e6

    def look(self) -> dict[str, Any]:
        """What `watched.counts` counts."""
        with socket.socket(socket.AF_UNIX) as window:
            window.settimeout(60)
            window.connect(str(self.window))
            with window.makefile("rb") as told:
                counted: dict[str, Any] = json.loads(told.read())
        return counted

    def held(self) -> Held:
        counted = self.look()
        processes = self.processes()
        return Held(
            memory_mb=self.memory_mb(),
            tasks=counted["tasks"],
            connections=counted["connections"],
            threads=sum(_of(each, lambda p: p.num_threads()) for each in processes),
            descriptors=sum(_of(each, lambda p: p.num_fds()) for each in processes),
        )

    def settled(self, before: Held, *, within: float = 30.0) -> Held:
        """What it holds, once that is no more than before but for memory, or after `within` seconds."""
        deadline = time.monotonic() + within
        while True:
            now = self.held()
            if time.monotonic() > deadline or not grown(before, now):
                return now
            time.sleep(0.5)


def grown(before: Held, after: Held) -> list[str]:
    """What there is more of than before. Memory and threads, whose pools fill slowly, are left out."""
    names = ("tasks", "connections", "descriptors")
    return [name for name in names if getattr(after, name) > getattr(before, name)]


def _of(process: psutil.Process, number: Any) -> int:
    with suppress(psutil.NoSuchProcess):
        return int(number(process))
    return 0


@contextmanager
def watched(folder: Path, *options: str | Path) -> Iterator[Watched]:
    """A service that is ready; it must drain and exit with 0 at the end."""
    port, log, window = free_port(), folder / "log", folder / "window"
    command = [sys.executable, str(PROGRAM), str(window), "serve", "--port", str(port), *map(str, options)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **ENVIRONMENT})
    try:
        wait_ready(process, f"http://127.0.0.1:{port}", log)
        yield Watched(process, port, log, window)
        assert stop(process) == 0, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()
