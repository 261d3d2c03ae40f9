"""`densepath score`: a file of items, scored by a service or by the pair in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densepath.client import Client, Score, Scores
from densepath.config import Engine, ServeSettings
from densepath.errors import InvalidRequestError
from densepath.score.formats import Item, check_formats
from densepath.score.resume import Counts, score_file
from densepath.show import reward_text

ScoreChunk = Callable[[list[Item]], Scores]


@dataclass(frozen=True)
class Job:
    """What is scored, and what becomes of the results."""

    source: Path
    output: Path | None
    include: tuple[str, ...]
    gamma: float
    show: bool

    def options(self) -> dict[str, Any]:
        """The request options of every chunk."""
        include = {*self.include, *(("tokens",) if self.show else ())}
        return {"include": tuple(sorted(include)), "gamma": self.gamma}


def score_offline(
    job: Job,
    say: Console,
    *,
    url: str | None,
    api_key: str | None,
    sft: Path | None,
    reference: Path | None,
    engine: Engine,
    allow_same: bool = False,
) -> Counts:
    """Score the job's file. Raises InvalidRequestError where it is not clear by what, or for what."""
    if job.output is None and not job.show:
        raise InvalidRequestError("say where the results go: -o FILE, --show, or both")
    if job.output is not None:
        check_formats(job.source, job.output)  # before anything is loaded
    if url is not None and sft is None and reference is None:
        scorer = _by_service(job, url, api_key)
    elif url is None and sft is not None and reference is not None:
        settings = ServeSettings(sft=sft, reference=reference, engine=engine, allow_same=allow_same)
        scorer = _by_pair(job, settings, say)
    else:
        raise InvalidRequestError("give --url of a service, or both --sft and --reference")
    with scorer as (score_chunk, version), tempfile.TemporaryDirectory() as scratch, _bar(say) as bar:
        task = bar.add_task("scoring", total=None)
        return score_file(
            job.source,
            job.output or Path(scratch) / "shown.jsonl",
            score_chunk,
            model_version=version,
            on_score=_print if job.show else lambda score: None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **job.options(),
        )


@contextmanager
def _by_service(job: Job, url: str, api_key: str | None) -> Iterator[tuple[ScoreChunk, str]]:
    with Client(url, api_key=api_key) as client:
        yield (
            lambda items: client.score(items, on_error="item", **job.options()),
            str(client.pair()["version"]),
        )


@contextmanager
def _by_pair(job: Job, settings: ServeSettings, say: Console) -> Iterator[tuple[ScoreChunk, str]]:
    from densepath.commands.serve import local_client

    with local_client(settings, say) as (client, runner):
        yield (
            lambda items: runner.run(client.score(items, on_error="item", **job.options())),
            str(runner.run(client.pair())["version"]),
        )


def _print(score: Score) -> None:
    Console(highlight=False).print(reward_text(score), soft_wrap=True)


def _bar(say: Console) -> Progress:
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=say, transient=True)
