"""A service on loopback: the shipped server and application over the fake engine, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest

from checkpoints import make_tokenizer
from densepath import sequences
from densepath.api.app import create_app
from densepath.api.keys import ApiKeys, Guard
from densepath.api.lifecycle import MakeEngine
from densepath.api.served import Served
from densepath.api.server import build_server
from densepath.api.service import Service
from densepath.api.swap import Swapping
from densepath.config import Limits
from densepath.engine.fake import FakeScorer
from densepath.pair.pair import Pair, load_pair
from densepath.sequences import Sequence, Tokenizer
from densepath.telemetry.traces import Traces
from densepath.verification.start import Start, start_unverified

Result = TypeVar("Result")
CONTEXT_LENGTH = 64
#: Renders as the shared one does, and refuses unknown roles, as published templates do.
STRICT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def pair(pair_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A real pair; the fake engine never reads its weights."""
    return load_pair(*pair_dirs, cache_dir=tmp_path_factory.mktemp("weights"))


def make_service(
    pair: Pair,
    *,
    scorer: FakeScorer | None = None,
    limits: Limits | None = None,
    traces: Traces | None = None,
    chat_template: str | None = STRICT_TEMPLATE,
    start: Start | None = None,
    make_engine: MakeEngine | None = None,
) -> Service:
    """A service over `pair`, not yet started."""
    fast = copy.deepcopy(make_tokenizer())
    fast.chat_template = chat_template
    served = Served(pair, Tokenizer(fast), scorer or FakeScorer(CONTEXT_LENGTH))
    return Service(
        served,
        start or start_unverified("it was not asked for"),
        make_engine=make_engine,
        limits=limits,
        traces=traces,
    )


@dataclass
class Running:
    """A service that answers on loopback."""

    service: Service
    port: int
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    connections: set[Any]  # that are open

    @property
    def scorer(self) -> FakeScorer:
        """The engine behind it."""
        scorer = self.service.lifecycle.served.scorer
        assert isinstance(scorer, FakeScorer)
        return scorer

    @property
    def pair(self) -> Pair:
        """The served pair."""
        return self.service.lifecycle.served.pair

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the served pair."""
        return self.service.lifecycle.served.tokenizer

    def run(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Await something on the service's event loop."""

        async def awaited() -> Result:
            return await work()

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(timeout=30)

    def now(self, act: Callable[[], Result]) -> Result:
        """Call something on the service's event loop."""

        async def called() -> Result:
            return act()

        return self.run(called)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds on the service's event loop."""

        async def wait() -> None:
            async with asyncio.timeout(20):
                while not condition():  # noqa: ASYNC110  # what is waited for sets no event
                    await asyncio.sleep(0.001)

        self.run(wait)

    def score(self, *items: Any, **fields: Any) -> httpx.Response:
        """POST items to /v1/rewards as JSON."""
        return self.client.post("/v1/rewards", json={"items": list(items), **fields})

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def speak(self, data: bytes) -> bytes:
        """Send bytes, and read until the service closes the connection."""
        with self.connect() as raw:
            raw.sendall(data)
            return read_all(raw)

    def metric(self, name: str, **labels: str) -> float:
        """One sample, read from the registry; 0 where there is none yet."""
        value = self.service.metrics.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value

    def idle(self) -> None:
        """Wait until no request is being answered and the budget is whole again."""
        self.run(self.service.lifecycle.idle.wait)
        assert self.service.budget.queued_tokens == 0
        assert self.metric("densepath_queued_tokens") == 0
        assert self.metric("densepath_running_sequences") == 0


@contextlib.contextmanager
def running(
    service: Service,
    *,
    keys: tuple[str, ...] = (),
    admin_keys: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    examples: ListLike[Mapping[str, Any]] = (),
    swapping: Swapping | None = None,
) -> Iterator[Running]:
    """Serve until the block ends. The socket listens before the server runs: there is nothing to wait for."""
    # As uvicorn's own: asyncio sends small answers at once only where the protocol is spelled out.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    guard = Guard(ApiKeys(keys), ApiKeys(admin_keys))
    app = create_app(
        service, engine="fake", guard=guard, allowed_hosts=hosts, examples=examples, swapping=swapping
    )
    server = build_server(app, service.limits)
    loops: list[asyncio.AbstractEventLoop] = []
    started = threading.Event()

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await service.lifecycle.start()
        started.set()
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="service")
    thread.start()
    assert started.wait(timeout=30)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield Running(service, port, loops[0], client, server.server_state.connections)
    finally:
        loops[0].call_soon_threadsafe(setattr, server, "should_exit", True)
        thread.join(timeout=30)
        assert not thread.is_alive()


def read_all(raw: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    while part := raw.recv(65536):
        received += part
    return received


def expected(sequence: Sequence) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Both log-probabilities that the fake engine gives a sequence."""
    scored = asyncio.run(FakeScorer().score(sequence))
    return scored.logp_sft_T, scored.logp_reference_T


def expected_rewards(prompt: list[int], response: list[int]) -> list[float]:
    """The rewards of the tokens form."""
    sft_T, reference_T = expected(sequences.from_response(prompt, response))
    return [float(reward) for reward in sft_T - reference_T]
