"""POST /v1/rewards: read, admit, score, answer."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from densepath.admission import Ticket
from densepath.api.answers import ScoredItem, answer, to_json, to_safetensors, write_answer
from densepath.api.body import deadline, in_pool, media_type, read_body, read_to_score, while_wanted
from densepath.api.engine_calls import admitted, count_tokens, score_sequence, together
from densepath.api.items import Batch, at_item, read_json_batch, read_packed_batch
from densepath.api.openapi import body_of
from densepath.api.schemas import ErrorAnswer, RewardsAnswer, RewardsRequest
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.errors import (
    DensepathError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from densepath.sequences import Sequence
from densepath.wire import JSON_MEDIA_TYPE, MEDIA_TYPE

READERS = {JSON_MEDIA_TYPE: read_json_batch, MEDIA_TYPE: read_packed_batch}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def router(service: Service) -> APIRouter:
    """The scoring route."""
    routes = APIRouter()

    @routes.post(
        "/v1/rewards",
        response_model=RewardsAnswer,
        responses={
            200: {"content": {MEDIA_TYPE: BINARY}},
            "default": {"model": ErrorAnswer, "description": "Every error, in OpenAI's shape"},
        },
        openapi_extra=body_of(RewardsRequest, **{MEDIA_TYPE: BINARY}),
    )
    async def score_rewards(request: Request) -> Response:
        """One reward for every scored token: r_t = log p_sft(y_t | y_<t) − log p_reference(y_t | y_<t)."""
        served = service.lifecycle.take()
        reader = READERS.get(media_type(request))
        if reader is None:
            raise UnsupportedMediaTypeError(f"send Content-Type: {JSON_MEDIA_TYPE} or {MEDIA_TYPE}")
        until = deadline(request)
        body = await read_to_score(request, service, until, read_body)
        packed = MEDIA_TYPE in request.headers.get("accept", "").lower()

        async def work() -> bytes:
            with service.traces.stage("parse"):
                batch = await in_pool(service, reader, body, served, service.limits.max_items)
            results = await score_batch(batch, service)
            count_scores(results, service)
            encode = to_safetensors if packed else to_json
            return await write_answer(lambda: encode(answer(batch, results)), service)

        content = await while_wanted(work(), service, until, reader=request)
        return Response(content, media_type=MEDIA_TYPE if packed else JSON_MEDIA_TYPE)

    return routes


async def score_batch(batch: Batch, service: Service) -> list[ScoredItem | DensepathError]:
    """Score every item; with on_error "fail" the first error ends the whole batch and its work."""
    fail = batch.options.on_error == "fail"
    sequences = [item.sequence for item in batch.items]
    if fail:
        for sequence in sequences:
            if isinstance(sequence, DensepathError):
                raise sequence
    tokens = sum(len(each.token_ids_L) for each in sequences if isinstance(each, Sequence))
    async with admitted(len(sequences), tokens, service) as ticket:
        scores = (_score_item(i, each, ticket, batch.served, service) for i, each in enumerate(sequences))
        async with together(scores) as tasks:
            if not fail:
                return [await _or_error(task) for task in tasks]
            return list(await asyncio.gather(*tasks))


async def _or_error(task: asyncio.Future[ScoredItem]) -> ScoredItem | DensepathError:
    """A scored item, or the error of that item. An engine that is gone fails the whole request instead."""
    try:
        return await task
    except UnavailableError:
        raise
    except DensepathError as error:
        return error


async def _score_item(
    index: int, sequence: Sequence | DensepathError, ticket: Ticket, served: Served, service: Service
) -> ScoredItem:
    if isinstance(sequence, DensepathError):
        raise sequence
    try:
        return ScoredItem.of(sequence, await score_sequence(sequence, ticket, served, service))
    except UnavailableError:
        raise
    except DensepathError as error:
        raise at_item(error, index) from error


def count_scores(results: list[ScoredItem | DensepathError], service: Service) -> None:
    """Count the scores and the errors of one request in the metrics."""
    metrics = service.metrics
    good = [result for result in results if isinstance(result, ScoredItem)]
    count_tokens([result.sequence for result in good], [result.scored for result in good], service)
    for result in results:
        if isinstance(result, ScoredItem):
            metrics.token_reward.observe(result.reward_T)
            metrics.sequence_reward.observe(result.reward_T.sum(keepdims=True))
        else:
            metrics.rejections.labels(result.code).inc()
