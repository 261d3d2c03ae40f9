"""How the routes call the engine: counted, checked, and never left running when its request is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import numpy as np

from densepath.admission import Ticket
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.engine.scorer import Scored, View
from densepath.errors import InternalError
from densepath.sequences import Sequence

T = TypeVar("T")


@contextmanager
def admitted(items: int, tokens: int, service: Service) -> Iterator[Ticket]:
    """The stage of a request in which its sequences are in the budget.

    Raises OverloadedError where there is no room.
    """
    with service.traces.stage("score") as span:
        span.count(items=items, tokens=tokens)
        with service.budget.admit(tokens) as ticket:
            yield ticket


async def score_sequence(
    sequence: Sequence, ticket: Ticket, served: Served, service: Service, view: View | None = None
) -> Scored:
    """Score one sequence, and give its share of the budget back."""
    with service.metrics.running_sequences.track_inprogress():
        scored = await served.scorer.score(sequence, view)
    ticket.finish(len(sequence.token_ids_L))
    if {len(scored.logp_sft_T), len(scored.logp_reference_T)} != {len(sequence.positions_T)}:
        raise InternalError("the engine answered another number of scores than there are scored tokens")
    return scored


@asynccontextmanager
async def together(
    works: Iterable[Coroutine[Any, Any, T]],
) -> AsyncIterator[list[asyncio.Task[T]]]:
    """The works as tasks that run at once; those not done at the end are cancelled, in the engine too."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def count_tokens(sequences: list[Sequence], scored: list[Scored], service: Service) -> None:
    """Put the tokens of the sequences that one request had scored into the metrics."""
    service.metrics.count_tokens(
        np.array([each.prompt_tokens for each in sequences], dtype=np.int64),
        np.array([len(each.positions_T) for each in sequences], dtype=np.int64),
        cached=sum(each.cached_tokens for each in scored),
    )
