"""A prompt scored as vLLM scores one: every token except the first, and the next token on request.

The completions and the token-in route both stand on it. Nothing is sampled: the next token is the likeliest,
which is what temperature 0 gives.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from densepath.api.compat.views import Score, score_view
from densepath.api.schemas import TokenIds
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.engine.scorer import View
from densepath.errors import InvalidItemError, InvalidRequestError
from densepath.sequences import Sequence, Tokenizer, as_ids

MAX_TOP = 128
"""The most tokens that a request may name at each position."""

UNFINISHED = "\ufffd"
MOST_TOKENS_BEFORE = 4  # a character has at most 4 bytes, and a token has at least one

Top = Annotated[int, Field(ge=0, le=MAX_TOP)]
#: Several lists of token ids. The check ends at the first wrong one.
ListsOfIds = Annotated[list[TokenIds], Field(fail_fast=True)]


def refused_as(words: str) -> WrapValidator:
    """One sentence for a value that is refused, where pydantic gives a line for each type of a union."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(words) from None

    return WrapValidator(validate)


def _temperature(value: float | None) -> float | None:
    if value not in (None, 0, 1):
        raise ValueError(
            "must be 1, 0 or none: log-probabilities are those of temperature 1, and nothing is sampled"
        )
    return value


#: Temperatures 0 and 1 differ only for a sampled token, and nothing is sampled.
Temperature = Annotated[float | None, AfterValidator(_temperature)]


@dataclass(frozen=True)
class Entry:
    """One token and its log-probability."""

    token_id: int
    logp: float
    rank: int
    text: str


@dataclass(frozen=True)
class PromptScore:
    """One prompt. `entries_L[t]` is None for the first token, then the token itself and the likeliest ones,
    each token once; `next_entries` are those of the next token, itself first, where it was asked for.
    """

    token_ids: list[int]
    first_text: str
    entries_L: list[list[Entry] | None]
    next_entries: list[Entry] | None

    @property
    def next_id(self) -> int | None:
        """The likeliest next token."""
        return self.next_entries[0].token_id if self.next_entries else None


async def score_prompts(
    prompts: list[list[int]], view: View, with_next: bool, served: Served, service: Service
) -> list[PromptScore]:
    """Score all prompts, or raise.

    Raises:
        InvalidItemError: an empty prompt, or an id that is out of range.
        ContextLengthExceededError: a prompt, its next token counted, that is too long.
    """
    if with_next:
        view = View(view.sft, view.reference, max(view.top, 1))
    sequences = [_sequence(ids, with_next, index) for index, ids in enumerate(prompts)]
    scores = await score_view(sequences, view, served, service)

    def read() -> list[PromptScore]:
        texts = TokenTexts(served.tokenizer)
        return [
            _prompt_score(ids, with_next, score, texts) for ids, score in zip(prompts, scores, strict=True)
        ]

    return await asyncio.to_thread(read)


def _sequence(ids: list[int], with_next: bool, index: int) -> Sequence:
    if not ids:
        raise InvalidItemError(f"prompt {index} is empty: it must have a token", param="prompt")
    # The row that predicts the next token needs a token after it. Which token it is changes no number.
    token_ids_L = as_ids([*ids, ids[-1]] if with_next else ids)
    return Sequence(token_ids_L, np.arange(1, len(token_ids_L)))


def _prompt_score(ids: list[int], with_next: bool, score: Score | None, texts: TokenTexts) -> PromptScore:
    first = texts.alone(ids[0])
    if score is None:
        return PromptScore(ids, first, [None], None)
    ranked = score[1]
    before_L = [ids[max(0, at - MOST_TOKENS_BEFORE) : at] for at in range(len(ids) + 1)]
    top_T = zip(ranked.top_ids_T_K.tolist(), ranked.top_logp_T_K.tolist(), strict=True)
    likeliest_T = [
        [
            Entry(token_id, logp, rank, texts.after(before_L[at], token_id))
            for rank, (token_id, logp) in enumerate(zip(*top, strict=True), 1)
        ]
        for at, top in enumerate(top_T, 1)
    ]
    entries_L: list[list[Entry] | None] = [None]
    for at, token_id in enumerate(ids[1:], 1):
        rank, logp = int(ranked.rank_T[at - 1]), float(ranked.logp_T[at - 1])
        others = [entry for entry in likeliest_T[at - 1] if entry.token_id != token_id]
        entries_L.append([Entry(token_id, logp, rank, texts.after(before_L[at], token_id)), *others])
    return PromptScore(ids, first, entries_L, likeliest_T[-1] if with_next else None)


class TokenTexts:
    """The text of tokens: a token's own, or the characters that it completes after others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    def alone(self, token_id: int) -> str:
        """A token's own text; the replacement character stands for part of a character."""
        if token_id not in self._alone:
            self._alone[token_id] = self._tokenizer.decode([token_id])
        return self._alone[token_id]

    def after(self, before: list[int], token_id: int) -> str:
        """The text as vLLM writes it: a character that has several tokens is the text of its last token.

        `before` are the tokens before it, MOST_TOKENS_BEFORE at most.
        """
        text = self.alone(token_id)
        if not text.endswith(UNFINISHED):
            return text
        for count in range(1, len(before) + 1):
            context = before[-count:]
            joined = self._tokenizer.decode([*context, token_id])
            if not joined.endswith(UNFINISHED):
                while context and self.alone(context[-1]).endswith(UNFINISHED):
                    context = context[:-1]
                return joined[len(self._tokenizer.decode(context)) :]
        return ""


def as_vllm(score: PromptScore, top: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: None, then id → log-probability, rank and text, the token itself first."""

    def one(entry: Entry) -> dict[str, Any]:
        return {"logprob": entry.logp, "rank": entry.rank, "decoded_token": entry.text}

    return [
        {str(entry.token_id): one(entry) for entry in shown(entries, top)} if entries else None
        for entries in score.entries_L
    ]


def shown(entries: list[Entry], top: int) -> list[Entry]:
    """The token itself, and the `top` likeliest."""
    return [entries[0], *(entry for entry in entries[1:] if entry.rank <= top)]


def refuse_generation(max_tokens: int | None, n: int, stream: bool | None) -> None:
    """Refuse a request to generate. Without max_tokens, the original servers would generate."""
    if max_tokens not in (0, 1):
        raise InvalidRequestError(
            "this service scores and does not generate: send max_tokens 0 or 1", param="max_tokens"
        )
    if n != 1:
        raise InvalidRequestError("this service scores and does not generate: send n 1", param="n")
    if stream:
        raise InvalidRequestError("a score is sent as a whole: leave stream out", param="stream")
