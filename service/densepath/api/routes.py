"""The other routes: health, metrics, versions, the pair, tokenize and detokenize."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import densepath
from densepath.api.answers import to_json
from densepath.api.body import deadline, in_pool, parse_json, read_json_body, validate, while_wanted
from densepath.api.models import MODELS, check_name
from densepath.api.openapi import body_of
from densepath.api.schemas import (
    DetokenizeAnswer,
    DetokenizeRequest,
    ErrorAnswer,
    ModelCard,
    ModelsAnswer,
    PairAnswer,
    PairLimits,
    PairSources,
    StatusAnswer,
    TokenizeAnswer,
    TokenizeChat,
    TokenizeText,
    VerifiedAnswer,
    VersionAnswer,
)
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.config import Limits
from densepath.errors import InvalidItemError
from densepath.wire import JSON_MEDIA_TYPE

ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorAnswer, "description": "Every error, in OpenAI's shape"}
}


def health(service: Service) -> APIRouter:
    """The routes that need no key: health and metrics."""
    routes = APIRouter(responses=ERRORS)

    @routes.head("/livez", include_in_schema=False)
    @routes.get("/livez", response_model=StatusAnswer)
    async def livez() -> StatusAnswer:
        """The process works. 503 means that only a restart of the process helps."""
        if not service.lifecycle.alive():
            service.lifecycle.take()
        return StatusAnswer(status="alive")

    @routes.head("/readyz", include_in_schema=False)
    @routes.head("/health", include_in_schema=False)
    @routes.get("/readyz", response_model=StatusAnswer)
    @routes.get("/health", response_model=StatusAnswer)
    async def readyz() -> StatusAnswer:
        """The pair is loaded and verified, its engine makes progress, and the service is not draining.

        The message of a 503 begins with the phase.
        """
        service.lifecycle.take()
        return StatusAnswer(status="ready")

    @routes.head("/metrics", include_in_schema=False)
    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """All metrics in the text format of Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def about(service: Service, engine: str) -> APIRouter:
    """The routes that describe what is served."""
    routes = APIRouter(responses=ERRORS)
    loaded = int(time.time())

    @routes.get("/version", response_model=VersionAnswer)
    async def version() -> VersionAnswer:
        """The versions of densepath and of the pair."""
        version = service.lifecycle.served.pair.version
        return VersionAnswer(version=densepath.__version__, engine=engine, model_version=version)

    @routes.get("/v1/pair", response_model=PairAnswer)
    async def served_pair() -> PairAnswer:
        """The served pair, its verification, and the limits of one request."""
        return pair_answer(service.lifecycle.served, service.limits)

    @routes.get("/v1/models", response_model=ModelsAnswer)
    async def models() -> ModelsAnswer:
        """The pair, its two models, and the teacher that combines both."""
        served = service.lifecycle.served
        names = (served.model_name, *MODELS)
        length = served.scorer.context_length
        return ModelsAnswer(data=[ModelCard(id=name, created=loaded, max_model_len=length) for name in names])

    return routes


def pair_answer(served: Served, limits: Limits) -> PairAnswer:
    """How a pair is shown."""
    pair = served.pair
    return PairAnswer(
        model=served.model_name,
        version=pair.version,
        sources=PairSources(sft=pair.sources[0], reference=pair.sources[1]),
        dtype=served.scorer.dtype,
        reference_dtype=served.scorer.reference_dtype,
        verified=VerifiedAnswer.model_validate(asdict(served.verdict)),
        vocab_size=pair.embedding_size,
        context_length=served.scorer.context_length,
        tokenizer_fingerprint=pair.tokenizer_fingerprint,
        chat_template_fingerprint=pair.chat_template_fingerprint,
        eos_token_ids=sorted(pair.eos_token_ids),
        limits=PairLimits(
            max_items=limits.max_items,
            max_body_bytes=limits.max_body_bytes,
            max_queued_tokens=limits.max_queued_tokens,
        ),
    )


def tokenizing(service: Service) -> APIRouter:
    """vLLM's /tokenize and /detokenize, with the pair's tokenizer."""
    routes = APIRouter(responses=ERRORS)

    @routes.post(
        "/tokenize", response_model=TokenizeAnswer, openapi_extra=body_of(TokenizeText, TokenizeChat)
    )
    async def tokenize(request: Request) -> Response:
        """Token ids of a text, or of a chat."""
        return await answer_now(request, _tokenize)

    async def answer_now(request: Request, answer: Callable[[bytes, Served], bytes]) -> Response:
        until, served = deadline(request), service.lifecycle.served
        body = await while_wanted(read_json_body(request, service), service, until)
        work = in_pool(service, answer, body, served)
        return Response(await while_wanted(work, service, until, reader=request), media_type=JSON_MEDIA_TYPE)

    def _tokenize(body: bytes, served: Served) -> bytes:
        value = parse_json(body)
        chat = isinstance(value, dict) and "messages" in value
        asked = validate(TokenizeChat, value) if chat else validate(TokenizeText, value)
        check_name(asked.model, served)
        if isinstance(asked, TokenizeText):
            text = asked.prompt
        else:
            dicts = [message.model_dump(exclude_unset=True) for message in asked.messages]
            text = served.tokenizer.render(
                dicts, asked.chat_template_kwargs, add_generation_prompt=asked.add_generation_prompt
            )
        served.check_text(text)
        token_ids = served.tokenizer.encode(text, add_special_tokens=asked.add_special_tokens)
        answer = TokenizeAnswer(
            count=len(token_ids),
            max_model_len=served.scorer.context_length,
            tokens=token_ids,
            token_strs=served.tokenizer.vocabulary_strings(token_ids) if asked.return_token_strs else None,
        )
        return to_json(answer.model_dump())

    @routes.post("/detokenize", response_model=DetokenizeAnswer, openapi_extra=body_of(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        """The text of token ids."""
        return await answer_now(request, _detokenize)

    def _detokenize(body: bytes, served: Served) -> bytes:
        asked = validate(DetokenizeRequest, parse_json(body))
        check_name(asked.model, served)
        size = served.pair.embedding_size
        if any(not 0 <= token_id < size for token_id in asked.tokens):
            raise InvalidItemError(f"a token id is out of range: ids go from 0 to {size - 1}", param="tokens")
        return to_json(DetokenizeAnswer(prompt=served.tokenizer.decode(asked.tokens)).model_dump())

    return routes
