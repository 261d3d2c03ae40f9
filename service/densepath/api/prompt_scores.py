"""A prompt scored as vLLM scores one: every token but the first, and the next token where one is asked for.

The completions and the token-in route both stand on it. Nothing is sampled: the next token is the likeliest,
which is what temperature 0 gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from densepath.api.models import score_view
from densepath.api.service import Service
from densepath.engine.scorer import Ranked, View
from densepath.errors import InvalidItemError, InvalidRequestError
from densepath.sequences import Sequence, check

MAX_TOP = 128
"""The most tokens that a request may name at each position."""

Top = Annotated[int, Field(ge=0, le=MAX_TOP)]


def _temperature(value: float | None) -> float | None:
    if value not in (None, 0, 1):
        raise ValueError(
            "must be 1, 0 or none: log-probabilities are those of temperature 1, and nothing is sampled"
        )
    return value


#: 0 and 1 differ for a sampled token only, and nothing is sampled.
Temperature = Annotated[float | None, AfterValidator(_temperature)]


@dataclass(frozen=True)
class Entry:
    """One token and its log-probability."""

    token_id: int
    logp: float
    rank: int


@dataclass(frozen=True)
class PromptScore:
    """One prompt. `entries_L[t]` is None for the first token, then the token itself and the likeliest ones,
    each token once; `next_entries` are those of the next token, itself first, where it was asked for.
    """

    token_ids: list[int]
    entries_L: list[list[Entry] | None]
    next_entries: list[Entry] | None
    cached_tokens: int

    @property
    def next_id(self) -> int | None:
        """The likeliest next token."""
        return self.next_entries[0].token_id if self.next_entries else None


async def score_prompts(
    prompts: list[list[int]], view: View, with_next: bool, service: Service
) -> list[PromptScore]:
    """Score prompts, all or none.

    Raises:
        InvalidItemError: an empty prompt, or an id that is out of range.
        ContextLengthExceededError: a prompt, its next token counted, that is too long.
    """
    if with_next:
        view = View(view.sft, view.reference, max(view.top, 1))
    sequences = [_sequence(ids, with_next, index, service) for index, ids in enumerate(prompts)]
    scores = iter(await score_view([each for each in sequences if len(each.positions_T)], view, service))
    return [
        _prompt_score(ids, with_next, next(scores) if len(sequence.positions_T) else None)
        for ids, sequence in zip(prompts, sequences, strict=True)
    ]


def _sequence(ids: list[int], with_next: bool, index: int, service: Service) -> Sequence:
    if not ids:
        raise InvalidItemError(f"prompt {index} is empty: it must have a token", param="prompt")
    # The row that predicts the next token needs some token after it; which one makes no difference to it.
    token_ids_L = np.asarray([*ids, ids[-1]] if with_next else ids, dtype=np.int64)
    sequence = Sequence(token_ids_L, np.arange(1, len(token_ids_L)))
    check(sequence, vocab_size=service.pair.vocab_size, context_length=service.scorer.context_length)
    return sequence


def _prompt_score(ids: list[int], with_next: bool, scored: tuple[Any, Ranked] | None) -> PromptScore:
    if scored is None:
        return PromptScore(ids, [None], None, 0)
    ranked = scored[1]
    likeliest_T = [
        [
            Entry(token_id, logp, rank)
            for rank, (token_id, logp) in enumerate(zip(top_ids, top_logps, strict=True), 1)
        ]
        for top_ids, top_logps in zip(ranked.top_ids_T_K.tolist(), ranked.top_logp_T_K.tolist(), strict=True)
    ]
    own_T = [
        Entry(*values)
        for values in zip(ids[1:], ranked.logp_T.tolist(), ranked.rank_T.tolist(), strict=False)
    ]
    entries_L = [
        [own, *(entry for entry in likeliest if entry.token_id != own.token_id)]
        for own, likeliest in zip(own_T, likeliest_T, strict=False)
    ]
    return PromptScore(
        ids, [None, *entries_L], likeliest_T[-1] if with_next else None, scored[0].cached_tokens
    )


def as_vllm(
    entries_L: list[list[Entry] | None], top: int, strings: dict[int, str]
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: None, then id → log-probability, rank and text, the token itself first."""

    def one(entry: Entry) -> dict[str, Any]:
        return {"logprob": entry.logp, "rank": entry.rank, "decoded_token": strings[entry.token_id]}

    return [
        {str(entry.token_id): one(entry) for entry in shown(entries, top)} if entries else None
        for entries in entries_L
    ]


def shown(entries: list[Entry], top: int) -> list[Entry]:
    """The token itself, and the `top` likeliest."""
    return [entries[0], *(entry for entry in entries[1:] if entry.rank <= top)]


def token_texts(scores: list[PromptScore], service: Service) -> dict[int, str]:
    """Each id that an answer names → its own text."""
    ids = {token_id for score in scores for token_id in score.token_ids}
    ids |= {entry.token_id for score in scores for entries in score.entries_L for entry in entries or ()}
    ids |= {entry.token_id for score in scores for entry in score.next_entries or ()}
    return dict(zip(ids, service.tokenizer.token_strings(list(ids)), strict=True))


def refuse_generation(max_tokens: int, n: int, stream: bool) -> None:
    """Refuse what only a generating server can do."""
    if max_tokens not in (0, 1):
        raise InvalidRequestError(
            "this service scores and does not generate: send max_tokens 0 or 1", param="max_tokens"
        )
    if n != 1:
        raise InvalidRequestError("this service scores and does not generate: send n 1", param="n")
    if stream:
        raise InvalidRequestError("a score comes whole: leave stream out", param="stream")
