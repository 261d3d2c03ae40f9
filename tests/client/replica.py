"""A replica in a process of its own: the shipped server over the fake engine, which takes some time.

The processes come from a fork server that has the service loaded, so that each starts in milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerFast

from densepath.api.app import create_app
from densepath.api.listener import listening
from densepath.api.served import Served
from densepath.api.server import serve
from densepath.api.service import Service
from densepath.config import Limits
from densepath.engine.fake import FakeScorer
from densepath.engine.scorer import Scored, View
from densepath.pair.pair import Pair
from densepath.sequences import Sequence, Tokenizer
from densepath.telemetry.logs import configure_logs
from densepath.verification.start import start_unverified
from live import free_port

MAX_ITEMS = 4
SECONDS = 0.01
"""How long each sequence takes, so that there are requests under way when a replica ends."""


@dataclass
class TurnedScorer(FakeScorer):
    """The fake engine after some time. `turned`: with its two models in each other's place."""

    turned: bool = False

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        """Score, late."""
        await asyncio.sleep(SECONDS)
        scored = await FakeScorer.score(self, sequence, view)
        if not self.turned:
            return scored
        return Scored(scored.logp_reference_T, scored.logp_sft_T, cached_tokens=0)


def run(port: int, pair: Pair, turned: bool, log: Path) -> None:
    """Serve the pair until a signal comes."""
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    configure_logs()
    # AutoTokenizer would load torch.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(pair.sft / "tokenizer.json"), eos_token="<|end|>")
    served = Served(pair, Tokenizer(tokenizer), TurnedScorer(64, turned=turned))
    service = Service(served, start_unverified("it is a test"), limits=Limits(max_items=MAX_ITEMS))
    with listening("127.0.0.1", port) as sockets:
        asyncio.run(serve(create_app(service, engine="fake"), service, sockets, drain_seconds=30.0))


@dataclass
class Replica:
    """A replica that is started, ended and started again at the same port."""

    start_process: Callable[..., BaseProcess]
    log: Path
    port: int = field(default_factory=free_port)
    process: BaseProcess | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, pair: Pair, turned: bool = False) -> None:
        """Serve the pair, from when this returns."""
        self.process = self.start_process(run, self.port, pair, turned, self.log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.is_alive():
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)  # between two looks at the condition
        raise AssertionError(f"the replica is not ready:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.join(30)

    def drain(self) -> None:
        """SIGTERM, and the end that follows."""
        assert self.process is not None
        self.process.terminate()
        self.process.join(60)
        assert self.process.exitcode == 0, self.log.read_text()[-4000:]


@contextmanager
def replicas(number: int, folder: Path) -> Iterator[list[Replica]]:
    """So many replicas, not yet started. None is left at the end."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["client.replica"])
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11.7 looks for what is to be preloaded there alone, and goes on where it finds nothing.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()

    def start_process(function: Callable[..., None], *arguments: Any) -> BaseProcess:
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    made = [Replica(start_process, folder / f"replica-{n}.log") for n in range(number)]
    try:
        yield made
    finally:
        for replica in made:
            replica.kill()
        # There is one for the whole run, and it would keep what it has loaded from other tests.
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
