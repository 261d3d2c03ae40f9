"""Sequences scored as one model, or the teacher, sees them."""

from __future__ import annotations

import asyncio

import numpy as np

from densepath.api.engine_calls import admitted, count_tokens, score_sequence, together
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.engine.scorer import Ranked, Scored, View
from densepath.errors import InternalError, NonFiniteScoreError
from densepath.sequences import Sequence

Score = tuple[Scored, Ranked]


async def score_view(
    sequences: list[Sequence], view: View, served: Served, service: Service
) -> list[Score | None]:
    """The scores of sequences, and their tokens as the view ranks them: all, or an error. None for a
    sequence of which nothing is scored.

    Raises:
        NonFiniteScoreError: a scored token's log-probability is no number.
        InvalidItemError: an id that is out of range.
        ContextLengthExceededError: a sequence that is too long.
        OverloadedError: there is no room for them now.
    """
    checked = [served.check(each) for each in sequences]
    due = {i: each for i, each in enumerate(checked) if len(each.positions_T)}
    tokens = sum(len(sequence.token_ids_L) for sequence in due.values())
    async with admitted(len(due), tokens, service) as ticket:
        works = (score_sequence(each, ticket, served, service, view) for each in due.values())
        async with together(works) as tasks:
            scores = dict(zip(due, await asyncio.gather(*tasks), strict=True))
    count_tokens(list(due.values()), list(scores.values()), service)
    ranked = {i: (scored, _finite(i, scored)) for i, scored in scores.items()}
    return [ranked.get(i) for i in range(len(sequences))]


def _finite(index: int, scored: Scored) -> Ranked:
    ranked = scored.ranked
    if ranked is None:
        raise InternalError("the engine ranked no tokens")
    for logp_T in (scored.logp_sft_T, scored.logp_reference_T, ranked.logp_T):
        finite_T = np.isfinite(logp_T)
        if not finite_T.all():
            raise NonFiniteScoreError(
                f"the log-probability of scored token {int((~finite_T).argmax())} of prompt {index} "
                "is not finite, so the prompt has no score"
            )
    return ranked
