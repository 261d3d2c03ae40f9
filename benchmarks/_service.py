"""A `densepath serve` of a pair in its own process, ready, and ended at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from densepath.client import Client

READY_WITHIN = 240.0  # seconds: a first import of vLLM on a busy machine
KV_CACHE_BYTES = 256 << 20


@contextmanager
def serving(
    sft: Path,
    reference: Path,
    *,
    log: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    within: float = READY_WITHIN,
) -> Iterator[str]:
    """The URL of a service with the vLLM engine. Raises RuntimeError, with its log, where it isn't ready.

    `within` is in seconds; `environment` is added to this process's own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "densepath", "serve", "--sft", str(sft), "--reference", str(reference)]
    command += ["--port", str(port), "--kv-cache-memory-bytes", str(KV_CACHE_BYTES), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | dict(environment or {})
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(process, url, log, within)
        yield url
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path, within: float) -> None:
    deadline = time.monotonic() + within
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service is not ready:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)  # between two looks at the condition
