"""How the routes call the engine: calls are counted, checked, and cancelled when their request ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np

from densepath.admission import Ticket
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.engine.scorer import Scored, View
from densepath.errors import EngineUnavailableError, InternalError
from densepath.sequences import Sequence

T = TypeVar("T")
#: The hash of the key of the request that this task answers, if it has one.
caller: ContextVar[bytes | None] = ContextVar("caller", default=None)


@asynccontextmanager
async def admitted(items: int, tokens: int, service: Service) -> AsyncIterator[Ticket]:
    """The stage of a request in which its tokens count against the budget, or wait for their turn.

    Raises OverloadedError where there is no room.
    """
    with service.traces.stage("score") as span:
        span.count(items=items, tokens=tokens)
        async with service.budget.admit(tokens) as ticket:
            service.quotas.charge(caller.get(), tokens)
            yield ticket


async def score_sequence(
    sequence: Sequence, ticket: Ticket, served: Served, service: Service, view: View | None = None
) -> Scored:
    """Score one sequence, then return its tokens to the budget."""
    lifecycle = service.lifecycle
    try:
        with service.metrics.running_sequences.track_inprogress(), lifecycle.calling(served.scorer):
            scored = await served.scorer.score(sequence, view)
    except EngineUnavailableError as error:
        raise lifecycle.problem() or error from error
    ticket.finish(len(sequence.token_ids_L))
    if {len(scored.logp_sft_T), len(scored.logp_reference_T)} != {len(sequence.positions_T)}:
        raise InternalError("the engine did not return one score for each scored token")
    return scored


@asynccontextmanager
async def together(
    works: Iterable[Coroutine[Any, Any, T]],
) -> AsyncIterator[list[asyncio.Task[T]]]:
    """Run the works as concurrent tasks. At the end, unfinished tasks are cancelled, in the engine too."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def count_tokens(sequences: list[Sequence], scored: list[Scored], service: Service) -> None:
    """Count the tokens of a request's scored sequences in the metrics."""
    service.metrics.count_tokens(
        np.array([each.prompt_tokens for each in sequences], dtype=np.int64),
        np.array([len(each.positions_T) for each in sequences], dtype=np.int64),
        cached=sum(each.cached_tokens for each in scored),
    )
