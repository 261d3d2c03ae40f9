"""POST /inference/v1/generate, vLLM's token-in route, for scoring: `prompt_logprobs` of a sequence of ids."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from densepath.api.answers import to_json, write_answer
from densepath.api.body import answer_json, in_pool, parse_json, validate
from densepath.api.compat.completions import CompletionUsage, PromptLogprob, SamplingFields
from densepath.api.compat.prompt_scores import (
    Entry,
    PromptScore,
    Top,
    as_vllm,
    refuse_generation,
    score_prompts,
    shown,
)
from densepath.api.models import model_view
from densepath.api.openapi import body_of
from densepath.api.schemas import Strict, TokenIds
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.errors import InvalidRequestError


class ScoringParams(SamplingFields):
    """vLLM's sampling parameters, for a request that scores."""

    max_tokens: Annotated[int | None, Field(description="0 or 1; 1 adds the likeliest next token")] = 16
    prompt_logprobs: Top | None = None
    logprobs: Annotated[Top | None, Field(description="of the next token")] = None
    detokenize: bool = True
    output_kind: int | None = None


class GenerateRequest(Strict):
    """A request of vLLM's token-in route that scores."""

    request_id: str | None = None
    token_ids: Annotated[TokenIds, Field(min_length=1)]
    sampling_params: ScoringParams
    model: Annotated[str | None, Field(description="`sft`, which is the default, or another")] = None
    return_token_ids: bool | None = None
    output_mode: Literal["tokens"] = "tokens"
    stream: bool | None = False
    cache_salt: str | None = None
    priority: int = 0


class TokenLogprob(BaseModel):
    """One token on this wire."""

    token_id: int
    logprob: float
    rank: int


class NextTokenLogprob(TokenLogprob):
    """The next token, and the likeliest ones."""

    top_logprobs: list[TokenLogprob]


class NextTokenLogprobs(BaseModel):
    """One entry."""

    content: list[NextTokenLogprob]


class GenerateChoice(BaseModel):
    """The next token, where it was asked for."""

    index: int
    finish_reason: Literal["length", "stop"]
    stop_reason: int | None
    token_ids: list[int]
    logprobs: NextTokenLogprobs | None


class GenerateAnswer(BaseModel):
    """The answer: `prompt_logprobs` has None for the first token, then each position's token first."""

    request_id: str
    model: str
    created: int
    usage: CompletionUsage
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None
    prompt_token_ids: list[int] | None
    output_mode: Literal["tokens"]
    choices: list[GenerateChoice]


class VllmErrorBody(BaseModel):
    """vLLM's: the code is the status."""

    message: str
    type: str
    param: str | None
    code: int


class VllmErrorAnswer(BaseModel):
    """Every error of this route."""

    error: VllmErrorBody


def router(service: Service) -> APIRouter:
    """The token-in route."""
    routes = APIRouter(responses={"default": {"model": VllmErrorAnswer, "description": "vLLM's error"}})

    @routes.post(
        "/inference/v1/generate", response_model=GenerateAnswer, openapi_extra=body_of(GenerateRequest)
    )
    async def generate(request: Request) -> Response:
        """Log-probabilities of one sequence of token ids by one model of the pair. Nothing is sampled."""

        async def work(body: bytes, served: Served) -> bytes:
            with service.traces.stage("parse"):
                asked = await in_pool(service, _read, body, served)
                params = asked.sampling_params
                top = max(params.logprobs or 0, params.prompt_logprobs or 0)
                view = model_view(asked.model, served, top=top)
                refuse_generation(params.max_tokens, params.n, asked.stream)
                if params.prompt_logprobs is None:
                    raise InvalidRequestError(
                        "this service scores and does not generate: ask for prompt_logprobs",
                        param="sampling_params.prompt_logprobs",
                    )
            [score] = await score_prompts([asked.token_ids], view, params.max_tokens == 1, served, service)
            return await write_answer(lambda: to_json(_answer(asked, score, served)), service)

        return await answer_json(request, service, work)

    return routes


def _read(body: bytes, served: Served) -> GenerateRequest:
    asked = validate(GenerateRequest, parse_json(body))
    served.check_length([asked.token_ids], more=asked.sampling_params.max_tokens == 1)
    return asked


def _answer(asked: GenerateRequest, score: PromptScore, served: Served) -> dict[str, Any]:
    params, prompt_tokens = asked.sampling_params, len(score.token_ids)
    following = [] if score.next_id is None else [score.next_id]
    ended = any(token_id in served.pair.eos_token_ids for token_id in following)
    return {
        "request_id": asked.request_id or uuid.uuid4().hex,
        "model": asked.model or "sft",
        "created": int(time.time()),
        "usage": {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + len(following),
            "completion_tokens": len(following),
        },
        "prompt_logprobs": as_vllm(score, params.prompt_logprobs or 0),
        "prompt_token_ids": score.token_ids if asked.return_token_ids else None,
        "output_mode": "tokens",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop" if ended else "length",
                "stop_reason": None,
                "token_ids": following,
                "logprobs": _next_logprobs(score.next_entries, params.logprobs),
            }
        ],
    }


def _next_logprobs(entries: list[Entry] | None, top: int | None) -> dict[str, Any] | None:
    if entries is None or top is None:
        return None
    rows = [
        {"token_id": entry.token_id, "logprob": entry.logp, "rank": entry.rank}
        for entry in shown(entries, top)
    ]
    return {"content": [{**rows[0], "top_logprobs": rows}]}
