"""`densepath serve`: from settings to a running service."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from densepath.commands.engines import build_engine, require_room
from densepath.commands.pairs import load_tokenizer, read_pair, show_notes
from densepath.commands.settings import ServeSettings
from densepath.config import Engine
from densepath.errors import InvalidRequestError
from densepath.pair.pair import Pair, Progress, load_pair
from densepath.pair.text_half import text_half

if TYPE_CHECKING:
    from densepath.api.served import Served
    from densepath.engine.scorer import Scorer
    from densepath.verification.start import Start


def serve_pair(settings: ServeSettings, say: Console) -> None:
    """Serve until SIGTERM. The port is taken before anything is loaded."""
    from densepath.api.listener import listening

    with listening(settings.host, settings.port) as sockets:
        _serve_pair(settings, sockets, say)


def _serve_pair(settings: ServeSettings, sockets: list[socket.socket], say: Console) -> None:
    from densepath.api.app import create_app
    from densepath.api.edge import allowed_hosts
    from densepath.api.keys import ApiKeys, Guard
    from densepath.api.server import serve
    from densepath.api.service import Service
    from densepath.api.swap import Swapping
    from densepath.commands.welcome import welcome
    from densepath.telemetry.logs import configure_logs
    from densepath.telemetry.traces import open_traces

    configure_logs()
    traces = open_traces()  # before the engine: it takes a variable of theirs away
    guard = Guard(
        ApiKeys.from_file(settings.api_key_file),
        ApiKeys.from_file(settings.admin_key_file, "--admin-key-file"),
    )
    if settings.key_tokens_per_minute is not None and not guard.callers:
        raise InvalidRequestError(
            "--key-tokens-per-minute needs --api-key-file: without keys there is nobody to have a quota"
        )
    swapping = None
    if settings.pair_root is not None:
        os.listdir(settings.pair_root)  # raises the OSError that a swap would end in
        swapping = Swapping(
            settings.pair_root, functools.partial(_prepare, settings, say), settings.drain_seconds
        )
    served, start = _served(settings, read_pair(settings, say), say)
    make_engine = functools.partial(_another_engine, settings, say)
    service = Service(served, start, make_engine=make_engine, limits=settings, traces=traces)
    examples = _demo_examples() if settings.demo else ()
    app = create_app(
        service,
        engine=settings.engine.value,
        guard=guard,
        allowed_hosts=allowed_hosts(settings.allowed_hosts, guarded=bool(guard.callers)),
        examples=examples,
        swapping=swapping,
    )
    url = f"http://{settings.host}:{sockets[0].getsockname()[1]}"
    say.print(f"loading the pair into the {settings.engine.value} engine: {url}")

    async def run() -> None:
        showing = None
        if guard.callers or guard.operators:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, guard.reload)
        if settings.demo:
            showing = asyncio.ensure_future(welcome(app, service, url, say, needs_key=bool(guard.callers)))
        try:
            await serve(app, service, sockets, drain_seconds=settings.drain_seconds)
        finally:
            if showing is not None:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)

    try:
        asyncio.run(run())
    finally:
        traces.close()


def _served(settings: ServeSettings, pair: Pair, say: Console) -> tuple[Served, Start]:
    from densepath.api.served import Served

    scorer, start = build_engine(pair, settings.engine, settings, settings.verify, say)
    return Served(pair, load_tokenizer(pair), scorer, settings.model_name, settings.teacher_kl), start


def _prepare(
    settings: ServeSettings, say: Console, sft: Path, reference: Path, progress: Progress
) -> tuple[Served, Start]:
    """Another pair, as `densepath.api.swap` wants it. Adapters and names of the hub are not followed."""
    _spawn_engines()
    tell = functools.partial(say.print, markup=False, soft_wrap=True)
    directories = (text_half(directory, tell) for directory in (sft, reference))
    pair = load_pair(*directories, allow_same=settings.allow_same, progress=progress)
    show_notes(pair, say)
    served, start = _served(settings, pair, say)
    if settings.engine is Engine.VLLM:
        require_room(pair, served.scorer)
    return served, start


def _another_engine(settings: ServeSettings, say: Console, pair: Pair) -> tuple[Scorer, Start]:
    """For the same pair, in place of an engine that was lost."""
    _spawn_engines()
    return build_engine(pair, settings.engine, settings, settings.verify, say)


def _spawn_engines() -> None:
    """For engines that start while requests are answered.

    A fork would copy the clients' connections, and locks that other threads hold.
    """
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"


def _demo_examples() -> list[dict[str, Any]]:
    """Examples of the demo, which is built already, for the playground."""
    from densepath.demo.playground import playground_examples
    from densepath.demo.recipe import Recipe
    from densepath.demo.store import default_directory, read

    demo = read(default_directory(), Recipe())
    return playground_examples(demo.examples) if demo else []
