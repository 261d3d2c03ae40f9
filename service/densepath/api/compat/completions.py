"""POST /v1/completions for scoring, as OpenAI (`echo`, `logprobs`) and vLLM (`prompt_logprobs`) answer."""

from __future__ import annotations

import time
import uuid
from itertools import accumulate
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Discriminator, Field, Tag

from densepath.api.answers import to_json, write_answer
from densepath.api.body import answer_json, check_count, in_pool, parse_json, validate, wanted
from densepath.api.compat.prompt_scores import (
    ListsOfIds,
    PromptScore,
    Temperature,
    Top,
    as_vllm,
    refuse_generation,
    refused_as,
    score_prompts,
    shown,
)
from densepath.api.models import model_view
from densepath.api.openapi import body_of
from densepath.api.schemas import ErrorAnswer, Strict, Texts, TokenIds
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.engine.scorer import View
from densepath.errors import InvalidItemError, InvalidRequestError


def _form(value: Any) -> str | None:
    """Which of the four forms, by the first element: trying all of them on a long list takes seconds."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "texts" if isinstance(first, str) else "lists" if isinstance(first, list) else "ids"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[ListsOfIds, Tag("lists")],
    Discriminator(_form),
    refused_as("must be a text, texts, a list of token ids, or several such lists"),
]


class SamplingFields(Strict):
    """Fields that clients send and only sampling would use. They are accepted and do not change a score."""

    n: int = 1
    stream: bool | None = None
    temperature: Temperature = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False


class CompletionRequest(SamplingFields):
    """A completions request, of OpenAI or vLLM, that asks for scores."""

    model: Annotated[str | None, Field(description="`sft`, `reference` or `dpr-teacher`")]
    prompt: Prompt
    max_tokens: Annotated[int | None, Field(description="0 or 1; 1 adds the likeliest next token")] = 16
    echo: bool | None = False
    logprobs: Annotated[Top | None, Field(description="with echo")] = None
    prompt_logprobs: Top | None = None
    add_special_tokens: bool = True
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    best_of: Literal[1] | None = None
    user: str | None = None
    request_id: str | None = None
    priority: int = 0


class PromptLogprob(BaseModel):
    """vLLM's entry of one token."""

    logprob: float
    rank: int
    decoded_token: str


class CompletionLogprobs(BaseModel):
    """OpenAI's log-probabilities of the echoed prompt and of the next token after it."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """The answer to one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["length", "stop"]
    stop_reason: int | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionUsage(BaseModel):
    """OpenAI's counts. The next token is the only token that is ever completed."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class CompletionAnswer(BaseModel):
    """The answer, with one choice per prompt."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: Annotated[str, Field(description="the pair's version")]
    usage: CompletionUsage


