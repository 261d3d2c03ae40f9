"""`densepath score`: a file of items, scored by a service or by the pair in this process."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densepath.client import AsyncClient, Client, Score, Scores
from densepath.commands.settings import ScoreSettings
from densepath.config import Verify
from densepath.errors import InvalidRequestError
from densepath.files import reserved_file
from densepath.score.formats import Item, check_formats
from densepath.score.resume import Counts, check_files, score_file
from densepath.show import reward_text

ScoreChunk = Callable[[list[Item]], Scores]


def score_offline(settings: ScoreSettings, say: Console) -> Counts:
    """Score a file. Raises InvalidRequestError where it is not clear by what, or where results go."""
    if settings.output is None and not settings.show:
        raise InvalidRequestError("say where the results go: -o FILE, --show, or both")
    has_pair = settings.demo or any((settings.sft, settings.reference, settings.pair))
    if has_pair == (settings.url is not None):
        raise InvalidRequestError(
            "give --url of a service, or a pair: both --sft and --reference, or --pair, or --demo"
        )
    if settings.output is None:
        with tempfile.TemporaryDirectory() as scratch:
            return _score(settings, Path(scratch) / "shown.jsonl", say)
    check_formats(settings.source, settings.output)
    with reserved_file(settings.output):
        return _score(settings, settings.output, say)


def _score(settings: ScoreSettings, output: Path, say: Console) -> Counts:
    check_files(settings.source, output)  # before anything is loaded
    scorer = _by_service(settings) if settings.url is not None else _by_pair(settings, say)
    with scorer as (score_chunk, version), _bar(say) as bar:
        task = bar.add_task("scoring", total=None)
        return score_file(
            settings.source,
            output,
            score_chunk,
            model_version=version,
            on_score=_print if settings.show else lambda score: None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **_options(settings),
        )


def _options(settings: ScoreSettings) -> dict[str, Any]:
    """The request options of every chunk."""
    include = {*(settings.include or ()), *(("tokens",) if settings.show else ())}
    return {"include": tuple(sorted(include)), "gamma": settings.gamma}


@contextmanager
def _by_service(settings: ScoreSettings) -> Iterator[tuple[ScoreChunk, str]]:
    assert settings.url is not None  # noqa: S101  # score_offline has looked
    with Client(settings.url, api_key=settings.api_key) as client:
        yield (
            lambda items: client.score(items, on_error="item", **_options(settings)),
            str(client.pair()["version"]),
        )


@contextmanager
def _by_pair(settings: ScoreSettings, say: Console) -> Iterator[tuple[ScoreChunk, str]]:
    with _local_client(settings, say) as (client, runner):
        yield (
            lambda items: runner.run(client.score(items, on_error="item", **_options(settings))),
            str(runner.run(client.pair())["version"]),
        )


@contextmanager
def _local_client(settings: ScoreSettings, say: Console) -> Iterator[tuple[AsyncClient, asyncio.Runner]]:
    """The service without a socket: a client whose requests go straight into the application."""
    from densepath.api.app import create_app
    from densepath.api.served import Served
    from densepath.api.service import Service
    from densepath.commands.engines import build_engine
    from densepath.commands.pairs import load_tokenizer, read_pair
    from densepath.telemetry.logs import configure_logs

    configure_logs(logging.WARNING)
    pair = read_pair(settings, say)
    with asyncio.Runner() as runner:
        scorer, start = build_engine(pair, settings.engine, settings, Verify.AUTO, say)
        say.print(f"loading the pair into the {settings.engine.value} engine")
        service = Service(Served(pair, load_tokenizer(pair), scorer), start)
        app = create_app(service, engine=settings.engine.value)
        client = AsyncClient("http://densepath", transport=httpx.ASGITransport(app))
        try:
            runner.run(service.lifecycle.start())
            yield client, runner
        finally:
            runner.run(client.aclose())
            runner.run(scorer.close())


def _print(score: Score) -> None:
    Console(highlight=False).print(reward_text(score), soft_wrap=True)


def _bar(say: Console) -> Progress:
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=say, transient=True)
