"""POST /v1/rewards: read, admit, score, answer."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from densepath.admission import Ticket
from densepath.api.answers import Result, answer, to_json, to_safetensors, write_answer
from densepath.api.body import deadline, media_type, read_body, while_wanted
from densepath.api.engine_calls import count_tokens, score_sequence, scoring, together
from densepath.api.items import Batch, at_item, read_json_batch, read_packed_batch
from densepath.api.openapi import body_of
from densepath.api.schemas import ErrorAnswer, RewardsAnswer, RewardsRequest
from densepath.api.service import Service
from densepath.errors import (
    DensepathError,
    ModelNotFoundError,
    ModelVersionMismatchError,
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
        if problem := service.problem():
            raise problem
        reader = READERS.get(media_type(request))
        if reader is None:
            raise UnsupportedMediaTypeError(f"send Content-Type: {JSON_MEDIA_TYPE} or {MEDIA_TYPE}")
        until = deadline(request)
        body = await while_wanted(read_body(request, service), service, until)
        packed = MEDIA_TYPE in request.headers.get("accept", "").lower()

        async def work() -> bytes:
            with service.traces.stage("parse"):
                batch = await asyncio.to_thread(reader, body, service)
                check_served(batch.options.model, batch.options.model_version, service)
            results = await score_batch(batch, service)
            count_scores(results, service)
            encode = to_safetensors if packed else to_json
            return await write_answer(lambda: encode(answer(batch, results, service)), service)

        content = await while_wanted(work(), service, until, reader=request)
        return Response(content, media_type=MEDIA_TYPE if packed else JSON_MEDIA_TYPE)

    return routes


def check_served(model: str | None, version: str | None, service: Service) -> None:
    """Refuse a model or a version that is not the served one."""
    if model is not None and model != service.model_name:
        raise ModelNotFoundError(f"this service serves the model `{service.model_name}`", param="model")
    if version is not None and version != service.pair.version:
        raise ModelVersionMismatchError(
            f"the served pair has version {service.pair.version}, which is not the pinned one",
            param="model_version",
        )


async def score_batch(batch: Batch, service: Service) -> list[Result | DensepathError]:
    """Score every item; with on_error "fail" the first error ends the whole batch and its work."""
    fail = batch.options.on_error == "fail"
    works = [item.work for item in batch.items]
    if fail:
        for work in works:
            if isinstance(work, DensepathError):
                raise work
    tokens = sum(len(work.token_ids_L) for work in works if isinstance(work, Sequence))
    with scoring(len(works), tokens, service) as ticket:
        scores = (_score_item(i, work, ticket, service) for i, work in enumerate(works))
        async with together(scores) as tasks:
            if not fail:
                return [await _or_error(task) for task in tasks]
            return list(await asyncio.gather(*tasks))


async def _or_error(task: asyncio.Future[Result]) -> Result | DensepathError:
    """A result, or the error of its own item. A service that is gone fails the whole request."""
    try:
        return await task
    except UnavailableError:
        raise
    except DensepathError as error:
        return error


async def _score_item(
    index: int, work: Sequence | DensepathError, ticket: Ticket, service: Service
) -> Result:
    if isinstance(work, DensepathError):
        raise work
    try:
        return Result.of(work, await score_sequence(work, ticket, service))
    except UnavailableError:
        raise
    except DensepathError as error:
        raise at_item(error, index) from error


def count_scores(results: list[Result | DensepathError], service: Service) -> None:
    """Put the scores of one request into the metrics."""
    metrics = service.metrics
    good = [result for result in results if isinstance(result, Result)]
    count_tokens([result.sequence for result in good], [result.scored for result in good], service)
    for result in results:
        if isinstance(result, Result):
            metrics.token_reward.observe(result.reward_T)
            metrics.sequence_reward.observe(result.reward_T.sum(keepdims=True))
        else:
            metrics.rejections.labels(result.code).inc()