def router(service: Service) -> APIRouter:
    """The completions route."""
    routes = APIRouter(responses={"default": {"model": ErrorAnswer, "description": "OpenAI's error"}})

    @routes.post("/v1/completions", response_model=CompletionAnswer, openapi_extra=body_of(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Log-probabilities of prompts by one model of the pair. Nothing is sampled."""

        async def work(body: bytes, served: Served) -> bytes:
            with service.traces.stage("parse"):
                asked, view, prompts = await in_pool(service, _read, body, served, service.limits.max_items)
            scores = await score_prompts(prompts, view, asked.max_tokens == 1, served, service)
            return await write_answer(lambda: to_json(_answer(asked, scores, served)), service)

        return await answer_json(request, service, work)

    return routes


def _read(body: bytes, served: Served, max_items: int) -> tuple[CompletionRequest, View, list[list[int]]]:
    asked = validate(CompletionRequest, check_count(parse_json(body), "prompt", max_items))
    view = model_view(asked.model, served, top=max(asked.logprobs or 0, asked.prompt_logprobs or 0))
    _check(asked)
    prompts = _prompts(asked, served, max_items)
    served.check_length(prompts, more=asked.max_tokens == 1)
    return asked, view, prompts


def _check(asked: CompletionRequest) -> None:
    refuse_generation(asked.max_tokens, asked.n, asked.stream)
    if asked.prompt_logprobs is None and not (asked.echo and asked.logprobs is not None):
        raise InvalidRequestError(
            "this service scores and does not generate: ask for echo with logprobs, or for prompt_logprobs",
            param="logprobs",
        )


def _many(asked: CompletionRequest) -> list[Any]:
    """The prompts: texts, or lists of token ids."""
    prompt = asked.prompt
    one = isinstance(prompt, str) or not prompt or type(prompt[0]) is int
    return [prompt] if one else list(prompt)


def _prompts(asked: CompletionRequest, served: Served, max_items: int) -> list[list[int]]:
    """Each prompt's token ids."""
    many = _many(asked)
    if len(many) > max_items:
        raise InvalidItemError(f"{len(many)} prompts: a request holds 1 to {max_items}", param="prompt")
    if isinstance(many[0], str):
        served.check_text(*many)
        encode = served.tokenizer.encode
        return [encode(text, add_special_tokens=asked.add_special_tokens) for text in wanted(many)]
    return many


def _echoes(asked: CompletionRequest, served: Served) -> list[str]:
    """The text of each prompt, with which its completion begins. Scoring has checked the ids."""
    many = _many(asked)
    if not asked.echo:
        return [""] * len(many)
    return [each if isinstance(each, str) else served.tokenizer.decode(each) for each in many]


def _answer(asked: CompletionRequest, scores: list[PromptScore], served: Served) -> dict[str, Any]:
    echoes = _echoes(asked, served)
    choices = [
        _choice(i, asked, echo, score, served)
        for i, (echo, score) in enumerate(zip(echoes, scores, strict=True))
    ]
    prompt_tokens = sum(len(score.token_ids) for score in scores)
    completion_tokens = sum(score.next_id is not None for score in scores)
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": asked.model or "sft",
        "choices": choices,
        "system_fingerprint": served.pair.version,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
        },
    }


def _choice(
    index: int,
    asked: CompletionRequest,
    echo: str,
    score: PromptScore,
    served: Served,
) -> dict[str, Any]:
    following = score.next_entries[:1] if score.next_entries else []
    ended = any(entry.token_id in served.pair.eos_token_ids for entry in following)
    shows = served.tokenizer.decode(
        [entry.token_id for entry in following], skip_special_tokens=asked.skip_special_tokens
    )
    completion = following[0].text if shows and not ended else ""
    # As in vLLM, an echo with log-probabilities fills `logprobs` and `prompt_logprobs`.
    top = asked.logprobs if asked.prompt_logprobs is None and asked.echo else asked.prompt_logprobs
    return {
        "index": index,
        "text": echo + completion,
        "logprobs": None if asked.logprobs is None else _logprobs(asked, score),
        "finish_reason": "stop" if ended else "length",
        "stop_reason": None,
        "token_ids": [entry.token_id for entry in following] if asked.return_token_ids else None,
        "prompt_logprobs": None if top is None else as_vllm(score, top),
        "prompt_token_ids": score.token_ids if asked.return_token_ids else None,
    }


def _logprobs(asked: CompletionRequest, score: PromptScore) -> dict[str, Any]:
    def name(token_id: int, text: str) -> str:
        return f"token_id:{token_id}" if asked.return_tokens_as_token_ids else text

    positions = [
        *(score.entries_L if asked.echo else ()),
        *([score.next_entries] if score.next_entries else ()),
    ]
    tokens = [
        name(entries[0].token_id, entries[0].text) if entries else name(score.token_ids[0], score.first_text)
        for entries in positions
    ]
    return {
        "text_offset": [0, *accumulate(map(len, tokens))][: len(tokens)],
        "token_logprobs": [entries[0].logp if entries else None for entries in positions],
        "tokens": tokens,
        # Several tokens may have the same text, as padded ids do. As in vLLM, the last one is kept.
        "top_logprobs": [
            {name(entry.token_id, entry.text): entry.logp for entry in shown(entries, asked.logprobs or 0)}
            if entries
            else None
            for entries in positions
        ],
    }
